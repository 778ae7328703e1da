"""The command `atelier`: the programs of the house under one name."""

import runpy
import sys

from atelier import __version__

PROGRAMS = {
    "train": ("training", "train LeNet-5 on Fashion-MNIST"),
    "export": ("export", "turn the checkpoint into a model version that gives the same answers on every runtime"),
    "serve": ("serving", "answer Classify over gRPC"),
    "classify": ("atelier.classify", "ask a server about pictures"),
    "loadtest": ("loadtest", "hold the served model against the PyTorch reference under load"),
}


def main() -> int:
    """Runs the program that the first argument names, as `python -m` would, with the other arguments."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        print(f"atelier {__version__}")
        return 0
    if name not in PROGRAMS:
        is_help = name in ("-h", "--help")
        print(_usage(), file=sys.stdout if is_help else sys.stderr)
        if not is_help:
            print(f"error: NO_PROGRAM: there is no {name!r} (one of {', '.join(PROGRAMS)})", file=sys.stderr)
        return 0 if is_help else 2
    module, _ = PROGRAMS[name]
    sys.argv = [f"atelier {name}", *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)  # which ends in sys.exit
    return 0


def _usage() -> str:
    lines = [f"  atelier {name:<9} {meaning}" for name, (_, meaning) in PROGRAMS.items()]
    return "\n".join(["usage: atelier PROGRAM [OPTIONS]", "", *lines, "", "atelier PROGRAM --help explains each."])
