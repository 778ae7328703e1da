"""The load test's settings: one frozen dataclass, checked when made, and the command line that fills it."""

import os
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import UsageError
from atelier.settings import parse_settings
from loadtest.load.scenarios import SCENARIOS


@dataclass(frozen=True, kw_only=True)
class LoadTestConfig:
    """Raises UsageError, naming value, limit and cure, where a setting cannot be."""

    target: str = ""
    """HOST:PORT or unix:PATH of the server; without one, the newest version is served here."""

    protocol: str = "atelier"
    """atelier, or oip: the Open Inference Protocol that Triton and KServe speak."""

    model: str = "lenet5"
    """Name of the model, in the repository and for oip on the server."""

    repository: Path = Path("artifacts/models")
    """What `python -m export` wrote: the reference is taken here."""

    reference_repository: Path | None = None
    """Where the version is whose program is the reference, if not there: only one in fp32 has the program."""

    device: str = "auto"
    """Of the server that is started here and of the references: cpu, cuda, cuda:1; auto takes a GPU if there is one."""

    front_end: str = "auto"
    """Of the server that is started here: auto, native or grpcio."""

    data_dir: Path | None = None
    """Where Fashion-MNIST is; else it is looked for in the usual places."""

    unverified_data: bool = False
    """For tests: any IDX files."""

    output_dir: Path = Path("artifacts/loadtest")
    """Where report.json and report.html are written."""

    scenarios: str = ",".join(SCENARIOS)
    """Which of them to measure, separated by commas; none: just the rest."""

    rounds: int = 3
    """How often each contender is measured, in turn; what counts is the ratio within a round."""

    duration_s: float = 2.5
    """How long each measurement takes; MLPerf asks for 600."""

    target_qps: float = 500.0
    """Requests per second in the `server` scenario, arriving as a Poisson process."""

    latency_p99_ms: float = 15.0
    """The bound on the 99th percentile of latency that the verdict holds."""

    images_per_request: int = 1
    """Images of one request in the `server` scenario."""

    samples_per_query: int = 8
    """Images of one request in `multi_stream`."""

    offline_images_per_request: int = 64
    """Images of one request in `offline`."""

    in_flight: int = 16
    """Requests that each process keeps in flight in `offline`."""

    processes: int = max(1, min(4, (os.cpu_count() or 1) // 2))
    """Processes of the generator; one for each two cores, up to four."""

    timeout_s: float = 5.0
    """When a request that has no answer counts as lost."""

    reference_threads: int = 1
    """Threads of PyTorch and the raw runtime; an inference on our server has one."""

    atol: float | None = None
    """How far a probability may be from the reference's, a logit ten times as far; else 1e-4, more below fp32."""

    top_k: int = 1
    """Classes to ask for and compare per image; 10 compares all that the model says."""

    seed: int = 0
    """Of arrivals and of the choice of images."""

    find_max: bool = False
    """Also search for the highest rate that holds --latency-p99-ms; confirm it 5 times."""

    no_sweep: bool = False
    """Leave out the rates from a quarter of saturation to twice past it."""

    no_references: bool = False
    """Leave out PyTorch, the raw runtime and the echo server."""

    def __post_init__(self) -> None:
        self._check("protocol", self.protocol in ("atelier", "oip"), "atelier or oip")
        self._check("target", self.protocol == "atelier" or bool(self.target), "HOST:PORT with --protocol oip")
        unknown = set(self.chosen_scenarios) - set(SCENARIOS)
        self._check("scenarios", not unknown, f"of {','.join(SCENARIOS)}, separated by commas, or none")
        for name in (
            "rounds",
            "images_per_request",
            "samples_per_query",
            "offline_images_per_request",
            "in_flight",
            "processes",
            "reference_threads",
        ):
            self._check(name, 1 <= getattr(self, name) <= 100_000, "1 to 100,000")
        self._check("atol", self.atol is None or 0 < self.atol < 1e7, "more than 0")
        for name in ("target_qps", "latency_p99_ms", "timeout_s"):
            self._check(name, 0 < getattr(self, name) < 1e7, "more than 0")
        self._check("duration_s", 0.2 <= self.duration_s <= 86_400, "0.2 seconds to a day")
        self._check("top_k", 1 <= self.top_k <= 10, "1 to 10")
        self._check("seed", 0 <= self.seed < 2**31, "0 to 2147483647")

    @property
    def chosen_scenarios(self) -> list[str]:
        """In the order of SCENARIOS, as far as they are known."""
        chosen = [] if self.scenarios == "none" else [name.strip() for name in self.scenarios.split(",")]
        return sorted(chosen, key=lambda name: (*SCENARIOS, name).index(name))

    def _check(self, name: str, is_met: bool, limit: str) -> None:
        if not is_met:
            flag = "--" + name.replace("_", "-")
            raise UsageError("BAD_OPTIONS", f"{flag} is {getattr(self, name)!r}", f"it must be {limit}")


EPILOG = """
  python -m loadtest                                            start the exported model, and hold it against PyTorch
  python -m loadtest --target localhost:50051                   the same with a server that runs already
  python -m loadtest --target localhost:8001 --protocol oip     Triton, KServe or any other that speaks it
  python -m loadtest --scenarios none --no-sweep --find-max     only: what is the highest rate with p99 within 15 ms?
  python -m loadtest --rounds 5 --duration-s 60                 a quarter of an hour per contender, for figures to keep

Every answer is compared with the reference's. Latency counts from when a request was due; a generator that could not
keep its schedule says INVALID. Ctrl-C stops, and reports what was measured until then.

exit codes: 0 PASS; 1 FAIL, answers were wrong, lost or late; 75 INVALID, the generator was too slow: try again on a
quieter machine or with a lower rate; 130 stopped by Ctrl-C; others as in sysexits.h
"""


def parse_arguments(arguments: list[str]) -> LoadTestConfig:
    """The settings from a command line; a flag for every field, with its meaning as the help."""
    return parse_settings(
        LoadTestConfig,
        arguments,
        prog="python -m loadtest",
        description="Load-test the served model beside PyTorch, the raw runtime and a bare gRPC echo server.",
        epilog=EPILOG,
    )
