"""Writes bills of materials in CycloneDX: `make sbom`, or `python -m export.sbom`.

`python.cdx.json` has the packages of a Python environment, with licences and what needs what; `native.cdx.json` the
crates of the front end in Rust with their checksums; `model.cdx.json` the newest version of the model with the SHA-256
of each file, from its manifest. Each is held to CycloneDX's schema before it is written.
"""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from atelier.errors import BadDataError, MissingInputError
from atelier.files import write_atomically
from atelier.program import run_program, say
from serving.manifest import Manifest, find_version

ROOT = Path(__file__).parents[1]
NATIVE_PINS = ROOT / "native" / "pins.lock"
LICENCE = "Apache-2.0"


def main(arguments: list[str]) -> int:
    """Writes the bills and says where; returns 0. Raises ProgramError BAD_BILL for one that the schema refuses."""
    options = _parser().parse_args(arguments)
    bills = {"python": _python_bill(options.python), "native": _native_bill(NATIVE_PINS)}
    try:
        bills["model"] = _model_bill(find_version(options.repository)[1])
    except MissingInputError as error:
        say(f"without the model's bill: {error}")
    for name, text in bills.items():
        _check(name, text)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{name}.cdx.json"
        write_atomically(path, text.encode())
        say(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.sbom", description=(__doc__ or "").split("\n", 1)[0])
    default = "(default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("artifacts/sbom"), help=f"where to write {default}")
    where = f"the model repository {default}"
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"), help=where)
    whose = "the Python whose packages are listed, such as an image's /opt/venv/bin/python (default: this one)"
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help=whose)
    return parser


def _python_bill(python: Path) -> str:
    """Has cyclonedx-py list what is installed for a Python. Raises BadDataError BAD_BILL with its last line."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate"]
    command += ["--pyproject", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, str(python)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BadDataError("BAD_BILL", f"cyclonedx-py cannot list the packages of {python}", why=why)
    return done.stdout


def _native_bill(pins: Path) -> str:
    """Lists the crates of a lock file, each with its checksum and what it depends on."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

    packages = tomllib.loads(pins.read_text())["package"]
    components: dict[str, Any] = {}  # by name, and by name and version: dependencies are written either way
    for package in packages:
        name, version, checksum = package["name"], package["version"], package.get("checksum")
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=checksum)] if checksum else []
        purl = PackageURL("cargo", name=name, version=version)
        component = Component(name=name, version=version, purl=purl, bom_ref=f"{name}@{version}", hashes=hashes)
        components[name] = components[f"{name} {version}"] = component
    needs = {
        f"{package['name']} {package['version']}": [components[each] for each in package.get("dependencies", [])]
        for package in packages
    }
    root = components.pop("atelier-native")
    return _bill(root, {component: needs[f"{component.name} {component.version}"] for component in components.values()})


def _model_bill(manifest: Manifest) -> str:
    """Lists the files of a version with their digests, and what they were made with."""
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense

    facts = {"architecture": manifest.architecture, "precision": manifest.precision, "created": manifest.created}
    facts["checkpoint_sha256"] = manifest.checkpoint_sha256
    facts |= {f"made with {name}": version for name, version in manifest.versions.items()}
    root = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.model_name,
        version=str(manifest.version),
        bom_ref=f"{manifest.model_name}@{manifest.version}",
        licenses=[DisjunctiveLicense(id=LICENCE)],
        properties=[Property(name=f"atelier:{name}", value=value) for name, value in facts.items()],
    )
    files: dict[Component, list[Component]] = {
        Component(
            type=ComponentType.FILE,
            name=name,
            bom_ref=name,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        ): []
        for name, digest in manifest.files.items()
    }
    return _bill(root, {root: list(files), **files})


def _bill(root: Any, needs: dict[Any, list[Any]]) -> str:
    """Writes a bill about `root`: its components, and for each what it needs."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom()
    bom.metadata.component = root
    for component, needed in needs.items():
        if component is not root:
            bom.components.add(component)
        bom.register_dependency(component, needed)
    text: str = JsonV1Dot6(bom).output_as_string(indent=1)
    return text


def _check(name: str, text: str) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if error is not None:
        raise BadDataError("BAD_BILL", f"CycloneDX's schema refuses the bill of {name}", why=str(error))


if __name__ == "__main__":
    sys.exit(run_program(main, extras="audit"))
