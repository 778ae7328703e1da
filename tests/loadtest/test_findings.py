"""The search for the highest rate, the rules of validity and the verdict, on measurements that are made up."""

from html import escape
from typing import Any

import numpy as np
import pytest

from atelier.errors import ProgramError, UsageError
from loadtest.config import LoadTestConfig, parse_arguments
from loadtest.load.records import Share, histogram_from
from loadtest.load.scenarios import Load, schedule_ns
from loadtest.results.findings import FAIL, INTERRUPTED, INVALID, PASS, Findings
from loadtest.results.measurement import Measurement
from loadtest.results.page import page_from
from loadtest.results.plots import plots_from
from loadtest.results.search import MaxSearch, find_max, holds
from loadtest.results.sections import screen, sections


def measurement(
    latency_ms: float = 5.0, *, qps: float = 500.0, lateness_ms: float = 0.1, scenario: str = "server", **counts: int
) -> Measurement:
    histograms = {"latency": latency_ms, "lateness": lateness_ms, "queue": 1, "inference": 1, "transport": 1}
    share = Share(
        histograms={name: histogram_from(np.full(100, 1e3 * value)).encode() for name, value in histograms.items()},
        counts={"correct": 100, "images": 100, "within_bound": 100} | counts,
        faults=[f"request 7: {name}" for name in counts],
    )
    load = Load(contender="served", scenario=scenario, duration_s=1.0, target_qps=qps)
    return Measurement(load=load, shares=(share,), elapsed_s=1.0)


def findings(run: Measurement, **settings: Any) -> Findings:
    found = Findings(config=LoadTestConfig(), reference="the reference's logits", **settings)
    found.runs["served", run.load.scenario] = [run]
    return found


@pytest.mark.parametrize("limit_qps", [30.0, 777.0, 12_000.0])
def test_highest_rate_is_found_within_five_per_cent_and_confirmed_five_times(limit_qps: float) -> None:
    """A server whose latency jumps at `limit_qps`."""
    search = MaxSearch(latency_p99_ms=15.0)
    find_max(search, lambda qps: measurement(5.0 if qps <= limit_qps else 50.0, qps=qps), start_qps=1000.0)
    assert limit_qps / 1.05 <= search.qps <= limit_qps
    assert [run.load.target_qps for run in search.confirmations] == [search.qps] * 5
    assert "p99 50.0 ms, over 15 ms" in search.limit
    assert len(search.probes) < 25


def test_rate_that_does_not_hold_five_times_is_lowered() -> None:
    search = MaxSearch(latency_p99_ms=15.0)
    seen: list[float] = []

    def probe(qps: float) -> Measurement:
        seen.append(qps)
        is_unlucky = seen.count(qps) == 3  # the second confirmation
        return measurement(50.0 if qps > 1000.0 or (is_unlucky and qps > 900.0) else 5.0, qps=qps)

    find_max(search, probe, start_qps=1000.0)
    assert search.qps < 1000.0
    assert all(holds(run, 15.0) for run in search.confirmations)


def test_no_rate_that_holds_is_an_error_that_says_why() -> None:
    search = MaxSearch(latency_p99_ms=15.0)
    with pytest.raises(ProgramError, match=r"NO_RATE_HOLDS: no rate held p99 within 15 ms .* 1 lost"):
        find_max(search, lambda qps: measurement(qps=qps, lost=1), start_qps=100.0)


def test_late_generator_makes_a_measurement_invalid() -> None:
    assert measurement(lateness_ms=2.9).invalid_because == []  # a fifth of the bound of 15 ms
    assert measurement(lateness_ms=3.2).invalid_because == ["the generator was late: p99 3.2 ms, at most 3.0 ms may be"]
    assert measurement(100.0, lateness_ms=19.0).invalid_because == []  # a fifth of the latency


@pytest.mark.parametrize(
    ("run", "verdict", "why"),
    [
        (measurement(), PASS, ""),
        (measurement(16.0), FAIL, "server: p99 16.0 ms, over 15 ms"),
        (measurement(16.0, scenario="offline"), PASS, ""),
        (measurement(wrong=1), FAIL, "server: 1 wrong"),
        (measurement(lost=2), FAIL, "server: 2 lost"),
        (measurement(refused=3), FAIL, "server: 3 refused"),
        (measurement(lateness_ms=4.0), INVALID, "server: the generator was late"),
        (measurement(lateness_ms=4.0, wrong=1), FAIL, "server: 1 wrong"),
    ],
)
def test_verdict(run: Measurement, verdict: str, why: str) -> None:
    found = findings(run)
    assert found.verdict()[0] == verdict
    assert any(reason.startswith(why) for reason in found.verdict()[1]) or not why
    assert screen(found).splitlines()[-1].startswith(f"{verdict}: ")


def test_round_of_a_late_generator_does_not_count_if_most_rounds_do() -> None:
    found = findings(measurement(5.0))
    rounds = found.runs["served", "server"]
    rounds += [measurement(5.0), measurement(90.0, lateness_ms=40.0)]
    assert found.verdict() == (PASS, [])
    assert found.mark("served", "server") == "2 of 3 valid"
    assert found.rows()["served", "server"].percentile_ms(99.0) == pytest.approx(5.0, rel=0.01)
    rounds[0] = measurement(90.0, lateness_ms=40.0)
    assert found.verdict()[0] == INVALID
    assert found.mark("served", "server") == "INVALID"


def test_wrong_answer_counts_in_an_invalid_round_too() -> None:
    found = findings(measurement())
    found.runs["served", "server"] += [measurement(), measurement(lateness_ms=40.0, wrong=1)]
    assert found.verdict() == (FAIL, ["server: 1 wrong"])


def test_failed_run_names_the_requests() -> None:
    assert "server: request 7: wrong" in screen(findings(measurement(wrong=1)))


def test_wrong_answers_of_the_sweep_are_named_on_the_screen_and_on_the_page() -> None:
    found = findings(measurement(), sweep=[measurement(qps=2000.0, wrong=1), measurement(qps=3000.0, refused=3)])
    for text in (screen(found), page_from(found, {})):
        assert "server: request 7: wrong" in text
        assert "request 7: refused" not in text


@pytest.mark.slow
def test_screen_and_page_show_the_same_tables() -> None:
    found = findings(measurement(), sweep=[measurement(qps=2000.0, refused=3)])
    text, page = screen(found), page_from(found, {})
    assert [section.title for section in sections(found)] == ["Contenders", "Where the time went", "Through saturation"]
    for section in sections(found):
        assert section.note in text and escape(section.note) in page
        for cell in (cell for row in (section.header, *section.rows) for cell in row if cell):
            assert f"| {cell} " in text
            assert f">{escape(cell)}</t" in page
    assert '<tr class="served"><td>served server</td>' in page


def test_latencies_are_drawn_only_of_what_has_a_line() -> None:
    assert "Latency" in plots_from(findings(measurement(5.0, scenario="server")))
    assert plots_from(findings(measurement(5.0, scenario="offline"))) == {}


def test_sizes_of_batches_add_up_over_processes() -> None:
    one, other = (Share(batch_sizes=sizes) for sizes in ({1: 10, 4: 8}, {4: 4, 64: 64}))
    run = Measurement(load=measurement().load, shares=(one, other), elapsed_s=1.0)
    assert run.batch_sizes == {1: 10, 4: 12, 64: 64}
    assert run.mean_batch_size == pytest.approx(86 / 14)  # ten of 1, three of 4, one of 64
    assert measurement().batch_sizes == {}


def test_nothing_measured_is_no_pass() -> None:
    found = Findings(config=LoadTestConfig(), sweep=[measurement()])
    assert found.verdict()[0] == INVALID


def test_interrupted_run_does_not_pass() -> None:
    assert findings(measurement(), interrupted=True).verdict()[0] == INTERRUPTED


def test_schedule_is_a_poisson_process_of_the_rate() -> None:
    gaps_s = np.diff(schedule_ns(seed=3, target_qps=1000.0, num_requests=20_000)) / 1e9
    assert gaps_s.mean() == pytest.approx(1e-3, rel=0.03)
    assert gaps_s.std() == pytest.approx(1e-3, rel=0.03)  # of an exponential distribution, its mean


def test_short_run_is_no_mlperf_result_and_says_so() -> None:
    assert "not a formal MLPerf result, which asks for --duration-s 600" in screen(findings(measurement()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure", "server,bach"], "--measure is 'server,bach'"),
        (["--protocol", "oip"], "--target is ''"),
        (["--duration-s", "0"], "--duration-s is 0.0"),
        (["--processes", "0"], "--processes is 0"),
    ],
)
def test_bad_option_is_named_with_its_limit(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=f"BAD_OPTIONS: {message} .it must be"):
        parse_arguments(arguments)
