import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atelier.environments import python_with
from atelier.errors import BadDataError, MissingInputError, ResourceUnavailableError
from export.repository import publish
from serving.manifest import MANIFEST_NAME, TENSORRT, EngineSpec, list_versions, load_manifest, read_verified
from tests.export.tiny_version import FILES, MANIFEST
from tests.reliability.plugin import Figure
from training.dataset import CLASSES

PLAN = EngineSpec(
    flavour=TENSORRT,
    file="model.plan",
    version="11.4.0.106",
    compute_capabilities=("9.0",),
    precision="fp32",
    onnx_sha256="0" * 64,
    min_batch_size=1,
    opt_batch_size=64,
    max_batch_size=256,
    layer_types={},
)

PREPARE = """
import os, signal, sys
from pathlib import Path
from export.repository import publish
from tests.export.tiny_version import FILES, MANIFEST
model_dir = Path(sys.argv[1])
"""


def start(program: str, *arguments: str | Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PREPARE + program, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def assert_whole(model_dir: Path) -> list[int]:
    """Every version that a reader sees is one that it can use. Returns them."""
    for version in list_versions(model_dir):
        manifest = load_manifest(model_dir / str(version))
        assert manifest.version == version
        assert {name: read_verified(model_dir / str(version), manifest, name) for name in manifest.files} == FILES
    return list_versions(model_dir)


def test_versions_count_up_and_hold_what_was_given(tmp_path: Path) -> None:
    assert publish(tmp_path / "lenet5", FILES, MANIFEST) == tmp_path / "lenet5" / "1"
    assert publish(tmp_path / "lenet5", FILES, MANIFEST) == tmp_path / "lenet5" / "2"
    assert assert_whole(tmp_path / "lenet5") == [1, 2]
    assert sorted(path.name for path in (tmp_path / "lenet5").iterdir()) == ["1", "2", "config.pbtxt", "labels.txt"]


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    assert publish(tmp_path, FILES, MANIFEST).name == "8"


def test_triton_finds_its_configuration_and_the_labels_beside_the_versions(tmp_path: Path) -> None:
    version_dir = publish(tmp_path, FILES, MANIFEST)
    assert (tmp_path / "labels.txt").read_text().splitlines() == list(CLASSES)
    assert (tmp_path / "config.pbtxt").stat().st_mtime_ns >= version_dir.stat().st_mtime_ns


TRITONS_SCHEMA = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


@pytest.mark.parametrize("engines", [(), (PLAN,)], ids=["ONNX", "TensorRT"])
def test_configuration_is_what_tritons_own_schema_says(tmp_path: Path, engines: tuple[EngineSpec, ...]) -> None:
    """Its parser refuses a field, an enumeration or a type that Triton does not know."""
    publish(tmp_path, FILES, dataclasses.replace(MANIFEST, engines=engines))
    python = tritonclient_python()
    command = [str(python), "-c", TRITONS_SCHEMA, str(tmp_path / "config.pbtxt")]
    parsed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    images = {"name": "images", "data_type": "TYPE_UINT8", "format": "FORMAT_NCHW", "dims": ["1", "28", "28"]}
    logits = {"name": "logits", "data_type": "TYPE_FP32", "dims": ["10"], "label_filename": "labels.txt"}
    platform, file = ("tensorrt_plan", "model.plan") if engines else ("onnxruntime_onnx", "model.onnx")
    assert parsed == {
        "name": "lenet5",
        "platform": platform,
        "default_model_filename": file,
        "max_batch_size": 16,
        "input": [images],
        "output": [logits],
        "dynamic_batching": {},
    }


def tritonclient_python() -> Path:
    """The environment of tests/serving/test_clients.py: the protobuf of Triton's client is older than ours."""
    try:
        return python_with(["tritonclient[grpc,http]==2.73.0"], Path(".cache/clients/tritonclient"))
    except ResourceUnavailableError as error:
        if "ATELIER_REQUIRE_CLIENTS" in os.environ:
            raise
        pytest.skip(f"needs tritonclient: {error}")


def test_configuration_is_renewed_at_every_export(tmp_path: Path) -> None:
    publish(tmp_path, FILES, MANIFEST)
    os.utime(tmp_path / "config.pbtxt", (0, 0))
    publish(tmp_path, FILES, MANIFEST)
    assert (tmp_path / "config.pbtxt").stat().st_mtime > 0


def test_other_users_may_read_a_version(tmp_path: Path) -> None:
    version_dir = publish(tmp_path, FILES, MANIFEST)
    assert version_dir.stat().st_mode & 0o055 == 0o055
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in version_dir.iterdir())


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    version_dir = publish(tmp_path, FILES, MANIFEST)
    model = bytearray(FILES["model.onnx"])
    model[5] ^= 1
    (version_dir / "model.onnx").write_bytes(model)
    with pytest.raises(BadDataError, match="HASH_MISMATCH"):
        read_verified(version_dir, load_manifest(version_dir), "model.onnx")


def test_a_directory_without_manifest_is_no_version(tmp_path: Path) -> None:
    version_dir = publish(tmp_path, FILES, MANIFEST)
    (version_dir / MANIFEST_NAME).unlink()
    with pytest.raises(MissingInputError, match="NO_MANIFEST"):
        load_manifest(version_dir)


WAIT_AND_PUBLISH = """
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    publish(model_dir, FILES, MANIFEST)
"""


@pytest.mark.fault("E15")
@pytest.mark.slow
def test_exporters_at_once_get_different_versions(tmp_path: Path) -> None:
    exporters = [start(WAIT_AND_PUBLISH, tmp_path) for _ in range(2)]
    assert [exporter.stdout and exporter.stdout.readline() for exporter in exporters] == ["ready\n", "ready\n"]
    for exporter in exporters:
        assert exporter.stdin is not None
        exporter.stdin.write("go\n")
        exporter.stdin.flush()
    for exporter in exporters:
        _, errors = exporter.communicate(timeout=60)
        assert exporter.returncode == 0, errors
    assert assert_whole(tmp_path) == list(range(1, 41))


# Python's audit events mark every opening, making, renaming and removing; the n-th child fails at the n-th of them.
FAIL_EVERYWHERE = """
import errno
full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def fail_at(number):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        seen += 1
        if seen == number and how == "died":
            os.kill(os.getpid(), signal.SIGKILL)
        if seen == number:
            raise full
    sys.addaudithook(count)

for number in range(1, 1000):
    child = os.fork()
    if child == 0:
        fail_at(number)
        try:
            publish(model_dir / str(number) / "lenet5", FILES, MANIFEST)
        except BaseException as error:
            os._exit(9 if error is full or error.__context__ is full else 1)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(number - 1)
"""


@pytest.mark.fault("E15", "E16")
@pytest.mark.slow
@pytest.mark.goal("G18", of="steps of an export at which it is killed, or the disk full", ci=0, release=0)
@pytest.mark.parametrize("how", ["died", "full"])
def test_an_exporter_that_fails_anywhere_leaves_nothing_half_written(how: str, tmp_path: Path, figure: Figure) -> None:
    output, errors = start(f"how = {how!r}\n{FAIL_EVERYWHERE}", tmp_path).communicate(timeout=60)
    num_deaths = int(output or 0)
    assert num_deaths > 10, errors
    for number in range(1, num_deaths + 1):
        model_dir = tmp_path / str(number) / "lenet5"
        survived = assert_whole(model_dir)
        assert survived in ([], [1])
        publish(model_dir, FILES, MANIFEST)
        assert assert_whole(model_dir) == [*survived, len(survived) + 1]
        assert not list(model_dir.glob(".building*"))
    figure(f"{how} at {num_deaths}: a whole version or none, each time")


@pytest.mark.fault("E16")
def test_a_full_disk_leaves_nothing_and_is_reported(tmp_path: Path) -> None:
    program = """
import resource
from atelier.program import run_program
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
sys.exit(run_program(lambda _: publish(model_dir, FILES, MANIFEST) and 0, []))
"""
    exporter = start(program, tmp_path)
    _, errors = exporter.communicate(timeout=60)
    assert errors.startswith(f"error: NO_SPACE: cannot write {tmp_path}")
    assert exporter.returncode == os.EX_IOERR
    assert list(tmp_path.iterdir()) == []
