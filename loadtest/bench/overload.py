"""Goodput past saturation: what a server still answers in time when it is offered several times what it can do."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from loadtest.bench.rows import Row
from loadtest.front_ends import NATIVE
from loadtest.load.generator import Generators
from loadtest.load.scenarios import load_with_deadline
from loadtest.results.measurement import Measurement

FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
# A request of one image costs a generator as much as the server: if they share cores, most rates past the peak cannot
# be offered. Of 64, the model takes nearly all of the time, and ten times the peak can be, as with a paced device.
SIZES = (1, 64)
DEADLINES_MS = (100, 20)
DURATION_S = 3.0
LEAST_DURATION_S = 0.25
ENOUGH_SHARE = 0.95  # of the requests, sent in time, make a run count
GOODPUT = {NATIVE: (0.9, 5.0)}  # the least past saturation, of its best up to it; and ms that a refusal may take


@dataclass(frozen=True, kw_only=True)
class Run:
    """One repeat at one rate, in requests: figures to keep."""

    offered_per_s: float
    was_offered: bool  # the generator kept its schedule; if not, the run says nothing of the server at that rate
    goodput: float  # right answers within the deadline, a second
    refusal_p99_ms: float | None  # None if nothing was refused


Runs = Mapping[tuple[int, int, float], list[Run]]  # by images of a request, deadline and factor; one a repeat


def measure_overload(
    generators: Generators, server: str, peaks: Mapping[int, float], scale: float
) -> dict[tuple[int, int, float], Run]:
    """Offers multiples of the peaks, in requests/s by the images of each, with each deadline."""
    runs = {}
    for size, deadline_ms, factor in product(peaks, DEADLINES_MS, FACTORS):
        duration_s = max(LEAST_DURATION_S, DURATION_S * scale)
        load = load_with_deadline(server, factor * peaks[size], deadline_ms / 1e3, duration_s, size)
        runs[size, deadline_ms, factor] = run_from(generators.measure(load))
    return runs


def run_from(found: Measurement) -> Run:
    """Keeps the figures of a load with a deadline."""
    has_refused = found.histograms["refusal"].get_total_count()
    return Run(
        offered_per_s=found.count("in_time") / found.load.duration_s,
        was_offered=found.count("in_time") >= ENOUGH_SHARE * found.num_requests,
        goodput=found.count("within_bound") / found.load.duration_s,
        refusal_p99_ms=found.percentile_ms(99.0, "refusal") if has_refused else None,
    )


def goodput_rows(runs: Mapping[str, Runs]) -> list[Row]:
    """Makes the rows past saturation of every server: a front end, or one with its device behind a comma."""
    rows = []
    for name, of_server in runs.items():
        least_share, refusal_ms = GOODPUT.get(name.partition(",")[0], (None, None))
        rows += overload_rows(name, of_server, least_share=least_share, refusal_ms=refusal_ms)
    return rows


def overload_rows(name: str, runs: Runs, *, least_share: float | None, refusal_ms: float | None) -> list[Row]:
    """Makes the rows of one server: goodput over its best up to saturation, and how long a refusal takes."""
    rows = []
    for size, deadline_ms in dict.fromkeys((size, deadline_ms) for size, deadline_ms, _ in runs):
        of_each = {factor: runs[size, deadline_ms, factor] for factor in FACTORS}
        load = f"{size} image{'s' * (size > 1)} a request, in {deadline_ms} ms"
        rows += [*_goodput_rows(name, load, of_each, least_share), *_refusal_rows(name, load, of_each, refusal_ms)]
    return rows


def _goodput_rows(name: str, load: str, runs: Mapping[float, list[Run]], least_share: float | None) -> list[Row]:
    """Counts the repeats in which this rate was offered, and the peak too; INVALID if those are not most."""
    # Without what the peak gave, the best up to it may be that of half the rate.
    repeats = zip(*(of_factor for factor, of_factor in runs.items() if factor <= 1), strict=True)
    best = [max(run.goodput for run in repeat) if repeat[-1].was_offered else 0.0 for repeat in repeats]
    rows = []
    for factor, of_factor in runs.items():
        pairs = list(zip(of_factor, best, strict=True))
        valid = [(run, of_repeat) for run, of_repeat in pairs if run.was_offered and of_repeat]
        is_valid = 2 * len(valid) > len(pairs)
        lowest = min(run.offered_per_s for run in of_factor)
        rows.append(
            Row(
                name=f"{name}: {factor:g} times the peak, {load}",
                unit="right answers/s",
                ours=[run.goodput for run, _ in valid or pairs],
                yardstick=[of_repeat for _, of_repeat in valid] or None,  # without a peak there is no ratio
                yardstick_name="its best up to the peak",
                target=least_share if factor > 1 else None,
                invalid="" if is_valid else f"of it or of the peak too little was offered; here, {lowest:,.0f}/s",
            )
        )
    return rows


def _refusal_rows(name: str, load: str, runs: Mapping[float, list[Run]], target: float | None) -> list[Row]:
    """Counts the runs past the peak that were offered and refused anything; INVALID if none was offered."""
    past = [run for factor, of_factor in runs.items() if factor > 1 for run in of_factor]
    offered = [run for run in past if run.was_offered]
    taken = [run.refusal_p99_ms for run in offered or past if run.refusal_p99_ms is not None]
    if not taken:
        return []
    what = f"{name}: a refusal past the peak, p99, {load}"
    invalid = "" if offered else "no rate past the peak was offered"
    return [Row(name=what, unit="ms", ours=taken, target=target, is_limit=True, invalid=invalid)]
