"""The load test: one run that measures the served model beside its references, and ends with a verdict.

python -m loadtest                  (make loadtest)
"""

import signal
from contextlib import ExitStack
from dataclasses import replace

from atelier.errors import ProgramError
from loadtest.config import LoadTestConfig, parse_arguments
from loadtest.load.generator_processes import Generators
from loadtest.load.load_clients import BEST
from loadtest.load.protocols import Reference
from loadtest.load.scenarios import Load
from loadtest.memory import memory_of
from loadtest.progress import Progress
from loadtest.reference import measure_backend, open_references, rates_by_batch_size
from loadtest.results.files import save_report
from loadtest.results.findings import EXIT_CODES, Findings, machine
from loadtest.results.measurement import MAX_LATENESS_SHARE, Measurement
from loadtest.results.screen import screen
from loadtest.results.search import SWEEP_SHARES, MaxSearch, find_max
from loadtest.servers import SERVED, echo_name, open_echoes, open_served
from training.dataset import load_dataset

WARM_UP_S = 0.5
REFERENCE_S = 0.5
RAW_BATCH_SIZE = 64
# Before anything is known: a latency that no server beats, and a rate that any reaches.
LEAST_LATENCY_S = 50e-6
LEAST_IMAGES_PER_S = 4000.0
SLACK = 1.5  # an offline run has so many images that it lasts even if the server is this much faster than thought
BATCH_CURVE = (1, 8, 64, 256)  # images a request
BATCH_CURVE_S = 1.0
BATCH_CURVE_IN_FLIGHT, BATCH_CURVE_IMAGES = 128, 1024  # requests and images in flight, at the most
SWEEP_S = 2.0


class LoadTest:
    """One run; everything goes into `findings` as soon as it is known."""

    def __init__(self, config: LoadTestConfig, findings: Findings, stack: ExitStack) -> None:
        self._config, self._findings, self._stack = config, findings, stack
        self._expected: dict[tuple[str, str], float] = {}  # what LoadGen plans with, from the warm-up

    def run(self) -> None:
        """Raises KeyboardInterrupt where it was stopped, and ProgramError where it cannot go on."""
        config, findings = self._config, self._findings
        print("loading the reference and finding the server ...", flush=True)
        self._images = load_dataset(config.data_dir, verify=not config.unverified_data).test_images
        self._references = open_references(config, self._images)
        findings.reference = f"{self._references.by}'s logits"
        reference = Reference(images=self._images, logits=self._references.logits, atol=self._references.atol)
        served, findings.model, pid = open_served(config, self._references, reference, self._stack)
        findings.notes += self._references.notes
        servers = {SERVED: served}
        if not config.no_references:
            sizes = [self._load(SERVED, scenario).images_per_request for scenario in config.chosen_scenarios]
            servers |= open_echoes(served, sizes, self._stack)
        devices = ", ".join(f"{name} on {backend.device}" for name, backend in self._references.backends.items())
        findings.backends = f"{devices}, {config.reference_threads} thread{'s' if config.reference_threads > 1 else ''}"
        print(
            f"{findings.model}, at {served.target}\nagainst {findings.reference}; about {self._planned_s():.0f} s",
            flush=True,
        )
        self._progress = self._stack.enter_context(Progress(self._planned_s()))
        arguments = (config.processes, servers, len(self._images), self._progress.tick)
        self._generators = self._stack.enter_context(Generators(*arguments))
        self._measure_scenarios()
        if not config.no_sweep:
            self._measure_batch_curve()
            self._measure_sweep()
        if config.find_max:
            self._find_max()
        if pid is not None:
            findings.memory = memory_of(pid)

    # --- Scenarios, in rounds ----------------------------------------------------------------------------------------

    def _measure_scenarios(self) -> None:
        contenders = ["served"] if self._config.no_references else ["echo", "served"]
        pairs = [(contender, scenario) for scenario in self._config.chosen_scenarios for contender in contenders]
        for contender, scenario in pairs:
            self._warm_up(contender, scenario)
        best = {} if self._config.no_references or not pairs else self._best_batch_sizes()
        for number in range(1, self._config.rounds + 1):
            for name, size in best:
                with self._progress.step(f"round {number}: {name}, {size} at a time", REFERENCE_S):
                    run = measure_backend(self._references.backends[name], self._images, size, REFERENCE_S)
                    self._findings.references.setdefault((name, size), []).append(run)
            for contender, scenario in pairs:
                load = replace(self._load(contender, scenario), seed=self._config.seed + number)
                runs = self._findings.runs.setdefault((contender, scenario), [])
                measured = self._measure(load, f"round {number}: {contender} {scenario}", runs)
                if scenario == "offline":  # or the next round ends before its time
                    rate = SLACK * measured.images_per_s
                    self._expected[contender, scenario] = max(rate, self._expected[contender, scenario])

    def _warm_up(self, contender: str, scenario: str) -> None:
        """Half a second that does not count, and tells LoadGen what to plan for."""
        warm_up: list[Measurement] = []
        load = replace(self._load(contender, scenario), duration_s=WARM_UP_S)
        self._measure(load, f"warm-up: {contender} {scenario}", warm_up)
        if scenario == "offline":
            self._expected[contender, scenario] = max(LEAST_IMAGES_PER_S, SLACK * warm_up[0].images_per_s)
        else:  # LoadGen plans as many requests as fit, so less than the least latency must be expected
            self._expected[contender, scenario] = max(LEAST_LATENCY_S, warm_up[0].percentile_ms(50.0) / 4e3)

    def _best_batch_sizes(self) -> list[tuple[str, int]]:
        """One image at a time, and for PyTorch its best batch size, for the raw runtime 64."""
        chosen = []
        for name, backend in self._references.backends.items():
            with self._progress.step(f"batch sizes of {name}", 2.0):
                rates = rates_by_batch_size(backend, self._images)
            self._findings.batch_rates[name] = rates
            best = max(rates, key=rates.__getitem__)
            chosen += [(name, 1), (name, best if name == self._references.by else min(RAW_BATCH_SIZE, max(rates)))]
        return chosen

    def _load(self, contender: str, scenario: str) -> Load:
        config = self._config
        size = {
            "single_stream": 1,
            "multi_stream": config.samples_per_query,
            "server": config.images_per_request,
            "offline": config.offline_images_per_request,
        }[scenario]
        guess = LEAST_IMAGES_PER_S if scenario == "offline" else LEAST_LATENCY_S
        return Load(
            contender=SERVED if contender == SERVED else echo_name(size),
            scenario=scenario,
            duration_s=config.duration_s,
            images_per_request=size,
            target_qps=config.target_qps if scenario == "server" else 0.0,
            latency_p99_ms=config.latency_p99_ms,
            expected=self._expected.get((contender, scenario), guess),
            in_flight=config.in_flight,
            timeout_s=config.timeout_s,
            seed=config.seed,
        )

    def _measure(self, load: Load, name: str, kept: list[Measurement]) -> Measurement:
        """Keeps what was measured also where Ctrl-C ends it; raises KeyboardInterrupt then."""
        with self._progress.step(name, load.duration_s):
            run = self._generators.measure(load)
        if run.num_requests:
            kept.append(run)
        if run.interrupted:
            raise KeyboardInterrupt
        return run

    # --- Images a request, the rates up to saturation and past it, the highest that holds -----------------------------

    def _measure_batch_curve(self) -> None:
        rates = self._findings.batch_rates.setdefault("served", {})
        for size in BATCH_CURVE:
            expected = self._expected.get((SERVED, "offline"), LEAST_IMAGES_PER_S) * (size / (size + 16))
            load = replace(
                self._load(SERVED, "offline"),
                images_per_request=size,
                duration_s=min(BATCH_CURVE_S, self._config.duration_s),
                expected=expected,
                in_flight=max(2, min(BATCH_CURVE_IN_FLIGHT, BATCH_CURVE_IMAGES // size)),
            )
            rates[size] = self._measure(load, f"offline, {size} images a request", []).images_per_s

    def _saturation_qps(self) -> float:
        """Requests/s that are answered where there are always some to answer."""
        rate = self._findings.batch_rates.get("served", {}).get(1)
        if rate is None:
            expected = self._expected.get((SERVED, "offline"), LEAST_IMAGES_PER_S) / 17
            load = replace(
                self._load(SERVED, "offline"),
                images_per_request=1,
                duration_s=BATCH_CURVE_S,
                in_flight=BATCH_CURVE_IN_FLIGHT,
            )
            rate = self._measure(replace(load, expected=expected), "saturation", []).images_per_s
        return rate

    def _measure_sweep(self) -> None:
        saturation_qps = self._saturation_qps()
        # A deadline tells the server what is no use any more: what it does about it, past saturation, is what is asked.
        # And what a generator sends too late to be believed would only keep the server from the rest.
        timeout_s = self._config.latency_p99_ms / 1e3
        load = replace(
            self._load(SERVED, "server"),
            images_per_request=1,
            timeout_s=timeout_s,
            late_s=MAX_LATENESS_SHARE * timeout_s,
        )
        for share in SWEEP_SHARES:
            chosen = replace(load, target_qps=saturation_qps * share, duration_s=min(SWEEP_S, load.duration_s))
            self._measure(chosen, f"sweep: {chosen.target_qps:,.0f} requests/s", self._findings.sweep)

    def _find_max(self) -> None:
        config = self._config
        search = self._findings.search = MaxSearch(latency_p99_ms=config.latency_p99_ms)
        load = self._load(SERVED, "server")

        def probe(qps: float) -> Measurement:
            number = len(search.probes)
            chosen = replace(load, target_qps=qps, seed=config.seed + number)
            return self._measure(chosen, f"search: {qps:,.0f} requests/s", [])

        find_max(search, probe, self._saturation_qps() / config.images_per_request / 2)

    def _planned_s(self) -> float:
        config = self._config
        num_pairs = len(config.chosen_scenarios) * (1 if config.no_references else 2)
        seconds = num_pairs * (WARM_UP_S + config.rounds * config.duration_s)
        if num_pairs and not config.no_references:
            seconds += len(self._references.backends) * (2.0 + 2 * config.rounds * REFERENCE_S)
        if not config.no_sweep:
            seconds += len(BATCH_CURVE) * BATCH_CURVE_S + len(SWEEP_SHARES) * min(SWEEP_S, config.duration_s)
        if config.find_max:
            seconds += 14 * config.duration_s
        return seconds


def main(arguments: list[str]) -> int:
    """`python -m loadtest`."""
    config = parse_arguments(arguments)
    findings = Findings(config=config)
    facts = machine()
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
