"""Findings of one load test: everything that it measured, and the verdict on it."""

import os
from dataclasses import dataclass, field

from loadtest.backend_speed import Speed
from loadtest.config import LoadTestConfig
from loadtest.results.measurement import Measurement, together
from loadtest.results.search import MaxSearch

MLPERF_DURATION_S = 600  # see its rules
PASS, FAIL, INVALID, INTERRUPTED = "PASS", "FAIL", "INVALID", "INTERRUPTED"
EXIT_CODES = {PASS: 0, FAIL: 1, INVALID: os.EX_TEMPFAIL, INTERRUPTED: 130}


@dataclass(kw_only=True)
class Findings:
    """Filled in as the test goes on, so that Ctrl-C keeps what is there."""

    config: LoadTestConfig
    model: str = ""  # what is served, and by what
    reference: str = ""  # whose logits the answers were held against
    backends: str = ""  # what runs in this process, and on what
    notes: list[str] = field(default_factory=list)
    batch_rates: dict[str, dict[int, float]] = field(default_factory=dict)  # name -> images a batch -> images/s
    references: dict[tuple[str, int], list[Speed]] = field(default_factory=dict)  # (name, batch size)
    runs: dict[tuple[str, str], list[Measurement]] = field(default_factory=dict)  # ("served" or "echo", scenario)
    sweep: list[Measurement] = field(default_factory=list)
    search: MaxSearch | None = None
    memory: dict[str, int | None] = field(default_factory=dict)  # of the server, if it was started here
    interrupted: bool = False

    @property
    def measured_anything(self) -> bool:
        """Whether there is something to report."""
        return bool(self.runs or self.sweep or self.search)

    def rows(self) -> dict[tuple[str, str], Measurement]:
        """Sums up the repeats of each contender in each scenario, without those that are INVALID if most are not."""
        rows = {}
        for key, runs in self.runs.items():
            valid = [run for run in runs if not run.invalid_because]
            if runs:
                rows[key] = together(valid if 2 * len(valid) > len(runs) else runs)
        return rows

    def mark(self, contender: str, scenario: str) -> str:
        """Returns INVALID, or how many of the repeats count; "" if all do."""
        runs = self.runs[contender, scenario]
        num_valid = sum(not run.invalid_because for run in runs)
        if self.rows()[contender, scenario].invalid_because or 2 * num_valid <= len(runs):
            return "INVALID"
        return "" if num_valid == len(runs) else f"{num_valid} of {len(runs)} valid"

    @property
    def served(self) -> list[Measurement]:
        """The served model's rows."""
        return [run for (contender, _), run in self.rows().items() if contender == "served"]

    @property
    def asked(self) -> list[Measurement]:
        """All that the served model was asked at rates that it should bear: an answer counts in an INVALID run too."""
        rounds = [run for (contender, _), runs in self.runs.items() if contender == "served" for run in runs]
        return rounds + (self.search.confirmations if self.search else [])

    @property
    def faults(self) -> list[str]:
        """Names the first wrong, lost and refused answers; of a rate of the sweep only if some are wrong."""
        blamed = [*self.asked, *(run for run in self.sweep if run.count("wrong"))]
        return [f"{run.load.scenario}: {fault}" for run in blamed for fault in run.faults]

    def ratios(self, scenario: str) -> dict[str, list[float]]:
        """Divides images/s of the served model by each yardstick's, within each repeat."""
        served = self.runs.get(("served", scenario), [])
        yardsticks = {
            f"{name}, {size} at a time": [run.images_per_s for run in runs]
            for (name, size), runs in self.references.items()
        }
        yardsticks["echo"] = [run.images_per_s for run in self.runs.get(("echo", scenario), [])]
        return {
            name: [run.images_per_s / rate for run, rate in zip(served, rates, strict=False) if rate]
            for name, rates in yardsticks.items()
            if rates and served
        }

    @property
    def not_mlperf(self) -> str:
        """A sentence on why it does not count under MLPerf's rules; "" if nothing forbids it."""
        is_short = bool(self.served) and self.config.duration_s < MLPERF_DURATION_S
        return f"not a formal MLPerf result, which asks for --duration-s {MLPERF_DURATION_S}" if is_short else ""

    def verdict(self) -> tuple[str, list[str]]:
        """Returns PASS, FAIL, INVALID or INTERRUPTED, and why."""
        bound_ms = self.config.latency_p99_ms
        failed, invalid = [], []
        for run in self.asked:
            bad = [f"{run.count(name):,} {name}" for name in ("wrong", "lost", "refused") if run.count(name)]
            failed += [f"{run.load.scenario}: {', '.join(bad)}"] if bad else []
        for run in self.served:
            scenario = run.load.scenario
            invalid += [f"{scenario}: {reason}" for reason in run.invalid_because]
            p99_ms = run.percentile_ms(99.0)
            if scenario == "server" and not run.invalid_because and p99_ms > bound_ms:
                failed.append(f"{scenario}: p99 {p99_ms:.1f} ms, over {bound_ms:g} ms")
        failed += [
            f"sweep at {run.load.target_qps:,.0f}/s: {run.count('wrong')} wrong"
            for run in self.sweep
            if run.count("wrong")
        ]
        if failed:
            return FAIL, failed + invalid
        if self.interrupted:
            return INTERRUPTED, ["it ended early; what was measured until then is above"]
        if not self.asked:
            invalid.append("there is nothing to judge: a sweep goes where any server fails; measure a scenario too")
        return (INVALID, invalid) if invalid else (PASS, [])
