"""What README and docs/ say can be done, can be done."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {
    "data": "training.dataset",
    "train": "training",
    "export": "export",
    "serve": "serving",
    "loadtest": "loadtest",
    "attack": "loadtest.attack",
    "restarts": "loadtest.restarts",
    "soak": "loadtest.soak",
    "bench": "loadtest.bench",
    "ladder": "export.ladder",
    "runtimes": "export.runtimes",
    "look": "export.look",
    "sbom": "export.sbom",
    "gpu-report": "loadtest.gpu_report",
    "classify": "loadtest.samples",
    "classify FILES": "atelier.classify",
}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def make_commands() -> list[list[str]]:
    """The words of every `make ...` line of every shell block."""
    lines = "\n".join(block for document in DOCUMENTS for block in blocks(document, "sh")).splitlines()
    return [shlex.split(line) for line in lines if line.startswith("make ")]


# As `python -m <module> --help` each, but the libraries that take seconds are imported once.
HELPS = """
import os, runpy, sys
import matplotlib.figure, onnxruntime, torch
directory, *modules = sys.argv[1:]
for module in modules:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{directory}/{module}", os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = [module, "--help"]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)
    assert os.waitpid(child, 0)[1] == 0, module
"""


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each program says of itself, in a file of its name."""
    directory = tmp_path_factory.mktemp("helps")
    subprocess.run([sys.executable, "-c", HELPS, str(directory), *sorted(set(MODULES.values()))], cwd=ROOT, check=True)
    return directory


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for command in make_commands() for word in command[1:] if "=" not in word}
    named |= {word for document in DOCUMENTS for word in re.findall(r"`make ([a-z-]+)", document.read_text())}
    assert named >= {"train", "export", "serve", "classify", "test", "check"}
    assert named <= targets


def test_make_alone_prints_the_targets() -> None:
    printed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "data", "train", "export", "serve", "classify", "test", "test-all", "check", "loadtest"):
        assert f"make {target} " in printed


def given(target: str, *variables: str) -> list[str]:
    """What `make <target>` gives its program."""
    command = ["make", "--dry-run", "--always-make", target, *variables]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [*_, last] = [line for line in printed.splitlines() if f" -m {MODULES[target]} " in f"{line} "]
    return shlex.split(last.partition(f" -m {MODULES[target]}")[2])


def test_programs_are_given_what_was_chosen_and_nothing_else() -> None:
    for target in MODULES.keys() - {"classify FILES"}:
        assert given(target) == [], target
        assert given(target, "ARGS=--debug") == ["--debug"], target
    assert given("bench", "PEERS=1") == ["--measure", "peers,overload,training"]


@pytest.mark.parametrize("module", sorted(set(MODULES.values())))
def test_program_explains_itself_and_knows_every_option_that_the_documents_give_it(helps: Path, module: str) -> None:
    options = (helps / module).read_text()
    assert "usage:" in options
    for _, *words in make_commands():
        files = " FILES" if any(word.startswith("FILES=") for word in words) else ""
        target = words[0] + files
        arguments = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
        if MODULES.get(target) == module:
            for option in re.findall(r"--[a-z0-9-]+", " ".join(arguments)):
                assert option in options, f"{target}: {option}"


def test_every_link_to_a_file_leads_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^):]+)\)", document.read_text()):
            path, _, heading = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), f"{document.name} links to {link}"
            if heading:
                assert heading in headings_of(target), f"{document.name} links to {link}"


def headings_of(document: Path) -> set[str]:
    """The anchors that hosts of Markdown make of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_of_the_docs_is_reached_from_the_readme() -> None:
    reached, new = set(), {README}
    while new:
        reached |= new
        links = {
            (document.parent / link.partition("#")[0]).resolve()
            for document in new
            for link in re.findall(r"\]\(([^):]+\.md[^):]*)\)", document.read_text())
        }
        new = links - reached
    assert set(DOCUMENTS) <= reached


def test_readme_in_chinese_has_the_same_commands_code_and_figures() -> None:
    chinese = ROOT / "README.zh.md"
    for language in ("sh", "python"):
        assert blocks(chinese, language) == blocks(README, language)
    figures = r"\d[\d,.e-]*\d"
    tables = ["\n".join(re.findall(r"^\|.*", path.read_text(), re.MULTILINE)) for path in (README, chinese)]
    assert re.findall(figures, tables[0]) == re.findall(figures, tables[1])


def test_ci_runs_what_the_readme_tells() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for block in blocks(README, "sh") for line in block.splitlines() if line.startswith("make ")]
    for command in ("make train export", "make test-all", "make check"):
        assert command in commands
        assert command in script


def test_wire_contract_names_in_the_readme_are_the_real_ones() -> None:
    from atelier.wire import SERVICE

    assert f"{SERVICE}/Classify" in README.read_text()
    assert f"{SERVICE}/GetModel" in README.read_text()
