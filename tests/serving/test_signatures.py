"""Only what was signed by a known key is served, at a start and at a swap."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from atelier.client import Client
from atelier.errors import BadDataError, ConfigurationError, PermissionRefusedError, ResourceUnavailableError
from export.export import main as export
from export.repository import publish, signer_from
from loadtest.restarts.shelf import Shelf
from loadtest.server_process import server_process
from serving.config import ServerConfig
from serving.manifest import MANIFEST_NAME, ONNX_NAME, SIGNATURE_NAME
from serving.models import read_version
from serving.playground.versions import Versions
from tests.export.small_model import version_for_servers
from tests.sealed_files import edit_sealed
from tests.serving.running import wait_for

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_keys(directory: Path, name: str, algorithm: str = "ed25519") -> tuple[Path, Path]:
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    openssl("genpkey", "-algorithm", algorithm, "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    directory = tmp_path_factory.mktemp("keys")
    return {name: make_keys(directory, name) for name in ("ours", "theirs")}


Keys = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def signed_repository(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("signed") / "models"
    publish(repository / "lenet5", *version_for_servers(), signer_from(keys["ours"][0]))
    return repository


@pytest.fixture
def repository(signed_repository: Path, tmp_path: Path) -> Path:
    """Version 1 is signed by us."""
    return shutil.copytree(signed_repository, tmp_path / "models")


def read(repository: Path, *public_keys: Path) -> None:
    key_file = repository.parent / "public"
    key_file.write_bytes(b"".join(path.read_bytes() for path in public_keys))
    key_file_or_none = key_file if public_keys else None
    read_version(ServerConfig(repository=repository, backend="onnxruntime", require_signature=key_file_or_none))


def test_signed_version_is_read_with_its_key_with_several_and_without(repository: Path, keys: Keys) -> None:
    read(repository)
    read(repository, keys["ours"][1])
    read(repository, keys["theirs"][1], keys["ours"][1])


def flip_the_signature(version_dir: Path) -> None:
    path = version_dir / SIGNATURE_NAME
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def change_the_manifest(version_dir: Path) -> None:
    edit_sealed(version_dir / MANIFEST_NAME, lambda document: document.update(created="2027-01-01T00:00:00+00:00"))


def change_file_and_manifest(version_dir: Path) -> None:
    (version_dir / ONNX_NAME).write_bytes(b"another model")
    edit_sealed(version_dir / MANIFEST_NAME, lambda document: document["files"].update({ONNX_NAME: "0" * 64}))


def truncate_the_signature(version_dir: Path) -> None:
    (version_dir / SIGNATURE_NAME).write_bytes((version_dir / SIGNATURE_NAME).read_bytes()[:63])


def lose_the_signature(version_dir: Path) -> None:
    (version_dir / SIGNATURE_NAME).unlink()


@pytest.mark.fault("E5")
@pytest.mark.parametrize(
    "spoil",
    [
        flip_the_signature,
        change_the_manifest,
        change_file_and_manifest,
        truncate_the_signature,
        lose_the_signature,
    ],
)
def test_what_our_key_has_not_signed_is_refused(repository: Path, keys: Keys, spoil: Callable[[Path], None]) -> None:
    spoil(repository / "lenet5" / "1")
    with pytest.raises(BadDataError, match=r"BAD_SIGNATURE: .*--signing-key"):
        read(repository, keys["ours"][1])


def test_signature_of_another_key_or_of_another_version_is_refused(repository: Path, keys: Keys) -> None:
    with pytest.raises(BadDataError, match=r"BAD_SIGNATURE: .*by a key of"):
        read(repository, keys["theirs"][1])
    shutil.copytree(repository / "lenet5" / "1", repository / "lenet5" / "2")  # an old version as a new one
    with pytest.raises(BadDataError, match=r"BAD_MANIFEST: .*holds version 1 of lenet5"):
        read(repository, keys["ours"][1])


def test_signature_is_openssls_own_and_may_be_made_by_it(repository: Path, keys: Keys) -> None:
    private, public = keys["ours"]
    manifest, signature = repository / "lenet5" / "1" / MANIFEST_NAME, repository / "lenet5" / "1" / SIGNATURE_NAME
    verify = ("-verify", "-rawin", "-pubin", "-inkey", public, "-in", manifest, "-sigfile", signature)
    openssl("pkeyutl", *verify)
    made = signature.read_bytes()
    signature.unlink()
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", manifest, "-out", signature)
    assert signature.read_bytes() == made
    read(repository, public)


def test_page_neither_lists_nor_opens_what_is_not_signed(repository: Path, keys: Keys) -> None:
    config = ServerConfig(repository=repository, require_signature=keys["ours"][1])
    versions = Versions(config, [])
    assert [each["version"] for each in versions.listed()] == [1]
    lose_the_signature(repository / "lenet5" / "1")
    assert versions.listed() == []
    with pytest.raises(BadDataError, match="BAD_SIGNATURE"):
        versions.probe(1)


# --- Keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.fault("O8")
def test_private_key_that_others_may_read_is_refused(keys: Keys, tmp_path: Path) -> None:
    private = Path(shutil.copy(keys["ours"][0], tmp_path))
    for mode in (0o644, 0o640, 0o602):
        private.chmod(mode)
        with pytest.raises(PermissionRefusedError, match=rf"TOKEN_FILE_MODE: .* has mode {mode:04o}: .*chmod 600"):
            signer_from(private)
    private.chmod(0o400)
    assert len(signer_from(private)(b"manifest")) == 64


def test_what_is_no_private_key_is_refused(keys: Keys, tmp_path: Path) -> None:
    encrypted, rsa = tmp_path / "encrypted", make_keys(tmp_path, "rsa", "RSA")[0]
    openssl("pkey", "-in", keys["ours"][0], "-aes256", "-passout", "pass:secret", "-out", encrypted)
    public = Path(shutil.copy(keys["ours"][1], tmp_path))
    for path in (encrypted, rsa, public, tmp_path / "missing"):
        if path.exists():
            path.chmod(0o600)
        with pytest.raises(ConfigurationError, match=rf"BAD_KEY: {path}.*openssl genpkey -algorithm ed25519"):
            signer_from(path)
    with pytest.raises(ConfigurationError, match="BAD_KEY"):
        export(["--signing-key", str(public), "--checkpoint-dir", str(tmp_path)])  # before anything is done


def test_what_is_no_public_key_is_refused(repository: Path, keys: Keys, tmp_path: Path) -> None:
    rsa = make_keys(tmp_path, "rsa", "RSA")[1]
    for content in (
        rsa.read_bytes(),
        keys["ours"][1].read_bytes() + rsa.read_bytes(),
        b"",
        keys["ours"][0].read_bytes(),
    ):
        (tmp_path / "given").write_bytes(content)
        with pytest.raises(ConfigurationError, match="BAD_KEY"):
            read(repository, tmp_path / "given")
    with pytest.raises(ConfigurationError, match="BAD_KEY"):
        read_version(ServerConfig(repository=repository, require_signature=tmp_path / "missing"))
    public = Path(shutil.copy(keys["ours"][1], tmp_path))
    public.chmod(0o666)
    with pytest.raises(ConfigurationError, match=r"BAD_KEY: .* can be written by every user"):
        read_version(ServerConfig(repository=repository, require_signature=public))


def test_library_that_is_missing_is_named_with_its_extra(repository: Path, keys: Keys) -> None:
    with patch.dict(sys.modules, {"cryptography.hazmat.primitives.serialization": None}):
        for use in (lambda: signer_from(keys["ours"][0]), lambda: read(repository, keys["ours"][1])):
            with pytest.raises(ResourceUnavailableError, match=r"NO_LIBRARY: .*'\.\[signing\]'"):
                use()


# --- Servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault("E5")
def test_server_serves_and_swaps_in_only_what_is_signed(
    small_repository: Path, keys: Keys, front_end: str, tmp_path: Path
) -> None:
    private, public = keys["ours"]
    shelf, sign = Shelf(repository=tmp_path / "models", source=small_repository), signer_from(private)
    model_dir = shelf.repository / "lenet5"

    def put_signature(number: int) -> None:
        manifest = (model_dir / str(number) / MANIFEST_NAME).read_bytes()
        (model_dir / str(number) / SIGNATURE_NAME).write_bytes(sign(manifest))

    options = ["--repository", str(shelf.repository), "--port", "0", "--device", "cpu", "--front-end", front_end]
    options += ["--watch-repository", "0.1", "--require-signature", str(public)]
    shelf.publish(1)
    done = subprocess.run([sys.executable, "-m", "serving", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == os.EX_DATAERR
    assert done.stderr.startswith("error: BAD_SIGNATURE: ")
    put_signature(1)
    with server_process("serving", *options) as server, Client(server.target) as client:
        assert client.model().model_version == "1"
        shelf.publish(2)
        wait_for(lambda: "version 2 is refused: BAD_SIGNATURE: " in server.output)
        wait_for(lambda: server.metric("atelier_versions_refused_total", reason="BAD_SIGNATURE") == 1)
        assert client.model().model_version == "1"
        put_signature(2)
        wait_for(lambda: "serving lenet5 version 2;" in server.output)
        assert server.stop() == 0


# --- What lies in the repository ------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", [MANIFEST_NAME, ONNX_NAME, SIGNATURE_NAME])
def test_no_file_of_a_version_may_be_a_fifo_lead_elsewhere_or_be_written_by_all(
    repository: Path, keys: Keys, name: str
) -> None:
    path = repository / "lenet5" / "1" / name
    path.chmod(0o666)
    with pytest.raises(PermissionRefusedError, match=r"UNTRUSTED_FILE: .* can be written by every user"):
        read(repository, keys["ours"][1])
    kept = path.rename(repository.parent / name)
    kept.chmod(0o644)
    path.symlink_to(kept)
    with pytest.raises(PermissionRefusedError, match=r"UNTRUSTED_FILE: .* outside of"):
        read(repository, keys["ours"][1])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PermissionRefusedError, match=r"UNTRUSTED_FILE: .* is a FIFO"):
        read(repository, keys["ours"][1])
    path.unlink()
    kept.rename(path)
    read(repository, keys["ours"][1])
