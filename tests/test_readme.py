"""What the README says can be done, can be done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
README = DOCUMENTS[0].read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        word
        for line in "\n".join(blocks("sh")).splitlines()
        if line.startswith("make ")
        for word in shlex.split(line)[1:]
        if "=" not in word
    }
    named |= {word for document in DOCUMENTS for word in re.findall(r"`make ([a-z-]+)", document.read_text())}
    assert named >= {"train", "export", "serve", "classify", "test", "check"}
    assert named <= targets


def test_make_alone_prints_the_targets() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "data", "train", "export", "serve", "classify", "test", "check", "loadtest", "clean"):
        assert f"make {target} " in printed


@pytest.mark.parametrize(
    "module",
    [
        "training",
        "export",
        "serving",
        "atelier.classify",
        "loadtest",
        "loadtest.attack",
        "loadtest.bench",
        "loadtest.restarts",
        "export.runtimes",
        "export.look",
        "training.dataset",
    ],
)
def test_every_program_explains_itself(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document in DOCUMENTS:
        links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
        assert links or document.name == "CONTRIBUTING.md"
        for link in links:
            assert (ROOT / link).exists(), f"{document.name} links to {link}"


def test_ci_runs_what_the_readme_tells() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")]
    for command in ("make train export", "make test", "make check"):
        assert command in commands
        assert command in script


def test_wire_contract_names_in_the_readme_are_the_real_ones() -> None:
    from atelier.wire import SERVICE

    assert f"{SERVICE}/Classify" in README
    assert f"{SERVICE}/GetModel" in README
