"""Load far past what the device can do: as much as at the peak is answered in time, and refusals are quick."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from loadtest.bench.overload import run_from
from loadtest.load.generator import Generators
from loadtest.load.protocols import Classify, Reference
from loadtest.load.scenarios import load_with_deadline
from loadtest.results.measurement import Measurement
from loadtest.server_process import ServerProcess, server_process
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from tests.serving.fake_backend import image
from tests.serving.running import serving_process_of

IMAGE_S = 0.002  # on the device: a peak of 500 images a second, which costs a busy machine little to offer many times
PEAK = 1 / IMAGE_S
LABELS = np.arange(1, 10)
REFERENCE = Reference(
    images=np.concatenate([image(int(label)) for label in LABELS]),
    logits=np.eye(10, dtype=np.float32)[LABELS] * 9,
    atol=1e-5,
)


SETTINGS = ("--port", "0", "--front-end", "native", "--image-s", str(IMAGE_S), "--max-batch-size", "1")
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process("tests.serving.breaking_server", *SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def generators(server: ServerProcess) -> Iterator[Generators]:
    protocol = Classify(target=server.target, reference=REFERENCE)
    with Generators(1, {"served": protocol}, len(LABELS)) as running:
        yield running


def offered(generators: Generators, times: float, deadline_s: float, duration_s: float) -> Measurement:
    """What came of a load; a machine that was too busy to offer it is asked again, and in the end skipped."""
    for _ in range(3):
        found = generators.measure(load_with_deadline("served", times * PEAK, deadline_s, duration_s))
        run = run_from(found)
        if run.was_offered:
            return found
    pytest.skip(f"the machine is too busy: {run.offered_per_s:.0f} a second were sent in time")


class Device:
    """What a server's device has done since this was made."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        server = self._server
        num_run = server.metric("atelier_batches_total", outcome="ok")
        return num_run, server.metric("atelier_inference_duration_seconds_sum")

    @property
    def images_per_s(self) -> float:
        """What it can do on this machine, now: images over the time that it was busy."""
        (num_run, busy_s), (num_before, busy_before_s) = self._now(), self._before
        return (num_run - num_before) / (busy_s - busy_before_s)


@pytest.mark.fault("S23")
@pytest.mark.timing
@needs_native
@pytest.mark.parametrize(("times", "deadline_s"), [(2, 0.1), (2, 0.02), (10, 0.02)])
def test_goodput_stays_at_the_peak_however_much_is_offered(
    server: ServerProcess, generators: Generators, times: int, deadline_s: float
) -> None:
    device = Device(server)
    found = offered(generators, times, deadline_s, duration_s=2.0)
    assert found.count("wrong") == found.count("lost") - found.count("expired") == 0
    assert run_from(found).goodput >= 0.85 * device.images_per_s
    assert found.percentile_ms(50.0, "refusal") < 5


@pytest.mark.fault("S23")
@pytest.mark.timing
@needs_native
@pytest.mark.goal(
    "G7", of="seconds of 10 times the peak: 5,000 one-image requests/s to a device of 500", ci=3, release=60
)
def test_ten_times_the_peak_costs_nothing_and_leaves_nothing(
    server: ServerProcess, generators: Generators, size: int, figure: Figure
) -> None:
    deadline_s = 0.1  # a bound of the queue's histogram
    process = serving_process_of(server)
    quiet, rss_bytes, device = offered(generators, 0.5, deadline_s, 2.0), process.memory_info().rss, Device(server)
    found = offered(generators, 10, deadline_s, float(size))
    share, ended_s = run_from(found).goodput / device.images_per_s, time.monotonic()
    grown = (process.memory_info().rss - rss_bytes) / MEBIBYTE
    time.sleep(max(0.0, ended_s + 1 - time.monotonic()))
    after = offered(generators, 0.5, deadline_s, 2.0)
    num_queued = server.metric("atelier_queue_duration_seconds_count")
    late = num_queued - server.metric("atelier_queue_duration_seconds_bucket", le=str(deadline_s))
    quiet_ms, after_ms = quiet.percentile_ms(99.0), after.percentile_ms(99.0)
    refusal_ms, accepted_ms = found.percentile_ms(99.0, "refusal"), found.percentile_ms(99.0)
    figure(f"{share:.1%} of the peak; p99 of accepted {accepted_ms:.0f} ms of 100, of refusals {refusal_ms:.1f} ms")
    figure(f"{late:.0f} of {num_queued:,.0f} executed after they expired; {grown:+.1f} MiB")
    figure(f"p99 {quiet_ms:.1f} ms before, {after_ms:.1f} ms a second after")
    assert found.count("wrong") == found.count("lost") - found.count("expired") == late == 0
    assert share >= 0.95
    assert accepted_ms <= 1e3 * deadline_s
    assert refusal_ms <= 5
    assert after_ms <= max(1.5 * quiet_ms, quiet_ms + 5)
    assert grown <= 32
