"""Proof on arrival: a backend that gives other logits than the model's never serves."""

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.export import ExportedProgram

from atelier.client import Client
from atelier.contract import Images, Logits
from atelier.errors import BadDataError, ProgramError
from atelier.sealed import unsealed
from export.precision import PRECISIONS, onnx_in
from export.repository import publish
from export.torch_program import program_bytes, program_from_model
from loadtest.front_ends import available_front_ends
from loadtest.server_process import server_process
from serving.backends.base import Backend
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.proof import prove
from serving.backends.torch_backend import TorchBackend
from serving.config import ServerConfig
from serving.manifest import (
    ONNX_NAME,
    PROGRAM_NAME,
    RTX_ENGINE_NAME,
    TENSORRT_RTX,
    EngineSpec,
    Manifest,
    Probes,
    load_manifest,
)
from serving.models import load_model
from tests.export.small_model import (
    MAX_BATCH_SIZE,
    exported_files,
    manifest_for,
    noise_images,
    perturbed,
    probes,
    seeded_model,
    weights_of,
    with_weights,
)
from tests.reliability.plugin import Figure
from tests.sealed_files import edit_sealed

FILES = exported_files()


def digests_of(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


MANIFEST = manifest_for(digests_of(FILES))


def published(repository: Path, files: dict[str, bytes], manifest: Manifest | None = None) -> Path:
    """A version whose digests are those of `files`, whatever they are."""
    manifest = dataclasses.replace(manifest or MANIFEST, files=digests_of(files))
    return publish(repository / "lenet5", files, manifest)


ENGINE = EngineSpec(
    flavour=TENSORRT_RTX,
    file=RTX_ENGINE_NAME,
    version="1.7.1.116",
    compute_capabilities=("8.0",),
    precision="fp32",
    onnx_sha256=MANIFEST.files[ONNX_NAME],
    min_batch_size=1,
    opt_batch_size=8,
    max_batch_size=MAX_BATCH_SIZE,
    layer_types={"fp32": 27},
)


class Spoiled:
    """A backend whose answers something happens to."""

    def __init__(self, backend: Backend, spoil: Callable[[Images, Logits], Logits]) -> None:
        self.name, self.device, self.max_batch_size = backend.name, backend.device, backend.max_batch_size
        self._backend, self._spoil = backend, spoil

    def infer(self, images: Images) -> Logits:
        return self._spoil(images, self._backend.infer(images))

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


def on_onnxruntime(max_batch_size: int = MAX_BATCH_SIZE) -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(FILES[ONNX_NAME], max_batch_size=max_batch_size)


def on_torch() -> TorchBackend:
    return TorchBackend(FILES[PROGRAM_NAME], max_batch_size=MAX_BATCH_SIZE)


@pytest.mark.parametrize("max_batch_size", [1, 2, 7, 8, 16])
def test_right_backend_is_proven_at_1_7_and_its_largest_batch(max_batch_size: int) -> None:
    sizes = set()

    def look(images: Images, logits: Logits) -> Logits:
        sizes.add(len(images))
        return logits

    proof = prove(Spoiled(on_onnxruntime(max_batch_size), look), MANIFEST)
    assert proof.num_probes == 64
    assert sizes == set(proof.batch_sizes) == {1, min(7, max_batch_size), max_batch_size}
    assert 0 < proof.max_abs_diff < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_is_held_to_its_own_row(precision: str) -> None:
    if precision == "bf16":
        pytest.skip("no runtime computes in bf16 on a CPU")
    model = onnx_in(precision, FILES[ONNX_NAME], noise_images(256, seed=1))
    backend = OnnxRuntimeBackend(model, max_batch_size=MAX_BATCH_SIZE)
    assert prove(backend, dataclasses.replace(MANIFEST, precision=precision)).num_probes == 64
    if precision in ("fp16", "int8"):
        with pytest.raises(BadDataError, match=r"PARITY_HERE: onnxruntime on cpu: probe .*fp32 allows"):
            prove(backend, MANIFEST)


@pytest.mark.fault("E18")
@pytest.mark.parametrize("scale", [1.0, 254.0, 256.0])
def test_model_that_scales_its_images_otherwise_is_refused(scale: float) -> None:
    model = onnx.load_from_string(FILES[ONNX_NAME])
    (divisor,) = (each for each in model.graph.initializer if not each.dims)
    assert onnx.numpy_helper.to_array(divisor) == 255.0
    divisor.CopyFrom(onnx.numpy_helper.from_array(np.array(scale, np.float32), divisor.name))
    with pytest.raises(BadDataError, match="PARITY_HERE"):
        prove(OnnxRuntimeBackend(model.SerializeToString(), max_batch_size=MAX_BATCH_SIZE), MANIFEST)


@pytest.mark.timing
@pytest.mark.parametrize("opened", [on_onnxruntime, on_torch])
def test_proof_takes_little_more_than_its_runs(opened: Callable[[], Backend]) -> None:
    """CPU time, since the machine may be busy or slow: 64 runs of one image are most of it."""
    backend = opened()
    images, _ = MANIFEST.probes.arrays()

    def run_all() -> None:
        for size in (1, 7, backend.max_batch_size):
            for start in range(0, len(images), size):
                backend.infer(images[start : start + size])

    def taken_s(work: Callable[[], object]) -> float:
        return min(timeit.repeat(work, timer=time.process_time, number=1, repeat=7))

    assert taken_s(lambda: prove(backend, MANIFEST)) < 1.5 * taken_s(run_all) + 0.01


def another_image(images: Images, logits: Logits) -> Logits:
    return np.roll(logits, 1, axis=0)


def last_answer(images: Images, logits: Logits) -> Logits:
    """What the buffer held before: a copy that is not waited for."""
    previous = last_answer.__dict__.get("kept", logits)
    last_answer.__dict__["kept"] = logits
    return previous if len(previous) == len(logits) else logits


def nan_somewhere(images: Images, logits: Logits) -> Logits:
    logits[-1, 3] = np.nan
    return logits


def off_in_large_batches(images: Images, logits: Logits) -> Logits:
    return logits + np.float32(1e-3 * (len(images) == MAX_BATCH_SIZE))


def too_few(images: Images, logits: Logits) -> Logits:
    return logits[:-1]


def failing(images: Images, logits: Logits) -> Logits:
    raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (another_image, r"probe \d+ \(noise \d+\) in a batch of 7: output logits\[\d\] is .* here, and .* in float64"),
        (last_answer, r"probe \d+ \(noise \d+\) in a batch of 1: output logits"),
        (nan_somewhere, r"probe 0 \(noise 0\) in a batch of 1: output logits\[3\] is nan here"),
        (
            off_in_large_batches,
            r"probe \d+ \(noise \d+\) in a batch of 16: output logits\[\d\] is .*: 0\.001 off, fp32 allows 1\.\de-05",
        ),
        (too_few, r"a batch of 1 has logits of shape \(0, 10\)"),
        (failing, "a batch of 1 failed: the device is gone"),
    ],
)
def test_wrong_backend_is_refused_naming_probe_and_output(spoil: Callable[[Images, Logits], Logits], told: str) -> None:
    with pytest.raises(BadDataError, match=f"PARITY_HERE: onnxruntime on cpu: {told}"):
        prove(Spoiled(on_onnxruntime(), spoil), MANIFEST)


# --- Mutants ----------------------------------------------------------------------------------------------------------


def flipped_file(rng: np.random.Generator, repository: Path) -> None:
    """One weight of an artifact on the disk is 1 % off, of one that another backend would read too."""
    files = {**FILES, RTX_ENGINE_NAME: FILES[ONNX_NAME]}  # of an engine only its bytes matter here
    version_dir = published(repository, files, dataclasses.replace(MANIFEST, engines=(ENGINE,)))
    name = sorted(files)[rng.integers(len(files))]
    tensor = rng.choice(sorted(weights_of(onnx.load_from_string(FILES[ONNX_NAME]))))
    weights = weights_of(onnx.load_from_string(FILES[ONNX_NAME]))[tensor].ravel()
    old = weights[[rng.integers(len(weights))]].tobytes()
    new = (np.frombuffer(old, np.float32) * np.float32(1.01)).tobytes()
    data = (version_dir / name).read_bytes()
    assert old in data
    (version_dir / name).write_bytes(data.replace(old, new, 1))


def tensor_off(rng: np.random.Generator, repository: Path) -> None:
    """A tensor of the ONNX model is 1 % off, and the manifest has the file's digest: an export with a bug."""
    weights = weights_of(onnx.load_from_string(FILES[ONNX_NAME]))
    name = rng.choice(sorted(weights))
    model = with_weights(FILES[ONNX_NAME], {name: weights[name] * np.float32(1.01)})
    published(repository, {**FILES, ONNX_NAME: model})


@functools.cache
def program() -> ExportedProgram:
    """Exported once: with other weights it is that of another training."""
    return program_from_model(seeded_model(), MAX_BATCH_SIZE)


def other_version(rng: np.random.Generator, repository: Path) -> None:
    """The files of another training, with their digests, under this version's probes."""
    model = seeded_model()
    for parameter in model.parameters():
        parameter.data += 0.01 * float(rng.standard_normal())
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            program().state_dict[name].copy_(tensor)
    published(repository, {PROGRAM_NAME: program_bytes(program()), ONNX_NAME: with_weights(FILES[ONNX_NAME], weights)})


def other_probes(rng: np.random.Generator, repository: Path) -> None:
    """A probe in the manifest has another's logits."""
    images, logits = probes().arrays()
    one, other = rng.choice(len(logits), 2, replace=False)
    swapped = logits.copy()
    swapped[[one, other]] = logits[[other, one]]
    manifest = dataclasses.replace(MANIFEST, probes=Probes.of(probes().names, images, swapped))
    published(repository, FILES, manifest)


def swapped_layers(rng: np.random.Generator, repository: Path) -> None:
    """Two output channels of a layer have changed places, as a wrong library might have it."""
    weights = weights_of(onnx.load_from_string(FILES[ONNX_NAME]))
    name = rng.choice([name for name in sorted(weights) if name.endswith(".weight")])
    one, other = rng.choice(len(weights[name]), 2, replace=False)
    changed = weights[name].copy()
    changed[[one, other]] = changed[[other, one]]
    published(repository, {**FILES, ONNX_NAME: with_weights(FILES[ONNX_NAME], {name: changed})})


MUTATIONS = (flipped_file, tensor_off, other_version, other_probes, swapped_layers)


def refusal_of(repository: Path, backend: str) -> str:
    """The word that the start ends with; empty if it would serve."""
    try:
        load_model(ServerConfig(repository=repository, backend=backend, device="cpu")).backend.close()
    except ProgramError as error:
        return error.word
    return ""


@pytest.mark.fault("E13")
@pytest.mark.goal("G20", of="mutants of a version, refused by a server", ci=50, release=1000)
@pytest.mark.slow
def test_every_mutant_of_a_version_is_refused(tmp_path: Path, size: int, figure: Figure) -> None:
    refusals: dict[str, list[str]] = {}
    for seed in range(size):
        rng = np.random.default_rng(seed)
        mutate = MUTATIONS[seed % len(MUTATIONS)]
        mutate(rng, tmp_path / str(seed))
        words = {refusal_of(tmp_path / str(seed), backend) for backend in ("auto", "torch")}
        refusals.setdefault(mutate.__name__, []).append(" ".join(sorted(words)))
    expected = {"flipped_file": "HASH_MISMATCH"}
    for name, found in refusals.items():
        wanted = expected.get(name, "PARITY_HERE")
        assert all(wanted in words for words in found), (name, found)
    assert sum(map(len, refusals.values())) == size
    figure(f"{size} of {size} were refused")


@pytest.mark.slow
def test_unspoiled_version_is_served_by_both(tmp_path: Path) -> None:
    published(tmp_path, FILES)
    assert [refusal_of(tmp_path, backend) for backend in ("onnxruntime", "torch", "auto")] == ["", "", ""]


@pytest.mark.parametrize("seed", range(20))
def test_backend_that_answers_for_another_image_is_refused(seed: int) -> None:
    """It takes two answers of a batch for one another, now and then, in batches of some size."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([7, MAX_BATCH_SIZE]))

    def swap(images: Images, logits: Logits) -> Logits:
        if len(images) == size and rng.random() < 0.5:
            one, other = rng.choice(size, 2, replace=False)
            logits[[one, other]] = logits[[other, one]]
        return logits

    with pytest.raises(BadDataError, match="PARITY_HERE"):
        prove(Spoiled(on_onnxruntime(), swap), MANIFEST)


# --- A server ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("front_end", available_front_ends())
def test_server_tells_what_it_has_proven(front_end: str, tmp_path: Path) -> None:
    published(tmp_path, FILES)
    settings = ("--repository", str(tmp_path), "--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", *settings) as server, Client(server.target) as client:
        model = client.model()
    assert model.num_probes == 64
    assert 0 < model.max_abs_diff_here < 1e-5


@pytest.mark.parametrize("front_end", available_front_ends())
def test_server_of_a_wrong_model_ends_before_it_serves(front_end: str, tmp_path: Path) -> None:
    published(tmp_path, {**FILES, ONNX_NAME: perturbed(FILES[ONNX_NAME], "layers.linear3.bias", 3)})
    command = [sys.executable, "-m", "serving", "--repository", str(tmp_path), "--port", "0", "--device", "cpu"]
    done = subprocess.run([*command, "--front-end", front_end], capture_output=True, text=True, timeout=60)
    assert done.returncode == 65, done
    assert "error: PARITY_HERE: onnxruntime on cpu: probe " in done.stderr
    assert "output logits[3] is " in done.stderr
    assert "serving atelier.v1" not in done.stdout + done.stderr


# --- The manifest -----------------------------------------------------------------------------------------------------


def changed_manifest(version_dir: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    edit_sealed(version_dir / "manifest.json", change)
    return version_dir


def test_manifest_keeps_the_probes_bit_for_bit(tmp_path: Path) -> None:
    manifest = load_manifest(published(tmp_path, FILES))
    assert manifest.probes == probes()
    for found, wanted in zip(manifest.probes.arrays(), probes().arrays(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("number", "lack"), [(1, "no probes"), (2, "no digest of its own")])
def test_version_of_an_earlier_release_is_refused_with_the_cure(number: int, lack: str, tmp_path: Path) -> None:
    version_dir = published(tmp_path, FILES)
    path = version_dir / "manifest.json"
    path.write_text(json.dumps(unsealed(path.read_bytes()) | {"format": number}))
    told = rf"OLD_MANIFEST: .* has format {number}, which has {lack}; this program reads format 3 \(make export"
    with pytest.raises(BadDataError, match=told):
        load_manifest(version_dir)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(format=2),
        lambda document: document.update(format=4),
        lambda document: document.update(surprise=1),
        lambda document: document.update(version="1"),
        lambda document: document.update(version=0),
        lambda document: document.update(precision="fp8"),
        lambda document: document.update(max_batch_size=0),
        lambda document: document.update(parity_passed="yes"),
        lambda document: document.update(created=None),
        lambda document: document.update(checkpoint_sha256="0" * 63),
        lambda document: document["classes"].pop(),
        lambda document: document["classes"].__setitem__(0, document["classes"][1]),
        lambda document: document["input"].pop("name"),
        lambda document: document["input"].update(shape=[-1, 1, 28, 28.0]),
        lambda document: document["files"].update({"../model.onnx": "0" * 64}),
        lambda document: document["files"].update({"/etc/passwd": "0" * 64}),
        lambda document: document["files"].update({"other": "A" * 64}),
        lambda document: document["versions"].update(torch=2),
        lambda document: document.update(engines=[vars(ENGINE) | {"file": "elsewhere.engine"}]),
        lambda document: document.update(engines=[vars(ENGINE) | {"file": ONNX_NAME, "min_batch_size": 9}]),
        lambda document: document.update(engines=[vars(ENGINE) | {"file": ONNX_NAME, "layer_types": {"fp32": "x"}}]),
        lambda document: document.pop("probes"),
        lambda document: document["probes"].update(images="no base64"),
        lambda document: document["probes"].update(images=""),
        lambda document: document["probes"]["logits"].pop(),
        lambda document: document["probes"]["logits"][3].pop(),
        lambda document: document["probes"]["logits"][3].__setitem__(0, None),
        lambda document: document["probes"].update(names=[], logits=[], images=""),
    ],
)
def test_fields_that_cannot_be_are_refused(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    version_dir = changed_manifest(published(tmp_path, FILES), change)
    with pytest.raises(BadDataError, match=r"BAD_MANIFEST: .*make export"):
        load_manifest(version_dir)


def test_weights_of_the_small_model_are_those_of_its_program() -> None:
    """The mutants above look for a weight's bytes in both files."""
    tensors = onnx.load_from_string(FILES[ONNX_NAME]).graph.initializer
    bias = next(numpy_helper.to_array(tensor) for tensor in tensors if tensor.name == "layers.conv1.bias")
    np.testing.assert_array_equal(bias, seeded_model().state_dict()["layers.conv1.bias"].numpy())
