"""Open-loop load with deadlines tells the truth about a server of which everything is known."""

import statistics
from dataclasses import replace

import pytest

from loadtest.bench.open_loop import OpenLoad, Outcomes, offer
from loadtest.bench.overload import FACTORS, Run, measure_overload, overload_rows
from loadtest.load.protocols import ServerProtocol
from tests.loadtest.null_server import NUM_IMAGES
from tests.loadtest.test_truth import null_server

NUM_CONNECTING = 2  # calls of one process that only connect


def offered(load: OpenLoad, *arguments: object, num_processes: int = 1) -> Outcomes:
    with null_server(*arguments) as server:
        return offer(server, NUM_IMAGES, load, num_processes)


def load(client: str, rate: float = 100, deadline_s: float = 1.0, duration_s: float = 1.0) -> OpenLoad:
    return OpenLoad(rate=rate, deadline_s=deadline_s, duration_s=duration_s, client=client)


def test_every_answer_in_time_is_goodput_and_its_latency_counts_from_when_it_was_due(client: str) -> None:
    outcomes = offered(load(client), "--latency-ms", 20, num_processes=2)
    assert outcomes.num_due == 100
    assert 50 < outcomes.num_in_time == outcomes.num_right == len(outcomes.latency_us)  # a busy machine sends not all
    assert outcomes.goodput(load(client)) == outcomes.num_right
    assert statistics.median(outcomes.latency_us) >= 20_000


def test_answers_after_the_deadline_are_no_goodput(client: str) -> None:
    outcomes = offered(load(client, deadline_s=0.5), "--latency-ms", 800)
    assert outcomes.num_right == 0
    assert 50 < outcomes.num_in_time == outcomes.num_expired


def test_refusal_is_counted_with_its_time_and_a_swapped_answer_is_wrong(client: str) -> None:
    refused = offered(load(client), "--latency-ms", 5, "--fault", "refuse", "--fault-at", NUM_CONNECTING + 10)
    assert (refused.num_refused, refused.num_right) == (1, refused.num_in_time - 1)
    assert 5_000 <= refused.refusal_us[0] < 1_000_000
    swapped = offered(load(client), "--fault", "swap", "--fault-at", NUM_CONNECTING + 10)
    assert (swapped.num_wrong, swapped.num_right) == (1, swapped.num_in_time - 1)


def test_requests_of_several_images_are_judged_by_all_of_them(client: str) -> None:
    several = replace(load(client), images_per_request=3)
    right = offered(several)
    assert 50 < right.num_in_time == right.num_right
    swapped = offered(several, "--fault", "swap", "--fault-at", NUM_CONNECTING + 10)
    assert (swapped.num_wrong, swapped.num_right) == (1, swapped.num_in_time - 1)


def test_generator_that_cannot_keep_its_schedule_says_so(client: str) -> None:
    impossible = load(client, rate=200_000, deadline_s=0.05, duration_s=0.2)
    outcomes = offered(impossible)
    assert outcomes.num_due == 40_000
    assert not outcomes.is_offered
    assert Outcomes(num_due=100, num_in_time=95).is_offered


def of_known_capacity(_server: ServerProtocol, _num_images: int, load: OpenLoad) -> Outcomes:
    """As a server would do that answers 1,000 a second, 200 past saturation, and a generator that reaches 5,000."""
    num_due = round(load.rate * load.duration_s)
    goodput = min(load.rate, 1000) if load.rate <= 1000 else 200
    refusals = [2000.0] * max(0, num_due - 1000)
    return Outcomes(
        num_due=num_due,
        num_in_time=min(num_due, round(5000 * load.duration_s)),
        num_right=round(goodput * load.duration_s),
        refusal_us=refusals,
    )


def test_rows_hold_goodput_against_the_best_up_to_the_peak_and_what_was_not_offered_is_invalid() -> None:
    with null_server() as server:
        runs = measure_overload(server, NUM_IMAGES, {1: 1000, 64: 1000}, 1.0, of_known_capacity)
    rows = overload_rows("ours", {key: [run] for key, run in runs.items()}, least_share=0.9, refusal_ms=5)
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
