"""The client stands alone: beside folders of the user's own, and without what only the other wings need."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from atelier.cli import PROGRAMS

FOLDERS = ("protos", "serving", "training", "export", "loadtest")


def test_client_works_beside_a_users_own_folders_and_protos(tmp_path: Path) -> None:
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("MINE = True\n")
    code = """
import protos, serving
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="protos/classifier.proto", package="mine")
descriptor_pool.Default().Add(file)
from atelier.client import AsyncClient, Client
assert protos.MINE and serving.MINE
Client("localhost:1").close()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_client_imports_nothing_of_the_other_wings_and_no_framework() -> None:
    code = "import sys, atelier.client, atelier.classify; print(*{name.partition('.')[0] for name in sys.modules})"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert not set(printed.split()) & {"serving", "training", "export", "loadtest", "torch", "onnxruntime", "PIL"}


def test_atelier_names_its_programs_and_runs_them(tmp_path: Path) -> None:
    def atelier(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "atelier", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)

    listed = atelier("--help").stdout
    assert {"train", "export", "serve", "classify", "loadtest"} == PROGRAMS.keys()
    for program, (module, _) in PROGRAMS.items():
        assert f"atelier {program} " in listed
        assert find_spec(module) is not None
    for program in ("serve", "classify"):
        explained = atelier(program, "--help")
        assert explained.returncode == 0, explained.stderr
        assert "usage:" in explained.stdout
    assert "NO_PICTURE" in (done := atelier("classify", "missing.png")).stderr
    assert done.returncode == 66
    assert atelier("paint").returncode == 2
    assert atelier("--version").stdout.startswith("atelier ")
