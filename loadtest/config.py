"""Settings of the load test: one frozen dataclass, checked when made, and the command line that fills it."""

import os
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import UsageError
from atelier.settings import parse_settings
from loadtest.load.scenarios import SCENARIOS

REFERENCES, SWEEP, MAX = "references", "sweep", "max"
PARTS = (REFERENCES, *SCENARIOS, SWEEP, MAX)


@dataclass(frozen=True, kw_only=True)
class LoadTestConfig:
    """Settings of one load test. Raises UsageError, naming value, limit and cure, if one of them cannot be."""

    target: str = ""
    """HOST:PORT or unix:PATH of the server; without one, the newest version is served here."""

    protocol: str = "atelier"
    """atelier, or oip: the Open Inference Protocol that Triton and KServe speak."""

    repository: Path = Path("artifacts/models")
    """What `python -m export` wrote: the reference is taken here."""

    reference_repository: Path | None = None
    """Where the version is whose program is the reference, if not there: only one in fp32 has the program."""

    device: str = "auto"
    """Device of the server that is started here and of the references: cpu, cuda, cuda:1; auto takes a GPU if there is
    one."""

    front_end: str = "auto"
    """Front end of the server that is started here: auto, native or grpcio."""

    report_dir: Path = Path("artifacts/loadtest")
    """Where report.json and report.html are written."""

    measure: str = ",".join(PARTS[:-1])
    """Parts of the test, separated by commas. references: PyTorch, the raw runtime and an echo server, beside the
    server; single_stream, multi_stream, server, offline: MLPerf's scenarios; sweep: rates from a quarter of saturation
    to twice past it; max: the highest rate that holds --latency-p99-ms, confirmed five times."""

    repeats: int = 3
    """How often each contender is measured, in turn; what counts is the ratio within a repeat."""

    duration_s: float = 2.5
    """How long each measurement takes; MLPerf asks for 600."""

    target_qps: float = 500.0
    """Requests per second in the `server` scenario, arriving as a Poisson process."""

    latency_p99_ms: float = 15.0
    """The bound on the 99th percentile of latency that the verdict holds."""

    processes: int = max(1, min(8, (os.cpu_count() or 1) // 2))
    """Processes of the generator; one for each two cores, up to eight."""

    def __post_init__(self) -> None:
        self._check("protocol", self.protocol in ("atelier", "oip"), "atelier or oip")
        self._check("target", self.protocol == "atelier" or bool(self.target), "HOST:PORT with --protocol oip")
        self._check("measure", self.parts <= set(PARTS), f"of {','.join(PARTS)}, separated by commas")
        for name in ("repeats", "processes"):
            self._check(name, 1 <= getattr(self, name) <= 100_000, "1 to 100,000")
        for name in ("target_qps", "latency_p99_ms"):
            self._check(name, 0 < getattr(self, name) < 1e7, "more than 0")
        self._check("duration_s", 0.2 <= self.duration_s <= 86_400, "0.2 seconds to a day")

    @property
    def parts(self) -> set[str]:
        """What to measure."""
        return {name.strip() for name in self.measure.split(",")}

    @property
    def scenarios(self) -> list[str]:
        """The scenarios among them, in MLPerf's order."""
        return [name for name in SCENARIOS if name in self.parts]

    def _check(self, name: str, is_met: bool, limit: str) -> None:
        if not is_met:
            flag = "--" + name.replace("_", "-")
            raise UsageError("BAD_OPTIONS", f"{flag} is {getattr(self, name)!r}", f"it must be {limit}")


EPILOG = """
  python -m loadtest                                            start the exported model, and hold it against PyTorch
  python -m loadtest --target localhost:50051                   the same with a server that runs already
  python -m loadtest --target localhost:8001 --protocol oip     Triton, KServe or any other that speaks it
  python -m loadtest --measure max                              only: what is the highest rate with p99 within 15 ms?
  python -m loadtest --repeats 5 --duration-s 60                a quarter of an hour per contender, for figures to keep

Every answer is compared with the reference's. Latency counts from when a request was due; a generator that could not
keep its schedule says INVALID. Ctrl-C stops, and reports what was measured until then.

exit codes: 0 PASS; 1 FAIL, answers were wrong, lost or late; 75 INVALID, the generator was too slow: try again on a
quieter machine or with a lower rate; 130 stopped by Ctrl-C; others as in sysexits.h
"""


def parse_arguments(arguments: list[str]) -> LoadTestConfig:
    """Reads the settings from a command line: a flag for every field, with its meaning as the help."""
    return parse_settings(
        LoadTestConfig,
        arguments,
        prog="python -m loadtest",
        description="Load-test the served model beside PyTorch, the raw runtime and a bare gRPC echo server.",
        epilog=EPILOG,
    )
