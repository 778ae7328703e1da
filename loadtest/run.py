"""The load test: one run that measures the served model beside its references, and ends with a verdict.

python -m loadtest                  (make loadtest)
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm

from atelier.errors import ProgramError
from atelier.machine import machine_facts
from loadtest.backend_speed import measure
from loadtest.config import MAX, REFERENCES, SWEEP, LoadTestConfig, parse_arguments
from loadtest.load.generator import Generators
from loadtest.load.load_clients import BEST
from loadtest.load.protocols import Reference
from loadtest.load.scenarios import Load, load_with_deadline
from loadtest.processes import device_bytes_of, resident_bytes_of
from loadtest.reference import open_references, rates_by_batch_size
from loadtest.results.findings import EXIT_CODES, Findings
from loadtest.results.measurement import MAX_LATENESS_SHARE, Measurement
from loadtest.results.page import save_report
from loadtest.results.search import MaxSearch, find_max
from loadtest.results.sections import screen
from loadtest.servers import SERVED, echo_name, open_echoes, open_served
from training.dataset import load_dataset

PACKAGES = ("torch", "onnxruntime", "grpcio", "protobuf", "numpy", "mlcommons-loadgen", "hdrhistogram")
WARM_UP_S = 0.5
REFERENCE_S = 0.5
RAW_BATCH_SIZE = 64
IMAGES_PER_REQUEST = {"single_stream": 1, "multi_stream": 8, "server": 1, "offline": 64}
IN_FLIGHT = 32  # requests of all processes together, `offline`: the server's queue takes twice as many images
# Before anything is known: a latency that no server beats, and a rate that any reaches.
LEAST_LATENCY_S = 50e-6
LEAST_IMAGES_PER_S = 4000.0
SLACK = 1.5  # an offline run has so many images that it lasts even if the server is this much faster than thought
BATCH_CURVE = (1, 8, 64, 256)  # images a request
BATCH_CURVE_S = 1.0
BATCH_CURVE_IN_FLIGHT, BATCH_CURVE_IMAGES = 128, 1024  # requests and images in flight of a process, at the most
SWEEP_S = 2.0
SWEEP_SHARES = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)  # of the rate at which the server was saturated

Step = tuple[str, Callable[[], Any]]


class LoadTest:
    """One run; everything goes into `findings` as soon as it is known."""

    def __init__(self, config: LoadTestConfig, findings: Findings, stack: ExitStack) -> None:
        self._config, self._findings, self._stack = config, findings, stack
        self._expected: dict[tuple[str, str], float] = {}  # what LoadGen plans with, from the warm-up

    def run(self) -> None:
        """Raises KeyboardInterrupt if it was stopped, and ProgramError if it cannot go on."""
        config, findings = self._config, self._findings
        print("loading the reference and finding the server ...", flush=True)
        # Other images in FASHION_MNIST_DIR are as good: each answer is held against the reference's.
        self._images = load_dataset(verify=False).test_images
        self._references = open_references(config, self._images)
        findings.reference = f"{self._references.by}'s logits"
        reference = Reference(images=self._images, logits=self._references.logits, atol=self._references.atol)
        served, findings.model, pid = open_served(config, self._references, reference, self._stack)
        findings.notes += self._references.notes
        self._backends = self._references.backends if REFERENCES in config.parts and config.scenarios else {}
        servers = {SERVED: served}
        if self._backends:
            sizes = [IMAGES_PER_REQUEST[scenario] for scenario in config.scenarios]
            servers |= open_echoes(served, sizes, self._stack)
        findings.backends = ", ".join(f"{name} on {each.device}" for name, each in self._references.backends.items())
        print(f"{findings.model}, at {served.target}\nagainst {findings.reference}", flush=True)
        self._generators = self._stack.enter_context(Generators(config.processes, servers, len(self._images)))
        with tqdm(list(self._steps()), disable=None, leave=False, unit="measurement") as steps:
            for name, work in steps:
                steps.set_description(name)
                work()
        if pid is not None:
            findings.memory = {"resident_bytes": resident_bytes_of(pid), "device_bytes": device_bytes_of(pid)}

    def _steps(self) -> Iterator[Step]:
        config = self._config
        contenders = ["echo", SERVED] if self._backends else [SERVED]
        pairs = [(contender, scenario) for scenario in config.scenarios for contender in contenders]
        for pair in pairs:
            yield f"warm-up: {' '.join(pair)}", partial(self._warm_up, *pair)
        for name in self._backends:
            yield f"batch sizes of {name}", partial(self._find_best_batch_size, name)
        for number in range(1, config.repeats + 1):
            for name in self._backends:
                yield f"{number}: {name}", partial(self._measure_backend, name)
            for pair in pairs:
                yield f"{number}: {' '.join(pair)}", partial(self._measure_scenario, *pair, number)
        if SWEEP in config.parts:
            for size in BATCH_CURVE:
                yield f"offline, {size} images a request", partial(self._measure_batch_size, size)
            for share in SWEEP_SHARES:
                yield f"{share:g} of saturation", partial(self._measure_share, share)
        if MAX in config.parts:
            yield "search", self._find_max

    # --- Scenarios, in repeats ---------------------------------------------------------------------------------------

    def _warm_up(self, contender: str, scenario: str) -> None:
        """Measures half a second that does not count, and tells LoadGen what to plan for."""
        found = self._measure(replace(self._load(contender, scenario), duration_s=WARM_UP_S), [])
        if scenario == "offline":
            self._expected[contender, scenario] = max(LEAST_IMAGES_PER_S, SLACK * found.images_per_s)
        else:  # LoadGen plans as many requests as fit, so less than the least latency must be expected
            self._expected[contender, scenario] = max(LEAST_LATENCY_S, found.percentile_ms(50.0) / 4e3)

    def _find_best_batch_size(self, name: str) -> None:
        """Measures all sizes, and chooses the best for PyTorch, 64 for the raw runtime; both are timed alone too."""
        rates = rates_by_batch_size(self._backends[name], self._images)
        best = max(rates, key=rates.__getitem__) if name == self._references.by else min(RAW_BATCH_SIZE, max(rates))
        self._findings.batch_rates[name] = rates
        self._findings.references |= {(name, 1): [], (name, best): []}

    def _measure_backend(self, name: str) -> None:
        for (other, size), runs in self._findings.references.items():
            if other == name:
                starts = range(0, len(self._images) - size + 1, size)
                batches = [self._images[start : start + size] for start in starts]
                runs.append(measure(self._backends[name].infer, batches, REFERENCE_S))

    def _measure_scenario(self, contender: str, scenario: str, number: int) -> None:
        runs = self._findings.runs.setdefault((contender, scenario), [])
        found = self._measure(replace(self._load(contender, scenario), seed=number), runs)
        if scenario == "offline":  # or the next repeat ends before its time
            rate = SLACK * found.images_per_s
            self._expected[contender, scenario] = max(rate, self._expected[contender, scenario])

    def _load(self, contender: str, scenario: str) -> Load:
        config, size = self._config, IMAGES_PER_REQUEST[scenario]
        guess = LEAST_IMAGES_PER_S if scenario == "offline" else LEAST_LATENCY_S
        return Load(
            contender=SERVED if contender == SERVED else echo_name(size),
            scenario=scenario,
            duration_s=config.duration_s,
            images_per_request=size,
            target_qps=config.target_qps if scenario == "server" else 0.0,
            latency_p99_ms=config.latency_p99_ms,
            expected=self._expected.get((contender, scenario), guess),
            in_flight=max(1, IN_FLIGHT // config.processes),
        )

    def _measure(self, load: Load, kept: list[Measurement]) -> Measurement:
        """Keeps what was measured even if Ctrl-C ends it; raises KeyboardInterrupt then."""
        run = self._generators.measure(load)
        if run.num_requests:
            kept.append(run)
        if run.interrupted:
            raise KeyboardInterrupt
        return run

    # --- Images a request, the rates up to saturation and past it, the highest that holds -----------------------------

    def _measure_batch_size(self, size: int) -> float:
        """Returns images/s in requests of so many, if there are always some to answer."""
        expected = self._expected.get((SERVED, "offline"), LEAST_IMAGES_PER_S) * (size / (size + 16))
        load = replace(
            self._load(SERVED, "offline"),
            images_per_request=size,
            duration_s=min(BATCH_CURVE_S, self._config.duration_s),
            expected=expected,
            in_flight=max(2, min(BATCH_CURVE_IN_FLIGHT, BATCH_CURVE_IMAGES // size)),
        )
        rate = self._measure(load, []).images_per_s
        self._findings.batch_rates.setdefault(SERVED, {})[size] = rate
        return rate

    def _saturation_qps(self) -> float:
        return self._findings.batch_rates.get(SERVED, {}).get(1) or self._measure_batch_size(1)

    def _measure_share(self, share: float) -> None:
        """Offers a share of saturation, with a deadline.

        It tells the server what is no use any more: what it does about that, past saturation, is the question. And what
        a generator sends too late to be believed would only keep the server from the rest.
        """
        rate, deadline_s = self._saturation_qps() * share, self._config.latency_p99_ms / 1e3
        duration_s = min(SWEEP_S, self._config.duration_s)
        load = load_with_deadline(SERVED, rate, deadline_s, duration_s, late_share=MAX_LATENESS_SHARE)
        self._measure(load, self._findings.sweep)

    def _find_max(self) -> None:
        search = self._findings.search = MaxSearch(latency_p99_ms=self._config.latency_p99_ms)
        load = self._load(SERVED, "server")

        def probe(qps: float) -> Measurement:
            return self._measure(replace(load, target_qps=qps, seed=len(search.probes)), [])

        find_max(search, probe, self._saturation_qps() / 2)


def main(arguments: list[str]) -> int:
    """Runs `python -m loadtest`; returns the verdict's exit code."""
    config = parse_arguments(arguments)
    findings = Findings(config=config)
    facts = machine_facts(PACKAGES) | {"load average before": f"{os.getloadavg()[0]:.1f}"}
    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: or the servers would be left behind
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            LoadTest(config, findings, stack).run()
    except (KeyboardInterrupt, ProgramError) as error:
        if not findings.measured_anything:
            raise
        findings.interrupted = True
        findings.notes += [str(error)] if isinstance(error, ProgramError) else []
    facts |= {"references": findings.backends, "load client": BEST}
    print("; ".join(f"{name} {fact}" for name, fact in facts.items()), screen(findings), sep="\n\n")
    for path in save_report(findings, facts):
        print(f"report: {path}")
    return EXIT_CODES[findings.verdict()[0]]
