"""The whole main job as a user does it: train, export, serve, classify; real data, real processes, real sockets."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from atelier.client import ClassifyError, Client
from atelier.contract import Images
from loadtest.server_process import ServerProcess, server_process
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME, load_manifest, read_verified
from tests.conftest import Job, command, import_s
from tests.idx_files import write_idx_files
from tests.reliability.plugin import Figure
from tests.serving.photographs import photographs, sample
from tests.serving.pictures import encoded
from training.dataset import FashionMNIST

pytestmark = pytest.mark.slow


def served(repository: Path, *arguments: str, port: int = 0) -> AbstractContextManager[ServerProcess]:
    """Where the system chooses the port, it chooses one for the metrics too; 8002 may be another server's."""
    arguments += ("--metrics-port", "0") if port else ()
    settings = ("--repository", str(repository), "--port", str(port), "--device", "cpu", *arguments)
    return server_process("serving", *settings)


@pytest.fixture(scope="module")
def server(job: Job) -> Iterator[ServerProcess]:
    with served(job.repository) as server:
        yield server


def onnxruntime_labels(version_dir: Path, images: Images) -> NDArray[np.intp]:
    """What ONNX Runtime says in this process."""
    model = read_verified(version_dir, load_manifest(version_dir), ONNX_NAME)
    backend = OnnxRuntimeBackend(model, max_batch_size=100)
    return np.concatenate([backend.infer(images[i : i + 100]).argmax(axis=1) for i in range(0, len(images), 100)])


@pytest.mark.goal("G20", of="images and adversarial ones, in five sizes of batches", ci=11042, release=11042)
def test_training_and_export_report_what_they_did(job: Job, size: int, figure: Figure) -> None:
    for line in ("train loss", "train acc", "test acc", "examples/sec on cpu", "max_abs_diff", "batch invariance"):
        assert line in job.printed, job.printed
    files = {path.name for path in job.version_dir.iterdir()}
    assert files >= {"manifest.json", "model.onnx", "model.pt2", "parity.json", "parity.md"}
    parity = json.loads((job.version_dir / "parity.json").read_bytes())
    for runtime in parity["runtimes"]:
        figure(f"{runtime['runtime']}: {runtime['top1_agreement']:.0%}, max_abs_diff {runtime['max_abs_diff']:.1e}")
        assert runtime["top1_agreement"] == 1
        assert runtime["max_abs_diff"] <= 1e-5
    assert parity["num_test_images"] + parity["num_edge_images"] == size


@pytest.mark.fault("S32")
def test_16_clients_get_exactly_the_labels_of_onnxruntime_in_order(
    job: Job, server: ServerProcess, data: FashionMNIST
) -> None:
    wanted = onnxruntime_labels(job.version_dir, data.test_images)
    bounds = [0, *np.cumsum(np.random.default_rng(0).integers(1, 65, 2000)).tolist()]
    slices = [slice(start, stop) for start, stop in pairwise(bounds) if start < len(wanted)]
    answered = np.full(len(wanted), -1)

    with ThreadPoolExecutor(16) as clients:
        local = threading.local()  # a connection for each client

        def classify(chosen: slice) -> None:
            local.client = getattr(local, "client", None) or Client(server.target)
            answered[chosen] = local.client.classify(data.test_images[chosen], timeout_s=30).labels

        list(clients.map(classify, slices))
    assert len(slices) > 250
    assert (answered == wanted).all()


@pytest.mark.parametrize("is_light", [True, False], ids=["light table", "dark table"])
def test_photographs_are_known_nearly_as_well_as_the_test_images_in_them(
    server: ServerProcess, data: FashionMNIST, is_light: bool
) -> None:
    images, labels = sample(data)
    pictures = [encoded(Image.fromarray(each.pixels)) for each in photographs(images, is_light=is_light)]
    with Client(server.target) as client:

        def share_right(count: int, **reading: bool) -> float:
            answers = [
                client.classify_pictures(pictures[start : start + 50], timeout_s=30, **reading).labels
                for start in range(0, count, 50)
            ]
            return float(np.mean(np.concatenate(answers) == labels[:count]))

        of_images = float(np.mean(client.classify(images, timeout_s=30).labels == labels))
        assert share_right(len(pictures), prepare=True) > of_images - 0.05
        assert share_right(100, invert=is_light) < 0.4  # what preparing is for


def test_test_images_sent_as_png_lose_nothing_by_being_prepared(server: ServerProcess, data: FashionMNIST) -> None:
    images = data.test_images[:2000]
    pictures = [encoded(Image.fromarray(image[0])) for image in images]
    with Client(server.target) as client:
        plain = client.classify(images[:1000]).labels, client.classify(images[1000:]).labels
        for half, labels in enumerate(plain):
            chosen = pictures[1000 * half : 1000 * (half + 1)]
            assert (client.classify_pictures(chosen, prepare=True, timeout_s=120).labels == labels).all()


@pytest.mark.timing
def test_server_answers_soon_after_its_start(small_repository: Path, data: FashionMNIST) -> None:
    """Beside a Python that only imports what a server imports: the machine may be busy, and is not what is tested."""
    taken_s, imports_s = [], []
    for _ in range(3):
        imports_s.append(import_s())
        started_s = time.monotonic()
        with served(small_repository) as server:
            with Client(server.target) as client:
                client.classify(data.test_images[:1])
            taken_s.append(time.monotonic() - started_s)
    assert min(taken_s) < 5 * min(imports_s), (taken_s, imports_s)


def test_onnx_server_never_loads_torch_and_stays_small(job: Job, server: ServerProcess, data: FashionMNIST) -> None:
    with Client(server.target) as client:
        for start in range(0, 10_000, 500):
            client.classify(data.test_images[start : start + 500], timeout_s=120)
    supervisor = psutil.Process(server.process.pid)
    processes = [supervisor, *supervisor.children()]
    assert sum(process.memory_full_info().pss for process in processes) < 200e6  # pages that they share count once
    libraries = {region.path for process in processes for region in process.memory_maps()}
    assert any("onnxruntime" in path for path in libraries)
    assert not any("torch" in path for path in libraries)


def test_serving_on_the_ground_floor_alone_can_serve(job: Job, tmp_path: Path) -> None:
    """What the serving images hold: copies of the two packages, and nothing of the rest."""
    root = Path(__file__).parent.parent
    for package in ("serving", "atelier"):
        (tmp_path / package).symlink_to(root / package)
    blocked = "import sys; sys.modules.update(dict.fromkeys(('training', 'export', 'loadtest', 'torch')))"
    code = f"{blocked}; sys.path[0] = {str(tmp_path)!r}; from serving.server import main; main(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--repository", str(job.repository), "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    with process.stdout as lines:
        assert any("serving atelier.v1.Classifier" in line for line in lines)
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.fault("S36")
def test_restarts_under_load_lose_no_answer(job: Job, data: FashionMNIST) -> None:
    """SIGTERM while clients send: what was accepted is answered, the rest is told to retry, and retrying succeeds."""
    with served(job.repository) as first:
        port, failures, answers = first.port, [], [0] * 4
        stop = threading.Event()

        def load(index: int) -> None:
            with Client(f"127.0.0.1:{port}") as client:
                while not stop.is_set():
                    try:
                        client.classify(data.test_images[:4], timeout_s=20)
                        answers[index] += 1
                    except ClassifyError as error:
                        # A busy machine may start the second server after the last retry; no server had accepted that.
                        if "Connection refused" not in error.message:
                            failures.append(error)

        clients = [threading.Thread(target=load, args=(index,)) for index in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.5)
        assert first.stop() == 0, first.output
        assert "draining" in first.output
        with served(job.repository, port=port) as second:
            before = sum(answers)
            while sum(answers) < before + 100 and any(client.is_alive() for client in clients):
                time.sleep(0.05)
            stop.set()
            for client in clients:
                client.join(30)
            assert second.stop() == 0
    assert failures == []
    assert sum(answers) >= before + 100


@pytest.mark.fault("S56")
def test_server_drains_when_nobody_reads_its_output(job: Job) -> None:
    """`make serve | tee log`, and Ctrl-C ends tee first."""
    arguments = ("--repository", str(job.repository), "--port", "0", "--device", "cpu")
    process = subprocess.Popen([sys.executable, "-m", "serving", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any("serving atelier.v1.Classifier" in line for line in process.stdout)
    process.stdout.close()
    process.terminate()
    assert process.wait(20) == 0


def test_second_export_makes_version_2_and_the_server_takes_it(job: Job, tmp_path: Path) -> None:
    """Through the gate on few images: on all of them the first one went."""
    models = shutil.copytree(job.repository, tmp_path / "models")
    write_idx_files(tmp_path / "data")
    few = ("--data-dir", tmp_path / "data", "--unverified-data", "--untrained")
    again = command("export", "--checkpoint-dir", job.checkpoint_dir, "--repository", models, *few)
    assert again.returncode == 0, again.stderr
    assert (models / "lenet5" / "2" / "manifest.json").exists()
    second = models / "lenet5" / "2" / "model.onnx"
    assert second.read_bytes() == (job.version_dir / "model.onnx").read_bytes()  # of the same checkpoint
    for arguments, version in (((), "2"), (("--model-version", "1"), "1")):
        with served(models, *arguments) as server, Client(server.target) as client:
            assert client.model().model_version == version


def test_torch_backend_serves_the_same_labels(job: Job, data: FashionMNIST) -> None:
    with served(job.repository, "--backend", "torch") as server, Client(server.target) as client:
        assert client.model().backend == "torch"
        labels = client.classify(data.test_images[:500], timeout_s=30).labels
    assert (labels == onnxruntime_labels(job.version_dir, data.test_images[:500])).all()


@pytest.mark.fault("O7")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "word"),
    [
        (["--repository", "/nonexistent"], os.EX_NOINPUT, "NO_MODEL"),
        (["--model-version", "77"], os.EX_NOINPUT, "NO_MODEL"),
        (["--backend", "tensorrt"], os.EX_UNAVAILABLE, "NO_GPU"),
        (["--backend", "triton"], os.EX_CONFIG, "BAD_SETTING"),
        (["--device", "cuda"], os.EX_UNAVAILABLE, "NO_GPU"),
        (["--max-batch-size", "0"], os.EX_CONFIG, "BAD_SETTING"),
    ],
)
def test_server_that_cannot_do_what_was_asked_ends_with_one_line(
    job: Job, arguments: list[str], exit_code: int, word: str
) -> None:
    if {"cuda", "tensorrt"} & {*arguments} and Path("/dev/nvidia0").exists():
        pytest.skip("this host has a GPU")
    done = command("serving", "--repository", job.repository, "--port", 0, *arguments)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith(f"error: {word}: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.fault("S40")
def test_port_in_use_ends_with_one_line_and_disturbs_nobody(job: Job, server: ServerProcess) -> None:
    done = command("serving", "--repository", job.repository, "--port", server.port, "--device", "cpu")
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_UNAVAILABLE, 1), done.stderr
    assert done.stderr.startswith("error: PORT_IN_USE: ")
    with Client(server.target) as client:
        assert client.is_serving()


@pytest.mark.fault("E4")
def test_changed_model_is_never_served(job: Job, tmp_path: Path) -> None:
    version_dir = tmp_path / "lenet5" / "1"
    version_dir.mkdir(parents=True)
    for path in job.version_dir.iterdir():
        (version_dir / path.name).write_bytes(path.read_bytes())
    model = bytearray((version_dir / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (version_dir / "model.onnx").write_bytes(model)
    done = command("serving", "--repository", tmp_path, "--port", 0, "--device", "cpu")
    assert done.returncode == os.EX_DATAERR
    assert done.stderr.startswith("error: HASH_MISMATCH: ")


def test_samples_command_shows_garments_labels_and_truth(server: ServerProcess, data: FashionMNIST) -> None:
    done = command("loadtest.samples", "--target", server.target)
    assert done.returncode == 0, done.stderr
    assert " of 16 right; lenet5 version " in done.stdout


def test_client_command_shows_probability_bars(server: ServerProcess, data: FashionMNIST, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(data.test_images[0, 0]).save(tmp_path / "boot.png")
    done = command("atelier.classify", tmp_path / "boot.png", "--target", server.target)
    assert done.returncode == 0, done.stderr
    assert "boot.png" in done.stdout
    assert "%" in done.stdout and "#" in done.stdout
