"""The bench tells the truth about itself: ratios within a repeat, and a count of answers that must add up."""

import json
import shutil
from pathlib import Path

import pytest

from atelier.client import Client
from atelier.errors import ProgramError
from loadtest.backend_speed import random_images
from loadtest.bench import run as bench
from loadtest.bench.contenders import check_count, serving, target_of
from loadtest.bench.h2load import ClosedLoop, H2Load, ask
from loadtest.bench.paced_server import PACE
from loadtest.bench.playground import CLOSED, DRAWN, drawn_on
from loadtest.bench.rows import Row, contenders_table, draw, table
from loadtest.bench.training_speed import training_rates
from loadtest.front_ends import available_front_ends
from loadtest.server_process import server_process
from tests.conftest import Job
from tests.loadtest.test_cpp_echo import needs_grpc
from tests.serving.fake_backend import image
from tests.serving.running import serving_process_of, wait_for
from training.dataset import FashionMNIST

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="needs apt-get install nghttp2-client")


def row(**fields: object) -> Row:
    return Row(**{"name": "speed", "unit": "requests/s", **fields})  # type: ignore[arg-type]


def test_ratios_are_taken_within_a_repeat() -> None:
    ours = row(target=0.7, ours=[80, 10, 160], yardstick=[100, 20, 200], yardstick_name="echo")
    assert ours.values == [0.8, 0.5, 0.8]
    assert ours.cells()[3:] == ("0.80 (0.50 to 0.80)", "at least 0.7: met")


def test_missed_target_is_said() -> None:
    assert row(target=0.7, ours=[60], yardstick=[100]).cells()[4] == "at least 0.7: MISSED"
    assert row(target=1.5, ours=[1.6], is_limit=True).cells()[4] == "at most 1.5: MISSED"
    assert row(target=1.5, ours=[1.4], is_limit=True).is_met


def test_row_without_a_target_gives_no_verdict() -> None:
    assert row(ours=[1], yardstick=[2]).is_met is None
    assert table([row(ours=[1234.5])]).splitlines()[2].split("|")[2].strip() == "1,234 requests/s"


def test_run_that_says_nothing_is_invalid_and_meets_no_target() -> None:
    ours = row(target=0.7, ours=[80], yardstick=[100], invalid="only 5/s were offered")
    assert ours.is_met is None
    assert ours.verdict == "INVALID: only 5/s were offered"


@pytest.mark.slow
def test_answers_are_counted_by_the_server_and_one_too_few_or_too_many_fails_the_run(small_repository: Path) -> None:
    with serving(small_repository) as server:
        with Client(server.target) as client:
            for _ in range(3):
                client.classify(image(1))
        assert check_count(server, 3) == 3
        with pytest.raises(ProgramError, match="LOST_ANSWERS: 4 requests were sent, the server answered 3"):
            check_count(server, 4)


@needs_h2load
def test_percentiles_are_of_every_request() -> None:
    load = ClosedLoop(images_per_request=1, num_clients=2, in_flight_per_client=2, num_requests=100)
    arguments = ("--latency-ms", "2", "--pause-at", "50", "--pause-ms", "300")
    with server_process("tests.loadtest.null_server", *arguments) as server:
        outcome = H2Load(1.0).offer(target_of("null", server), load)
    assert 2 <= outcome.p50_ms < 100
    assert outcome.p99_ms > 250
    assert outcome.cpu_us > 0


@needs_h2load
def test_grpc_error_within_http_200_fails_the_run_where_the_size_of_answers_is_known() -> None:
    load = ClosedLoop(images_per_request=1, num_clients=1, in_flight_per_client=1, num_requests=20)
    with server_process("loadtest.echo_server", "48") as server:
        assert H2Load(1.0).offer(target_of("echo", server, 53), load).requests_per_s > 0
    with server_process("tests.loadtest.null_server", "--fault", "refuse", "--fault-at", "7") as server:
        size = len(ask(target_of("null", server), random_images(1)))
        with pytest.raises(ProgramError, match="LOAD_FAILED: not all of 20 requests to null were answered"):
            H2Load(1.0).offer(target_of("null", server, size), load)


def test_chart_has_every_contender_and_is_small(tmp_path: Path) -> None:
    figures = {"C++ echo, 1": [90_000.0, 95_000.0], "grpcio, 1": [9_000.0, 10_000.0], "KServe 0.21.0, 1": [3_000.0]}
    figures["grpcio, ModelInfer, 1"] = [8_000.0]
    names = ["grpcio", "grpcio, ModelInfer", "C++ echo", "KServe 0.21.0"]
    draw(figures, names, "a processor, 2026-01-01", tmp_path / "peers.svg")
    text = (tmp_path / "peers.svg").read_text()
    assert len(text) < 60_000
    for words in (
        "Atelier, grpcio",
        "Atelier, grpcio, ModelInfer",
        "C++ echo, the limit",
        "KServe 0.21.0",
        "a processor, 2026-01-01",
        "0.22 to 0.27",
    ):
        assert words in text


def test_peer_that_is_absent_is_a_line_with_the_reason() -> None:
    figures = {f"C++ echo, {what}": [2.0] for what in ("1", "p50 ms", "p99 ms", "CPU us", "MB")}
    lines = contenders_table(figures, ["C++ echo"], {"KServe 0.21.0": "NO_PEER: no"}).splitlines()
    assert lines[-1].startswith("| KServe 0.21.0 | absent: NO_PEER: no")


@pytest.mark.slow
@needs_h2load
@needs_grpc
def test_bench_measures_every_contender(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--repeats", "2", "--scale", "0.02", "--measure", "overload,page", "--report-dir", str(tmp_path)]
    assert bench.main(["--repository", str(job.repository), *options]) == 0
    assert "all of them answered" in capsys.readouterr().out
    (report,) = tmp_path.glob("bench-*.json")
    document = json.loads(report.read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert set(document["contenders"]) >= {"grpcio", "C++ echo", "Python echo"}
    for name in available_front_ends():
        assert len(rows[f"{name}: 1 image, 128 in flight"]["ours"]) == 2
        assert len(rows[f"{name}: start to first answer"]["ours"]) == 2
        for load in (f"{name}: 10 times the peak, 64 images", f"{name}, {PACE}: 10 times the peak, 1 image"):
            assert len(rows[f"{load} a request, in 20 ms"]["ours"]) == 1
    for state in (CLOSED, DRAWN):
        assert rows[f"{state}: 1 image, 128 in flight"]["yardstick_name"] == "no page"
    measured = {
        row["name"]: row["ours"]
        for row in document["rows"]
        if not ("peak" in row["name"] or "looks" in row["name"] or row["unit"] == "%")
    }
    # Of the CPU time of so few requests one repeat may see no tick.
    assert {name: ours for name, ours in measured.items() if not max(ours) > 0} == {}
    assert (tmp_path / "peers.svg").exists()


@pytest.mark.slow
def test_page_is_drawn_on_and_a_look_without_an_answer_is_no_look(small_repository: Path) -> None:
    with serving(small_repository) as server:
        (page,) = server.ready["playground"]
        with drawn_on(page) as looked_s:
            wait_for(lambda: len(looked_s) >= 3)
        with pytest.raises(ProgramError, match=r"answered 'HTTP/1\.. 4"), drawn_on(server.metrics_url):
            pytest.fail("it was answered")
        process = serving_process_of(server)
        process.suspend()  # who looks gets the maps, and is told why there is no answer
        try:
            with pytest.raises(ProgramError, match=r"answered 'HTTP/1\.1 200 OK' with .*refusal"), drawn_on(page):
                pytest.fail("it was answered")
        finally:
            process.resume()


@pytest.mark.slow
def test_training_is_measured_beside_the_tutorials_loop(data: FashionMNIST) -> None:
    ours, tutorials = training_rates(num_epochs=1, num_images=5_000)
    assert ours > tutorials > 100
