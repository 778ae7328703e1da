"""Asks an advisory database about every version in constraints.txt: `make audit`.

pip-audit says "no known vulnerabilities" of packages that the database does not know, and of all of them where it is
not reached: here that is an error. Other options are pip-audit's: `make audit ARGS="--vulnerability-service osv"`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from atelier.errors import BadDataError, ResourceUnavailableError
from atelier.program import run_program, say

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
AUDIT = ["-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]


def main(arguments: list[str]) -> int:
    """Says what was looked at; returns 0. Raises ProgramError NO_DATABASE, or VULNERABLE if an advisory fits."""
    parser = argparse.ArgumentParser(prog="make audit", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requirement", type=Path, default=CONSTRAINTS, help="the versions (default: constraints.txt)")
    options, others = parser.parse_known_args(arguments)
    asked = _asked(options.requirement, others)
    unknown = [each["name"] for each in asked if "skip_reason" in each]
    if len(unknown) == len(asked):
        raise _no_database(f"it knows none of {len(asked)} packages")
    if unknown:
        say(f"warning: the database does not know {', '.join(unknown)}")
    found = [f"{each['name']} {each['version']}: {_advisory(one)}" for each in asked for one in each.get("vulns", [])]
    if found:
        raise BadDataError("VULNERABLE", "; ".join(found), "make pins ARGS=--upgrade")
    say(f"no advisory fits the pinned versions of {len(asked) - len(unknown)} packages")
    return 0


def _asked(requirements: Path, options: list[str]) -> list[dict[str, Any]]:
    """Has pip-audit ask; returns what it says of each package. Raises ResourceUnavailableError NO_DATABASE."""
    command = [sys.executable, *AUDIT, "--requirement", str(requirements), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        raise _no_database((done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]) from None
    return packages


def _advisory(one: dict[str, Any]) -> str:
    names = "/".join([one["id"], *one.get("aliases", [])])
    return f"{names}, fixed in {' or '.join(one['fix_versions']) or 'no version yet'}"


def _no_database(why: str) -> ResourceUnavailableError:
    cure = "run it where the network allows it; --vulnerability-service osv or pypi"
    return ResourceUnavailableError("NO_DATABASE", "the database of advisories cannot be asked", cure, why=why)


if __name__ == "__main__":
    sys.exit(run_program(main, extras="audit"))
