"""torch.export programs that would execute code: `torch.export.load` runs them, and the torch backend refuses them."""

import io
import json
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier.errors import BadDataError
from serving.backends.program_check import MAX_BYTES, checked_program
from serving.backends.torch_backend import TorchBackend
from serving.manifest import PROGRAM_NAME
from tests.export.small_model import exported_files, noise_images

PROGRAM = exported_files()[PROGRAM_NAME]
GRAPH = "archive/models/model.json"
Entries = dict[str, bytes]
Attack = Callable[[Entries, str], None]  # with the path of a directory that code would make


def packed(entries: Entries, compression: int = zipfile.ZIP_STORED) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return archive.getvalue()


def entries_of(program: bytes = PROGRAM) -> Entries:
    with zipfile.ZipFile(io.BytesIO(program)) as old:
        return {name: old.read(name) for name in old.namelist()}


def attacked(attack: Attack, canary: Path) -> bytes:
    entries = entries_of()
    attack(entries, str(canary))
    return packed(entries)


def edit_graph(entries: Entries, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(entries[GRAPH])
    edit(document)
    entries[GRAPH] = json.dumps(document).encode()


def an_expression(entries: Entries, canary: str) -> None:
    """Sizes are evaluated as Python by sympy."""
    text = entries[GRAPH].decode()
    evil = f"__import__('os').mkdir('{canary}') or 4"
    start = text.index('"expr_str": "') + len('"expr_str": "')
    symbol = text[start : text.index('"', start)]
    entries[GRAPH] = text.replace(symbol, evil).encode()


def a_guard(entries: Entries, canary: str) -> None:
    """Guards become the source of a function."""
    edit_graph(entries, lambda document: document.update(guards_code=[f"__import__('os').mkdir('{canary}') is None"]))


def an_operator_of_python(entries: Entries, canary: str) -> None:
    """An operator is any attribute of torch, its imports too."""

    def edit(document: dict[str, Any]) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        node.update(target="torch.os.mkdir", inputs=[{"name": "", "arg": {"as_string": canary}, "kind": 1}])

    edit_graph(entries, edit)


def pickled(name: str) -> Attack:
    def attack(entries: Entries, canary: str) -> None:
        entries[f"archive/data/{name}"] = pickle.dumps((Canary(canary),), protocol=2)
        config = "archive/data/weights/model_weights_config.json"
        if name.startswith("weights"):
            entries[config] = entries[config].replace(b'"use_pickle": false', b'"use_pickle": true', 1)

    return attack


class Canary:
    """Unpickling it makes a directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.mkdir, (Path(self.path),)  # type: ignore[return-value]


LOAD_WITH_TORCH = """
import sys, torch
for path in sys.argv[1:]:
    try:
        torch.export.load(path).module()(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    except Exception as error:
        print(error)
"""


@pytest.mark.slow
def test_torch_itself_executes_them(tmp_path: Path) -> None:
    """So that the test below is of something."""
    attacks = (an_expression, a_guard)
    for attack in attacks:
        (tmp_path / f"{attack.__name__}.pt2").write_bytes(attacked(attack, tmp_path / attack.__name__))
    command = [sys.executable, "-c", LOAD_WITH_TORCH, *map(str, tmp_path.glob("*.pt2"))]
    subprocess.run(command, capture_output=True, timeout=120)
    assert all((tmp_path / attack.__name__).exists() for attack in attacks)


ATTACKS: list[Attack] = [an_expression, a_guard, an_operator_of_python]
ATTACKS += [pickled(name) for name in ("weights/weight_0", "constants/custom_obj_0", "constants/tensor_0")]


@pytest.mark.fault("E7")
@pytest.mark.parametrize("attack", ATTACKS)
def test_program_that_would_execute_code_is_refused(attack: Attack, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"BAD_PROGRAM: .*which no export|is not empty|make export"):
        TorchBackend(attacked(attack, tmp_path / "executed"), max_batch_size=1)
    assert not (tmp_path / "executed").exists()


def test_sample_inputs_are_not_looked_at(tmp_path: Path) -> None:
    program = attacked(pickled("sample_inputs/model.pt"), tmp_path / "executed")
    backend = TorchBackend(program, max_batch_size=1)
    assert backend.infer(noise_images(1)).shape == (1, 10)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("archive/data/aotinductor/model/code.so", b"\x7fELF"),
        ("archive/extra/notes", b""),
        ("archive/models/other.json", b"{}"),
        ("elsewhere/models/model.json", b"{}"),
        ("../models/model.json", b"{}"),
    ],
)
def test_entry_that_no_export_has_is_refused(name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match="which no export does"):
        checked_program(packed(entries_of() | {name: content}))


def test_archive_that_two_readers_may_read_differently_is_refused_or_made_anew() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own, of the second name
        archive = io.BytesIO(PROGRAM)
        with zipfile.ZipFile(archive, "a") as doubled:
            doubled.writestr(GRAPH, b"{}")
    with pytest.raises(ValueError, match="twice"):
        checked_program(archive.getvalue())
    with pytest.raises(ValueError, match="which no export does"):
        checked_program(packed(entries_of(), zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="the limit is"):
        checked_program(bytes(MAX_BYTES + 1))
    assert entries_of(checked_program(b"#!/bin/sh\n" + PROGRAM)) == entries_of(checked_program(PROGRAM))


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["graph_module"]["graph"]["nodes"][2].update(target="torch.ops.aten.conv1d.default"),
        lambda document: document["graph_module"]["graph"]["nodes"].extend(
            document["graph_module"]["graph"]["nodes"] * 9
        ),
        lambda document: document["graph_module"]["graph"]["nodes"][2].update(surprise=1),
        lambda document: document["graph_module"]["graph"]["nodes"][2].update(name="x; import os"),
        lambda document: document["graph_module"]["graph"]["custom_obj_values"].update(a={}),
        lambda document: document["graph_module"]["graph"]["tensor_values"].update({"a b": {}}),
        lambda document: document["range_constraints"]["s34"].update(max_val=1 << 40),
        lambda document: document["graph_module"]["module_call_graph"][0]["signature"].update(in_spec="os.system"),
    ],
)
def test_graph_that_no_export_has_is_refused(edit: Callable[[dict[str, Any]], object]) -> None:
    entries = entries_of()
    edit_graph(entries, edit)
    with pytest.raises(ValueError, match=r"which no export has|is not empty|its max_val is"):
        checked_program(packed(entries))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_no_number_is_refused_by_its_name(value: float) -> None:
    entries = entries_of()
    entries["archive/data/weights/weight_3"] = torch.full((16,), value).numpy().tobytes()
    with pytest.raises(BadDataError, match=r"NON_FINITE: .*layers\.conv2\.bias"):
        TorchBackend(packed(entries), max_batch_size=1)
