"""Goodput past saturation: what a server still answers in time when it is offered several times what it can do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from loadtest.bench.open_loop import OpenLoad, Outcomes, offer
from loadtest.bench.rows import Row
from loadtest.protocols import ServerProtocol

FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
DEADLINES_MS = (100, 20)
DURATION_S = 3.0
LEAST_DURATION_S = 0.5

# What offers a load to a server that knows so many images.
Offer = Callable[[ServerProtocol, int, OpenLoad], Outcomes]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One repeat at one rate: figures to keep."""

    offered_per_s: float
    was_offered: bool  # the generator kept its schedule
    goodput: float
    refusal_p99_ms: float | None  # None if nothing was refused


Runs = Mapping[tuple[int, float], list[Run]]  # by deadline and factor; one a repeat


def measure_overload(
    server: ServerProtocol, num_images: int, peak: float, scale: float, offer_load: Offer = offer
) -> dict[tuple[int, float], Run]:
    """Offers multiples of `peak`, in requests/s, with each deadline."""
    duration_s = max(LEAST_DURATION_S, DURATION_S * scale)
    runs = {}
    for deadline_ms in DEADLINES_MS:
        for factor in FACTORS:
            load = OpenLoad(rate=factor * peak, deadline_s=deadline_ms / 1e3, duration_s=duration_s)
            runs[deadline_ms, factor] = _run_from(load, offer_load(server, num_images, load))
    return runs


def _run_from(load: OpenLoad, outcomes: Outcomes) -> Run:
    refusal_us = outcomes.refusal_us
    return Run(
        offered_per_s=outcomes.num_in_time / load.duration_s,
        was_offered=outcomes.is_offered,
        goodput=outcomes.goodput(load),
        refusal_p99_ms=float(np.percentile(refusal_us, 99)) / 1e3 if len(refusal_us) else None,
    )


def overload_rows(name: str, runs: Runs, *, least_share: float | None, refusal_ms: float | None) -> list[Row]:
    """What the runs say of one server: goodput over its best up to saturation, and how long a refusal takes."""
    rows = []
    for deadline_ms in DEADLINES_MS:
        best = [
            max(run.goodput for run in repeat)
            for repeat in zip(*(runs[deadline_ms, factor] for factor in FACTORS if factor <= 1), strict=True)
        ]
        for factor in FACTORS:
            of_factor = runs[deadline_ms, factor]
            offered = min(run.offered_per_s for run in of_factor)
            rows.append(
                Row(
                    name=f"{name}: {factor:g} times the peak, in {deadline_ms} ms",
                    unit="right answers/s",
                    ours=[run.goodput for run in of_factor],
                    yardstick=[max(value, 1e-9) for value in best],
                    yardstick_name="its best up to the peak",
                    target=least_share if factor > 1 else None,
                    invalid="" if all(run.was_offered for run in of_factor) else f"only {offered:,.0f}/s were offered",
                )
            )
        rows += _refusal_rows(name, runs, deadline_ms, refusal_ms)
    return rows


def _refusal_rows(name: str, runs: Runs, deadline_ms: int, target: float | None) -> list[Row]:
    """Of each factor past the peak at which anything was refused, the slowest."""
    past = [run.refusal_p99_ms for factor in FACTORS if factor > 1 for run in runs[deadline_ms, factor]]
    taken = [value for value in past if value is not None]
    if not taken:
        return []
    what = f"{name}: a refusal past the peak, p99, deadline {deadline_ms} ms"
    return [Row(name=what, unit="ms", ours=taken, target=target, is_limit=True)]
