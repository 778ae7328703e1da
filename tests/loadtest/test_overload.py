"""Load with deadlines, past what a server can do, tells the truth about one of which everything is known."""

from dataclasses import replace

import pytest

from loadtest.bench.overload import (
    DEADLINES_MS,
    FACTORS,
    SIZES,
    Run,
    overload_rows,
    run_from,
)
from loadtest.load.scenarios import load_with_deadline
from loadtest.results.measurement import Measurement
from tests.loadtest.test_truth import measured, null_server

NUM_WARM_UP = 24


def offered(
    client: str, *arguments: object, rate: float = 100, deadline_s: float = 1.0, size: int = 1, duration_s: float = 1.0
) -> Measurement:
    load = load_with_deadline("null", rate, deadline_s, duration_s, size)
    with null_server(*arguments) as server:
        return measured(server, replace(load, client=client))


@pytest.mark.slow
def test_every_answer_in_time_is_goodput_and_its_latency_counts_from_when_it_was_due(client: str) -> None:
    run = offered(client, "--latency-ms", 20)
    assert 50 < run.count("in_time") == run.count("within_bound")  # a busy machine sends not all
    assert run_from(run).goodput == run.count("within_bound")
    assert run.percentile_ms(50.0) >= 20


@pytest.mark.slow
def test_answers_after_the_deadline_are_no_goodput(client: str) -> None:
    run = offered(client, "--latency-ms", 400, deadline_s=0.25)
    assert run.count("within_bound") == run.count("refused") == 0
    assert 50 < run.count("in_time") <= run.count("expired") == run.num_requests


@pytest.mark.slow
def test_refusal_is_counted_with_its_time(client: str) -> None:
    run = offered(client, "--latency-ms", 5, "--fault", "refuse", "--fault-at", NUM_WARM_UP + 10)
    assert (run.count("refused"), run.count("within_bound")) == (1, run.count("in_time") - 1)
    assert 4 <= (run_from(run).refusal_p99_ms or 0) < 1_000  # the server's loop counts in whole milliseconds


@pytest.mark.slow
def test_server_that_cancels_a_first_call_is_asked_again(client: str) -> None:
    """As grpcio does for a while after a load of which many calls were given up."""
    run = offered(client, "--fault", "cancel", "--fault-at", 3)
    assert 50 < run.count("in_time") == run.count("correct")


@pytest.mark.slow
def test_requests_of_several_images_are_judged_by_all_of_them(client: str) -> None:
    right = offered(client, size=3)
    assert 50 < right.count("in_time") == right.count("correct")
    assert right.count("images") == 3 * right.count("correct")
    swapped = offered(client, "--fault", "swap", "--fault-at", NUM_WARM_UP + 10, size=3)
    assert (swapped.count("wrong"), swapped.count("correct")) == (1, swapped.count("in_time") - 1)


@pytest.mark.slow
def test_generator_that_cannot_keep_its_schedule_says_so(client: str) -> None:
    run = offered(client, rate=400_000, deadline_s=0.05, duration_s=0.2)
    assert run.num_requests > 40_000
    assert not run_from(run).was_offered


def run_at(factor: float) -> Run:
    """Does as a server that answers 1,000 a second, 200 past saturation, and a generator that reaches 5,000."""
    goodput = 1000 * factor if factor <= 1 else 200
    offered_per_s = min(1000 * factor, 5000)
    was_offered = offered_per_s == 1000 * factor
    return Run(
        offered_per_s=offered_per_s,
        was_offered=was_offered,
        goodput=goodput,
        refusal_p99_ms=2.0 if factor > 1 else None,
    )


def test_rows_hold_goodput_against_the_best_up_to_the_peak_and_what_was_not_offered_is_invalid() -> None:
    runs = {
        (size, deadline, factor): [run_at(factor)] for size in SIZES for deadline in DEADLINES_MS for factor in FACTORS
    }
    rows = overload_rows("ours", runs, least_share=0.9, refusal_ms=5)
    assert len(rows) == 2 * 2 * (len(FACTORS) + 1)
    verdicts = [row.verdict for row in rows[: len(FACTORS) + 1]]
    assert verdicts[:2] == ["", ""]
    assert verdicts[2:4] == ["at least 0.9: MISSED"] * 2
    assert verdicts[4] == "INVALID: of it or of the peak too little was offered; here, 5,000/s"
    assert rows[2].values == [pytest.approx(0.2)]
    assert rows[5].cells()[3:] == ("2.00 (2.00 to 2.00)", "at most 5: met")


def test_repeats_in_which_a_rate_was_not_offered_are_left_out_and_half_of_them_are_too_many() -> None:
    def run_of(goodput: float, was_offered: bool = True) -> Run:
        return Run(offered_per_s=1000, was_offered=was_offered, goodput=goodput, refusal_p99_ms=None)

    runs = {(1, 100, factor): [run_of(1000)] * 3 for factor in FACTORS}
    runs[1, 100, 2.0] = [run_of(100, was_offered=False), run_of(990), run_of(980)]
    runs[1, 100, 1.0] = [run_of(1000), run_of(1000), run_of(500, was_offered=False)]
    rows = {row.name: row for row in overload_rows("ours", runs, least_share=0.9, refusal_ms=5)}
    assert rows["ours: 5 times the peak, 1 image a request, in 100 ms"].values == [1.0, 1.0]
    assert rows["ours: 2 times the peak, 1 image a request, in 100 ms"].invalid


def test_without_a_peak_there_is_no_ratio() -> None:
    run = Run(offered_per_s=800, was_offered=False, goodput=700, refusal_p99_ms=None)
    rows = overload_rows("ours", {(1, 100, factor): [run] for factor in FACTORS}, least_share=0.9, refusal_ms=5)
    assert {row.yardstick is None and bool(row.invalid) for row in rows} == {True}
    assert rows[0].cells()[1:4] == ("700 right answers/s", "", "700 (700 to 700)")
