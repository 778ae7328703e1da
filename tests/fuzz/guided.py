"""Fuzzes what reads files and pictures, guided by coverage.

`python -m tests.fuzz.guided "picture,ONNX model" corpora -runs=1000` needs atheris, whose flags are libFuzzer's.
An input that raises what nothing of ours should raise is written to `crash-<digest>`;
`python -m tests.fuzz.guided "ONNX model" crash-<digest>` reads it again.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["atelier", "serving", "training"]):
    from tests.fuzz.files import KINDS


def main(arguments: list[str]) -> int:
    """Fuzzes each kind in a process of its own. Returns 1 if one of them ended with a fault."""
    names, path, *flags = arguments
    failed = []
    for name in names.split(","):
        child = os.fork()
        if child == 0:
            _fuzz(name, Path(path), flags)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            failed.append(name)
    print(f"faults in: {', '.join(failed) or 'none'}", flush=True)
    return int(bool(failed))


def _fuzz(name: str, path: Path, flags: list[str]) -> None:
    """Goes on until there is a fault, or as long as the flags say, and ends the process."""
    with tempfile.TemporaryDirectory() as directory:
        kind = KINDS[name](Path(directory))
        if not path.is_file():
            path = path / name.replace(" ", "-")
            path.mkdir(parents=True, exist_ok=True)
            for index, seed in enumerate(kind.seeds):
                (path / f"seed-{index}").write_bytes(seed)

        def read(data: bytes) -> None:
            kind.is_read(data)

        atheris.Setup([sys.argv[0], str(path), *flags], read)
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
