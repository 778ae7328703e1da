"""`python -m loadtest`: see run.py."""

import sys

from atelier.errors import ResourceUnavailableError
from atelier.program import run_program


def main(arguments: list[str]) -> int:
    """Raises ResourceUnavailableError where the packages of the extras `load` are missing."""
    try:
        from loadtest.run import main as run
    except ModuleNotFoundError as error:
        cure = "install the extras `load`: pip install '.[load]', or make setup"
        raise ResourceUnavailableError("NO_LOADGEN", f"the load test needs {error.name}", cure) from None
    return run(arguments)


if __name__ == "__main__":  # the generator's processes import this module too
    sys.exit(run_program(main))
