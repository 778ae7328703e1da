"""What is installed is pinned by hashes: requirements/, the lock file of the crates, the base images."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from atelier import installing

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NATIVE = tomllib.loads((ROOT / "native" / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PINNED = sorted((ROOT / "requirements").glob("*.txt"))
PINNED_IMAGE = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins_of(path: Path) -> dict[str, tuple[str, int]]:
    """For each package of a file, its version and how many hashes it has."""
    text = path.read_text().replace("\\\n", " ")
    pins: dict[str, tuple[str, int]] = {}
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        requirement = Requirement(HASH.sub("", line).strip())
        [version] = requirement.specifier
        assert version.operator == "==" and requirement.url is None, line
        pins[canonicalize_name(requirement.name)] = (version.version, len(HASH.findall(line)))
    return pins


CONSTRAINTS = pins_of(ROOT / "constraints.txt")


def needed_by(name: str) -> list[str]:
    """What the file of an extra is made for."""
    if name == "build":
        return [*PROJECT["build-system"]["requires"], *NATIVE["build-system"]["requires"]]
    if name == "uv":
        return ["uv"]
    needed: list[str] = PROJECT["project"]["dependencies"] + EXTRAS[name]
    return needed


def test_every_extra_has_a_file_with_hashes_but_the_one_that_nvidia_alone_has() -> None:
    assert {path.stem for path in PINNED} == EXTRAS.keys() - {"tensorrt"} | {"build", "uv"}


@pytest.mark.parametrize("path", PINNED, ids=lambda path: path.stem)
def test_file_pins_what_its_extra_needs_by_hash_and_to_the_versions_of_all_others(path: Path) -> None:
    pins = pins_of(path)
    for name, (version, num_hashes) in pins.items():
        assert num_hashes >= 1, name
        assert version == CONSTRAINTS[name][0], name
    for each in map(Requirement, needed_by(path.stem)):
        assert each.specifier.contains(pins[canonicalize_name(each.name)][0]), f"{each}: make pins"


def test_images_that_compose_starts_beside_ours_are_named_by_digest() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert images.pop("server") == "atelier"
    assert len(images) == 2 and all(PINNED_IMAGE.fullmatch(each) for each in images.values())


def test_no_file_says_where_packages_come_from() -> None:
    files = [*PINNED, ROOT / "constraints.txt", ROOT / "native" / "pins.lock"]
    assert not [path.name for path in files if re.search(r"://|^-|^\s*source", path.read_text(), re.MULTILINE)]


def test_every_crate_has_a_checksum() -> None:
    packages = tomllib.loads((ROOT / "native" / "pins.lock").read_text())["package"]
    without = [each["name"] for each in packages if not re.fullmatch("[0-9a-f]{64}", each.get("checksum", ""))]
    assert without == ["atelier-native"] and len(packages) > 100


def installs_in(text: str) -> list[str]:
    """The commands that install or build."""
    lines = re.split(r"\n|&&|\|\|", text.replace("\\\n", " "))
    return [line for line in lines if re.search(r"\bpip (--python \S+ )?(install|wheel) |-m atelier.installing ", line)]


def is_pinned(command: str) -> bool:
    from_hashes = "--require-hashes" in command and "--only-binary :all:" in command and " requirements/" in command
    ours = "--no-deps --no-build-isolation" in command
    return from_hashes or ours or "--constraint constraints.txt tensorrt" in command


@pytest.mark.parametrize("runtime", ["serve", "gpu"])
def test_setup_installs_nothing_without_a_hash_but_ours_and_tensorrt(runtime: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup", f"RUNTIME={runtime}"], cwd=ROOT, capture_output=True, text=True
    )
    commands = installs_in(done.stdout)
    assert len(commands) >= 4 and all(map(is_pinned, commands)), commands
    assert any(f"requirements/{runtime}.txt" in command for command in commands)
    assert any(command.endswith("tensorrt") for command in commands) == (runtime == "gpu")


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A package in a folder, a file that pins it, and an environment to install it into."""

    root: Path
    python: Path

    def install(self, name: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.root / "wheels")}
        environment = {**os.environ, **settings, **variables}
        command = [sys.executable, "-m", "atelier.installing"]
        files = [str(self.python), "--require-hashes", "--requirement", str(self.root / f"{name}.txt")]
        return subprocess.run([*command, *files], env=environment, capture_output=True, text=True)

    def is_installed(self) -> bool:
        return subprocess.run([self.python, "-c", "import tiny"], capture_output=True).returncode == 0


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    pytest.importorskip("uv", reason="make setup installs it")
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("tiny.py", "")
        files.writestr("tiny-1.0.dist-info/METADATA", about)
        files.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        files.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    for name, digest in (("tiny", hashlib.sha256(wheel.read_bytes()).hexdigest()), ("forged", "0" * 64)):
        (tmp_path / f"{name}.txt").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    return Tiny(root=tmp_path, python=tmp_path / "env" / "bin" / "python")


def test_setup_installs_by_uv_from_where_pips_settings_say(tiny: Tiny) -> None:
    done = tiny.install("tiny")
    assert done.returncode == 0 and "note: uv" not in done.stdout, done.stderr
    assert tiny.is_installed()


def test_where_uv_cannot_pip_installs(tiny: Tiny) -> None:
    done = tiny.install("tiny", UV_CACHE_DIR=os.devnull)
    assert done.returncode == 0 and "note: uv could not, for the reason above: pip tries" in done.stdout, done.stderr
    assert tiny.is_installed()


@pytest.mark.parametrize(
    ("variables", "files", "expected"),
    [
        ({}, "", {}),
        ({"PIP_INDEX_URL": "https://a", "PIP_QUIET": "1"}, "", {"index-url": "https://a"}),
        ({"PIP_INDEX_URL": ""}, "[global]\nindex-url = https://b", {"index-url": "https://b"}),
        ({"PIP_INDEX_URL": "https://a"}, "[global]\nindex-url = https://b", {"index-url": "https://a"}),
        ({}, "[global]\nindex-url = https://b\n[install]\nindex-url = https://c", {"index-url": "https://c"}),
        ({}, "[wheel]\nindex-url = https://b\n[global]\ntimeout = 9", {}),
        ({"PIP_KEYRING_PROVIDER": "subprocess"}, "", None),  # uv has no word for it here
        ({}, "[global", None),
    ],
)
def test_pips_settings_are_read_as_pip_reads_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    files: str,
    expected: dict[str, str] | None,
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(files)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = installing.pip_settings()
    assert found == expected or (found and expected is not None and found.items() >= expected.items())


def test_passwords_of_indexes_and_uvs_own_settings_stay_out_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_INDEX_URL", "https://elsewhere")
    environment = installing.environment_for_uv({"index-url": "https://user:secret@here", "no-index": "1"})
    assert environment["UV_DEFAULT_INDEX"] == "https://user:secret@here"
    assert "UV_INDEX_URL" not in environment


def test_package_of_another_hash_is_installed_by_neither(tiny: Tiny) -> None:
    done = tiny.install("forged")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not tiny.is_installed()


def test_images_install_nothing_without_a_hash_but_ours_and_tensorrt_on_bases_of_known_digest() -> None:
    text = "\n".join(line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    commands = installs_in(text)
    assert len(commands) == 7 and all(map(is_pinned, commands)), commands
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE)
    assert len(images) == 2 and all(PINNED_IMAGE.fullmatch(image) for image in images)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert bases - stages == {"${PYTHON_IMAGE}", "${RUST_IMAGE}", "front-end-${FRONT_END}"}


def test_build_takes_the_crates_of_the_lock_file_or_fails() -> None:
    assert NATIVE["tool"]["maturin"]["locked"] is True
