"""Imports flow one way, as the architecture says; held on the syntax trees, so that no import is missed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.plugin import Figure

ROOT = Path(__file__).parent.parent
PACKAGES = ("atelier", "training", "export", "serving", "loadtest", "examples", "deploy")

# Who may import what of the other packages. A module stands for all below it.
ALLOWED: dict[str, tuple[str, ...]] = {
    # The ground floor: with the standard library and what a client needs.
    "atelier": (),
    "training": ("atelier",),
    # The parity gate runs the very backends that will serve.
    "export": ("atelier", "training", "serving.manifest", "serving.backends"),
    # With the ground floor a closed set: an image that serves holds nothing else.
    "serving": ("atelier",),
    "loadtest": ("atelier", "serving", "training.dataset", "export.rtx_engine", "export.engine_options"),
    "examples": ("atelier", "loadtest", "training.dataset"),
    "deploy": ("atelier", "serving", "loadtest"),
}

# Modules of serving that export may import must not bring the server along.
LEAVES = ("manifest.py", "backends")


def sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.endswith("_pb2.py")]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a module lives"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_allowed(module: str, package: str) -> bool:
    return any(f"{module}.".startswith(f"{prefix}.") for prefix in (package, *ALLOWED[package]))


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_lies_upstream(package: str) -> None:
    ours = {
        (str(path.relative_to(ROOT)), module)
        for path in sources(package)
        for module in imports_of(path)
        if module.partition(".")[0] in (*PACKAGES, "tests")
    }
    assert ours, "nothing was looked at"
    assert [(path, module) for path, module in sorted(ours) if not is_allowed(module, package)] == []


def test_leaf_modules_of_serving_import_only_one_another() -> None:
    leaves = [path for path in sources("serving") if path.relative_to(ROOT / "serving").parts[0] in LEAVES]
    prefixes = ("serving.manifest", "serving.backends")
    strays = [
        (path.name, module)
        for path in leaves
        for module in imports_of(path)
        if module.startswith("serving") and not module.startswith(prefixes)
    ]
    assert leaves
    assert strays == []


def test_torch_is_imported_by_one_module_of_serving() -> None:
    importers = [path.name for path in sources("serving") if any(m.split(".")[0] == "torch" for m in imports_of(path))]
    assert set(importers) <= {"torch_backend.py", "select.py"}


def test_rust_takes_one_line_on_trust() -> None:
    sources = [path for folder in ("src", "tests") for path in (ROOT / "native" / folder).rglob("*.rs")]
    found = [(path.name, line) for path in sources for line in lines_with_unsafe(path)]
    assert found == [("python.rs", "unsafe { OwnedFd::from_raw_fd(number) }")]
    assert "#![deny(unsafe_code)]" in (ROOT / "native/src/lib.rs").read_text()


def lines_with_unsafe(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if re.search(r"\bunsafe\b", line)]


def test_every_module_has_a_docstring() -> None:
    for package in PACKAGES:
        for path in sources(package):
            assert ast.get_docstring(ast.parse(path.read_text())), path


@pytest.mark.slow
@pytest.mark.goal("G22", of="calls in all sources", ci=0, release=0)
def test_no_source_executes_what_it_loads(figure: Figure) -> None:
    """Pickle and its kind run code from a file; nothing that is loaded here may."""
    num_calls = 0
    for package in PACKAGES:
        for path in sources(package):
            modules = {module.partition(".")[0] for module in imports_of(path)}
            assert not modules & {"pickle", "shelve", "marshal", "dill", "joblib"}, path
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    assert not executes(node), f"{path}:{node.lineno}"
                    num_calls += 1
    figure(f"0 of {num_calls:,} execute what they are given; no pickle is imported")


def executes(call: ast.Call) -> bool:
    """Whether a call may run what it is given: `eval`, a shell, or a reader that takes pickles or Python's objects."""
    settings = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
    if settings.get("shell") or settings.get("allow_pickle"):
        return True
    called = ast.unparse(call.func)
    return called in ("eval", "exec", "os.system", "yaml.load") or (
        called == "torch.load" and settings.get("weights_only") is not True
    )


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("eval(text)", True),
        ("run(command, shell=True)", True),
        ("np.load(file, allow_pickle=True)", True),
        ("np.load(file, allow_pickle=False)", False),
        ("torch.load(file)", True),
        ("torch.load(file, weights_only=False)", True),
        ("torch.load(file, weights_only=True)", False),
        ("yaml.load(text, Loader=Loader)", True),
        ("json.load(file)", False),
    ],
)
def test_calls_that_execute_are_recognised(source: str, wanted: bool) -> None:
    call = ast.parse(source, mode="eval").body
    assert isinstance(call, ast.Call)
    assert executes(call) == wanted
