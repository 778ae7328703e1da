"""Publishes to the model repository: `<repository>/lenet5/<version>/`, whole or not there at all.

A version is built in a hidden directory beside its place, flushed to the disk, and then renamed, so a reader sees
all of it or nothing, whenever the exporter dies. The same tree is a Triton model repository through `config.pbtxt`
and the `labels.txt` that it names.
"""

import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from atelier.errors import ConfigurationError, ResourceUnavailableError
from atelier.files import sync_directory, write_atomically
from atelier.program import how_to_install
from atelier.trusted_files import check_secret
from serving.manifest import ONNX_NAME, TENSORRT, Manifest, list_versions, save_manifest

CONFIG_NAME, LABELS_NAME = "config.pbtxt", "labels.txt"
Sign = Callable[[bytes], bytes]  # for a server with `--require-signature` to tell who exported a version
KEY_CURE = "openssl genpkey -algorithm ed25519 -out KEY makes one"
_BUILDING_NAME = ".building"  # not a number, so no reader takes it for a version


def publish(model_dir: Path, files: Mapping[str, bytes], manifest: Manifest, sign: Sign | None = None) -> Path:
    """Publishes `files` under the next free version and returns its directory; the manifest gets that number.

    `sign` makes the signature of the manifest's bytes, to lie beside it.
    Of two exporters the second waits and takes the number after. Raises OSError if the disk is full or read-only;
    then nothing is visible, or, if only Triton's files failed, the whole version.
    """
    model_dir.mkdir(parents=True, exist_ok=True)
    building = model_dir / _BUILDING_NAME
    with _only_exporter(model_dir):
        _remove(building)  # what an exporter left that was killed: the lock says that nobody works there
        try:
            version = max(list_versions(model_dir), default=0) + 1
            _build(building, files, dataclasses.replace(manifest, version=version), sign)
            version_dir = building.rename(model_dir / str(version))
            sync_directory(model_dir)  # the rename itself
        finally:
            _remove(building)
        write_atomically(model_dir / LABELS_NAME, "".join(f"{name}\n" for name in manifest.classes).encode())
        # Last, and at every export: its time of change says when the newest version came.
        write_atomically(model_dir / CONFIG_NAME, triton_config(manifest).encode())
    return version_dir


@contextmanager
def _only_exporter(model_dir: Path) -> Iterator[None]:
    """Waits for its turn in `model_dir`. The kernel opens the lock when its owner dies, however it dies."""
    lock = os.open(model_dir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove(building: Path) -> None:
    if building.exists():
        shutil.rmtree(building)


def _build(building: Path, files: Mapping[str, bytes], manifest: Manifest, sign: Sign | None) -> None:
    """Writes the files, the manifest last, all of it to the disk before anybody can see it."""
    building.mkdir()
    for name, data in files.items():
        write_atomically(building / name, data)
    save_manifest(manifest, building, sign)


def triton_config(manifest: Manifest) -> str:
    """Writes what Triton wants beside the versions; the batch is not part of its dims."""
    images, logits = manifest.input, manifest.output
    # Triton takes one platform for all versions: the newest one's best. It has none for TensorRT for RTX.
    engine = manifest.engine_of(TENSORRT)
    platform, file_name = ("tensorrt_plan", engine.file) if engine else ("onnxruntime_onnx", ONNX_NAME)
    output = f'name: "{logits.name}", data_type: TYPE_FP32, dims: {list(logits.shape[1:])}'
    return f"""name: "{manifest.model_name}"
platform: "{platform}"
default_model_filename: "{file_name}"
max_batch_size: {manifest.max_batch_size}
input [ {{ name: "{images.name}", data_type: TYPE_UINT8, format: FORMAT_NCHW, dims: {list(images.shape[1:])} }} ]
output [ {{ {output}, label_filename: "{LABELS_NAME}" }} ]
dynamic_batching {{ }}
"""


def signer_from(path: Path) -> Sign:
    """Returns the function that signs with an Ed25519 private key in PEM, unencrypted: bytes -> 64 bytes.

    Raises ConfigurationError BAD_KEY if the file is none, PermissionRefusedError TOKEN_FILE_MODE if others than its
    owner may open it, and ResourceUnavailableError NO_LIBRARY if `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        what, cure = "--signing-key needs cryptography, which is not installed", how_to_install("signing")
        raise ResourceUnavailableError("NO_LIBRARY", what, cure, why=str(error)) from None
    check_secret(path, may_group_read=False)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:  # TypeError: it is encrypted
        raise ConfigurationError("BAD_KEY", f"{path}: {error}", KEY_CURE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError("BAD_KEY", f"{path} holds a key of another kind than Ed25519", KEY_CURE)
    return key.sign
