"""The bills of materials are CycloneDX's, and say what the pins and the manifest say."""

import json
import sysconfig
import tomllib
import venv
from importlib.metadata import distribution, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import BadDataError
from export.sbom import NATIVE_PINS, _check, main
from serving.manifest import find_version

pytestmark = pytest.mark.skipif(find_spec("cyclonedx") is None, reason="cyclonedx-bom is not installed (.[audit])")


@pytest.fixture(scope="module")
def bills(small_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sbom") / "bills"
    python = python_with_two_packages(tmp_path_factory.mktemp("environment"))
    assert main(["--out", str(out), "--repository", str(small_repository), "--python", str(python)]) == 0
    return {path.name.partition(".")[0]: json.loads(path.read_bytes()) for path in out.glob("*.cdx.json")}


def python_with_two_packages(environment: Path) -> Path:
    """As far as their metadata say: to list all two hundred of this one takes a quarter of a minute."""
    venv.create(environment)
    python = environment / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    for name in ("grpcio", "pillow"):
        [metadata] = {file.parent for file in files(name) or () if file.name == "METADATA"}
        path = Path(str(distribution(name).locate_file(metadata)))
        (packages / path.name).symlink_to(path)
    return python


def hashes_of(bill: dict[str, Any]) -> dict[str, str]:
    return {
        f"{each['name']} {each.get('version', '')}".strip(): each["hashes"][0]["content"]
        for each in bill["components"]
        if each.get("hashes")
    }


@pytest.mark.slow
def test_bills_are_what_the_pins_and_the_manifest_say(bills: dict[str, Any], small_repository: Path) -> None:
    assert {(bill["bomFormat"], bill["specVersion"]) for bill in bills.values()} == {("CycloneDX", "1.6")}
    assert bills.keys() == {"python", "native", "model"}

    crates = tomllib.loads(NATIVE_PINS.read_text())["package"]
    pinned = {f"{crate['name']} {crate['version']}": crate["checksum"] for crate in crates if "checksum" in crate}
    assert hashes_of(bills["native"]) == pinned
    needs = {each["ref"]: each.get("dependsOn", []) for each in bills["native"]["dependencies"]}
    assert any(ref.startswith("rustls@") for ref in needs["atelier-native@0.1.0"])
    assert set().union(*needs.values()) <= needs.keys()

    _, manifest = find_version(small_repository)
    assert hashes_of(bills["model"]) == dict(manifest.files)
    model = bills["model"]["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "lenet5")

    assert bills["python"]["metadata"]["component"]["name"] == "atelier"
    installed = {each["name"].lower(): each for each in bills["python"]["components"]}
    assert installed["grpcio"]["purl"].startswith("pkg:pypi/grpcio@") and "licenses" in installed["pillow"]


def test_bill_that_the_schema_refuses_is_not_written() -> None:
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": [{"type": "libary", "name": "numpy"}]}
    with pytest.raises(BadDataError, match=r"BAD_BILL: CycloneDX's schema refuses the bill of python: .*libary"):
        _check("python", json.dumps(bill))


def test_without_a_version_the_models_bill_is_left_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.sbom import _native_bill

    _check("native", _native_bill(NATIVE_PINS))
    with pytest.raises(BadDataError, match="BAD_BILL: cyclonedx-py cannot list the packages of"):
        main(["--out", str(tmp_path / "bills"), "--python", str(tmp_path / "python")])
    assert not (tmp_path / "bills").exists()
