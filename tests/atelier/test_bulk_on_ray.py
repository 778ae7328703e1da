"""`atelier classify --out FILE --ray ADDRESS` on a real local cluster of two nodes: the same labels as without.

Installing Ray takes a minute or two, so it is asked for: ATELIER_REQUIRE_RAY=1 before the command that runs the tests.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atelier.environments import python_with
from loadtest.server_process import ServerProcess, free_port, server_process
from tests.atelier.test_bulk import picture

pytestmark = pytest.mark.skipif(
    "ATELIER_REQUIRE_RAY" not in os.environ, reason="installs Ray and starts a cluster if ATELIER_REQUIRE_RAY is set"
)

ROOT = Path(__file__).parent.parent.parent
# A node keeps to loopback, and to the packages and the checkout that are tested.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
NODE_OPTIONS = ("--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=100000000", "--block")


@pytest.fixture(scope="module")
def python() -> Path:
    return python_with(["ray[data]==2.60.0"], Path(".cache/clients/ray-data"), sees_ours=True)


@pytest.fixture(scope="module")
def cluster(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head and one more node, both ended afterwards."""
    port = free_port()
    address, ray = f"127.0.0.1:{port}", python.parent / "ray"
    log = tmp_path_factory.mktemp("ray") / "nodes.log"
    roles = (("--head", f"--port={port}", "--include-dashboard=false"), (f"--address={address}",))
    with ExitStack() as at_the_end, log.open("w") as output:
        for role in roles:
            node = subprocess.Popen([ray, "start", *role, *NODE_OPTIONS], env=ENVIRONMENT, stdout=output, stderr=output)
            at_the_end.callback(node.wait, 60)
            at_the_end.callback(node.terminate)
            wait_for_nodes(python, address, roles.index(role) + 1, log)
        yield address


def wait_for_nodes(python: Path, address: str, number: int, log: Path) -> None:
    code = f"""
import time, ray
until_s = time.monotonic() + 90
while True:
    try:
        ray.init({address!r}, logging_level="error", log_to_driver=False)
        if sum(node["Alive"] for node in ray.nodes()) >= {number}:
            break
    except ConnectionError:
        pass
    ray.shutdown()
    assert time.monotonic() < until_s
    time.sleep(1)
"""
    done = subprocess.run([python, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + log.read_text()


@pytest.fixture(scope="module")
def served(small_repository: Path) -> Iterator[ServerProcess]:
    with server_process("serving", "--repository", str(small_repository), "--port", "0", "--device", "cpu") as server:
        yield server


def labels(
    python: Path, target: str, out: Path, source: Path, *options: str, exit_code: int = 65
) -> list[tuple[object, ...]]:
    command = [python, "-m", "atelier", "classify", "--target", target, "--out", out, source, *options]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == os.EX_DATAERR, done.stderr
    assert re.match("error: BAD_PICTURES: 1 of 701 ", done.stderr.splitlines()[-1]), done.stderr
    return sorted(tuple(row.values()) for row in pq.read_table(out).to_pylist())


def test_ray_gives_the_labels_that_one_machine_gives(
    python: Path, cluster: str, served: ServerProcess, tmp_path: Path
) -> None:
    folder, parquet = tmp_path / "pictures", tmp_path / "in.parquet"
    folder.mkdir()
    contents = [picture(seed) for seed in range(700)] + [b"no picture"]
    for index, content in enumerate(contents):
        (folder / f"{index}.png").write_bytes(content)
    pq.write_table(pa.table({"id": range(701), "image": contents}), parquet)
    for source in (folder, parquet):
        alone = labels(python, served.target, tmp_path / "alone.parquet", source)
        on_ray = labels(python, served.target, tmp_path / "ray.parquet", source, "--ray", cluster)
        assert len(alone) == 701
        assert on_ray == alone


def test_cluster_that_is_not_there_and_server_that_is_not_there_are_said(
    python: Path, cluster: str, served: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(picture(1))
    for target, address, word in ((served.target, "127.0.0.1:1", "NO_RAY"), ("127.0.0.1:1", cluster, "NO_SERVER")):
        options = ("--target", target, "--ray", address, "--out", "l.csv", "pictures")
        command = [str(python), "-m", "atelier", "classify", *options]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == os.EX_UNAVAILABLE, done.stderr
        assert word in done.stderr.splitlines()[-1]
        assert not (tmp_path / "l.csv").exists()
