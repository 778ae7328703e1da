"""`make audit` believes no silence, and the crates' licences are those of native/deny.toml."""

import http.server
import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
needs_audit = pytest.mark.skipif(find_spec("pip_audit") is None, reason="pip-audit is not installed (.[audit])")
ADVISORY = {
    "id": "GHSA-8g5g-8vmr-9782",
    "aliases": ["CVE-2026-112403"],
    "summary": "Heap buffer overflow in ImagingJpegDecode",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "pillow"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "13.0.0"}]}],
        }
    ],
}


class Osv(http.server.BaseHTTPRequestHandler):
    """Answers as the database of OSV does; it knows one advisory."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fits = query["package"]["name"] == "pillow" and query["version"] < "13"
        body = json.dumps({"vulns": [ADVISORY]} if fits else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


def audit(versions: str, url: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "versions.txt").write_text(versions)
    source = ["--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "requirements/audit.py", "--requirement", str(tmp_path / "versions.txt"), *source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@needs_audit
def test_version_that_an_advisory_fits_is_named_with_the_one_that_mends_it(database: str, tmp_path: Path) -> None:
    done = audit("pillow==12.3.0\nnumpy==2.4.6\n", database, tmp_path)
    assert done.returncode == 65, done.stderr
    assert "VULNERABLE: pillow 12.3.0: CVE-2026-112403/GHSA-8g5g-8vmr-9782, fixed in 13.0.0" in done.stderr
    done = audit("pillow==13.0.0\nnumpy==2.4.6\n", database, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no advisory fits the pinned versions of 2 packages" in done.stdout


@needs_audit
def test_database_that_is_not_reached_is_an_error_and_no_good_news(tmp_path: Path) -> None:
    done = audit("pillow==12.3.0\n", "http://127.0.0.1:1/v1/query", tmp_path)
    assert done.returncode == 69
    assert done.stderr.startswith("error: NO_DATABASE: the database of advisories cannot be asked: ")
    assert done.stderr.count("\n") == 1


def is_allowed(licence: Any, allowed: set[str]) -> bool:
    if licence.isliteral:
        return str(licence) in allowed
    allowances = [is_allowed(each, allowed) for each in licence.args]
    return any(allowances) if licence.operator.strip() == "OR" else all(allowances)


@needs_audit
@pytest.mark.skipif(find_spec("atelier_native") is None, reason="the native front end is not built")
def test_licence_of_every_crate_is_allowed() -> None:
    """Reads the bill of materials that maturin puts into the wheel."""
    from license_expression import get_spdx_licensing

    (bill,) = [each for each in files("atelier_native") or () if each.name.endswith(".cyclonedx.json")]
    crates = json.loads(bill.read_text())["components"]
    licences = {(each["name"], each["version"]): [one["expression"] for one in each["licenses"]] for each in crates}
    packages = tomllib.loads((ROOT / "native" / "pins.lock").read_text())["package"]
    pinned = {(each["name"], each["version"]) for each in packages if "checksum" in each}  # ours has none
    assert licences.keys() == pinned, "make setup"
    allowed = set(tomllib.loads((ROOT / "native" / "deny.toml").read_text())["licenses"]["allow"])
    parse = get_spdx_licensing().parse
    refused = {crate for crate, each in licences.items() if not all(is_allowed(parse(one), allowed) for one in each)}
    assert refused == set() and all(licences.values())
    assert not is_allowed(parse("MIT AND GPL-3.0-only"), allowed)
