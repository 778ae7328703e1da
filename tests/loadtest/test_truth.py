"""The load test tells the truth about a server of which everything is known."""

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from atelier.errors import ResourceUnavailableError
from loadtest.load.generator import Generators
from loadtest.load.open_inference import OpenInference
from loadtest.load.protocols import Classify, ServerProtocol
from loadtest.load.scenarios import Load
from loadtest.results.measurement import Measurement, together
from loadtest.server_process import ServerProcess, server_process
from tests.loadtest.null_server import NUM_IMAGES, reference

# Requests that warm up, before those that count: 6 on each of a process's connections, or 21 of a single stream.
NUM_WARM_UP = 24
SINGLE_WARM_UP = 21


@contextmanager
def null_server(*arguments: object, protocol: str = "atelier") -> Iterator[ServerProtocol]:
    with server_process("tests.loadtest.null_server", *map(str, arguments)) as server:
        if protocol == "oip":
            yield OpenInference(target=server.target, reference=reference())
        else:
            yield classify_at(server)


def classify_at(process: ServerProcess) -> ServerProtocol:
    return Classify(target=process.target, reference=reference())


def measured(server: ServerProtocol, load: Load, num_processes: int = 1) -> Measurement:
    with Generators(num_processes, {"null": server}, NUM_IMAGES) as generators:
        return generators.measure(load)


class Wakeups(threading.Thread):
    """Notes how much later than it asked for a thread wakes, again and again, until the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self._ended, self._late_ms = threading.Event(), list[float]()

    def run(self) -> None:
        while not self._ended.is_set():
            asked_s = time.monotonic() + 0.005
            time.sleep(0.005)
            self._late_ms.append(1e3 * (time.monotonic() - asked_s))

    def __enter__(self) -> "Wakeups":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    @property
    def delay_ms(self) -> float:
        """What the machine may add to an answer: the server, its timer and, twice, the client must wake."""
        return 4 * float(np.quantile(self._late_ms, 0.9))


def quietest(
    load: Load, *arguments: object, protocol: str = "atelier", num_processes: int = 1
) -> tuple[Measurement, float]:
    """The run, of up to six, that the machine disturbed least, and how many ms it may have added: the machine that
    tests may be busy, and is not what is tested. It ends with one that it hardly disturbed."""
    runs: list[tuple[Measurement, float]] = []
    while len(runs) < 6 and not (runs and runs[-1][1] < 2.0 and runs[-1][0].percentile_ms(99.0, "lateness") < 1.0):
        with null_server(*arguments, protocol=protocol) as server, Wakeups() as wakeups:
            runs.append((measured(server, load, num_processes), wakeups.delay_ms))
    return min(runs, key=lambda run: run[0].percentile_ms(50.0))


def server_load(client: str, duration_s: float = 2.0, timeout_s: float = 2.0) -> Load:
    return Load(
        contender="null",
        scenario="server",
        target_qps=200.0,
        duration_s=duration_s,
        timeout_s=timeout_s,
        seed=7,
        client=client,
    )


def single_stream(duration_s: float = 0.5) -> Load:
    return Load(contender="null", scenario="single_stream", duration_s=duration_s, expected=1e-4)


@pytest.mark.timing
def test_known_latency_is_found(client: str) -> None:
    run, delay_ms = quietest(server_load(client), "--latency-ms", 20)
    assert 20.0 <= run.percentile_ms(50.0) < 25.0 + delay_ms
    assert run.count("correct") == run.num_requests > 300
    assert run.mean_ms("queue") == 1.0
    assert run.mean_ms("inference") == 2.0
    assert run.batch_sizes == {3: run.count("images")}
    assert 17.0 <= run.mean_ms("transport") < 25.0 + delay_ms  # what is left


@pytest.mark.timing
def test_pause_of_200_ms_is_found_in_the_percentiles(client: str) -> None:
    """In 2 s a pause of 200 ms delays a tenth of the requests, by 0 to 200 ms: half of them by more than 100."""
    run, delay_ms = quietest(server_load(client), "--latency-ms", 2, "--pause-at", NUM_WARM_UP + 100, "--pause-ms", 200)
    assert run.percentile_ms(50.0) < 20.0 + delay_ms
    assert 70.0 < run.percentile_ms(95.0) < 140.0 + delay_ms
    assert 150.0 < run.percentile_ms(99.0) < 215.0 + delay_ms
    assert 190.0 < run.percentile_ms(100.0) < 260.0 + 2 * delay_ms


@pytest.mark.slow
def test_pause_of_the_generator_counts_as_latency_and_makes_the_run_invalid(client: str) -> None:
    """Requests that a stopped generator could not send were due all the same."""
    arguments = ("tests.loadtest.null_server", "--latency-ms", "2", "--tell-at", "100")
    with server_process(*arguments) as process, Generators(1, {"null": classify_at(process)}, NUM_IMAGES) as generators:
        (generator,) = (child for child in multiprocessing.active_children() if child.name == "generator 0")

        def pause() -> None:
            while "request 100 came" not in process.output:  # of some 600
                time.sleep(0.01)
            os.kill(generator.pid or 0, signal.SIGSTOP)
            time.sleep(0.3)
            os.kill(generator.pid or 0, signal.SIGCONT)

        pauser = threading.Thread(target=pause)
        pauser.start()
        run = generators.measure(server_load(client, duration_s=3.0))
        pauser.join()
    assert run.percentile_ms(99.0) > 150.0
    assert "the generator was late" in run.invalid_because[0]


@pytest.mark.timing
def test_latency_of_loadgen_is_ours(client: str) -> None:
    run, delay_ms = quietest(server_load(client), "--latency-ms", 20)
    (share,) = run.shares
    assert share.loadgen["result_query_count"] == run.num_requests
    for percentile in ("50.00", "90.00"):
        theirs_ms = share.loadgen[f"result_{percentile}_percentile_latency_ns"] / 1e6
        assert run.percentile_ms(float(percentile)) == pytest.approx(theirs_ms, abs=0.5 + delay_ms)


@pytest.mark.timing
def test_two_processes_share_the_rate_and_their_histograms_add_up(client: str) -> None:
    run, delay_ms = quietest(server_load(client), "--latency-ms", 20, num_processes=2)
    assert [len(share.histograms) for share in run.shares] == [6, 6]
    assert min(share.counts["correct"] for share in run.shares) > 120
    assert run.histograms["latency"].get_total_count() == run.count("correct")
    assert run.requests_per_s == pytest.approx(200, rel=0.2)
    assert 20.0 <= run.percentile_ms(50.0) < 26.0 + delay_ms
    assert together([run, run]).num_requests == 2 * run.num_requests


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "count", "message"),
    [
        ("swap", "wrong", "it is the answer to image"),
        ("duplicate", "wrong", "2 answers to 1 images"),
        ("lose", "lost", "DEADLINE_EXCEEDED"),
        ("refuse", "refused", "QUEUE_FULL"),
    ],
)
def test_one_bad_answer_among_hundreds_is_counted_and_named(fault: str, count: str, message: str, client: str) -> None:
    with null_server("--fault", fault, "--fault-at", NUM_WARM_UP + 50) as server:
        run = measured(server, server_load(client, timeout_s=3.0, duration_s=1.0))
    assert run.count(count) == 1
    assert run.count("correct") == run.num_requests - 1 > 100
    (named,) = run.faults
    assert re.match(r"request \d+: ", named)  # about 49: two that are sent at once may overtake one another
    assert message in named


@pytest.mark.slow
def test_one_bad_answer_of_the_open_inference_protocol_is_named_under_load_too(client: str) -> None:
    with null_server("--fault", "swap", "--fault-at", NUM_WARM_UP + 50, protocol="oip") as server:
        run = measured(server, server_load(client, duration_s=1.0))
    assert run.count("wrong") == 1
    assert run.count("correct") == run.num_requests - 1 > 100
    assert re.match(r"request \d+: image \d+: logits .* it is the answer to image", run.faults[0])


@pytest.mark.slow
def test_what_is_too_late_to_be_sent_is_not_and_counts_as_lost(client: str) -> None:
    with null_server() as server:
        run = measured(server, replace(server_load(client, duration_s=0.5), late_s=0.0))
    assert run.count("lost") == run.num_requests > 50
    assert "too late to be sent" in run.faults[0]


@pytest.mark.timing
@pytest.mark.parametrize("protocol", ["atelier", "oip"])
def test_single_stream_waits_for_each_answer(protocol: str) -> None:
    run, delay_ms = quietest(single_stream(), "--latency-ms", 10, protocol=protocol)
    assert 10.0 <= run.percentile_ms(50.0) < 15.0 + delay_ms
    assert 500 / (15 + delay_ms) - 4 < run.num_requests <= 50
    assert run.count("correct") == run.num_requests


@pytest.mark.slow
def test_oip_answer_of_another_image_is_named() -> None:
    with null_server("--fault", "swap", "--fault-at", SINGLE_WARM_UP + 10, protocol="oip") as server:
        run = measured(server, single_stream())
    assert run.count("wrong") == 1
    assert run.faults[0].startswith("request 9: image ")
    assert "it is the answer to image" in run.faults[0]


@pytest.mark.slow
def test_multi_stream_and_offline_answer_every_image(client: str) -> None:
    with null_server() as server, Generators(2, {"null": server}, NUM_IMAGES) as generators:
        streams = Load(contender="null", scenario="multi_stream", images_per_request=8, duration_s=0.5, expected=1e-4)
        run = generators.measure(streams)
        assert run.count("images") == 8 * run.count("correct") > 100
        assert len(run.shares) == 1
        offline = Load(
            contender="null",
            scenario="offline",
            images_per_request=64,
            duration_s=0.5,
            expected=20_000,
            client=client,
        )
        run = generators.measure(offline)
        assert run.count("images") >= 10_000
        assert run.count("correct") == run.num_requests
        assert run.count("pending") == 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["multi_stream", "server", "offline"])
def test_requests_of_more_images_than_there_are_have_some_of_them_twice(scenario: str, client: str) -> None:
    size = NUM_IMAGES + 56
    load = Load(
        contender="null",
        scenario=scenario,
        images_per_request=size,
        target_qps=100.0,
        duration_s=0.3,
        expected=size * 100 if scenario == "offline" else 1e-2,
        client=client,
    )
    with null_server() as server:
        run = measured(server, load)
    assert run.count("correct") == run.num_requests > 0
    assert run.count("images") >= size * run.num_requests - size


def test_server_that_is_not_there_is_an_error_that_names_it() -> None:
    gone = Classify(target="127.0.0.1:9", reference=reference())
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ResourceUnavailableError, match="NO_ANSWER: null cannot be asked: UNAVAILABLE"),
    ):
        patch.setenv("GRPC_VERBOSITY", "NONE")
        measured(gone, single_stream())
