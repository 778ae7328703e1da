"""`python -m export.runtimes` (make runtimes): the served model in every framework and runtime that takes it."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from atelier.errors import ConfigurationError, UsageError
from atelier.files import write_atomically
from atelier.machine import machine_facts
from atelier.settings import names_in, parse_settings
from export.config import REPOSITORY_DIR, Trained
from export.parity import truth_of
from export.parity_inputs import ParityInputs
from export.runtimes.known import OURS, RUNTIMES
from export.runtimes.measure import BATCH_SIZES, Result, Task, measured, opened
from export.runtimes.report import json_from, markdown_from, num_flips, table_from, verdict
from export.runtimes.script_process import Session
from serving.manifest import ONNX_NAME, PROGRAM_NAME, find_version, read_verified
from training.checkpoint import load_model
from training.dataset import load_dataset

PACKAGES = ("onnxruntime", "torch", "numpy")
LIMIT_S = 300.0  # after which a runtime is given up


@dataclass(frozen=True, kw_only=True)
class RuntimesSettings(Trained):
    """The command line; the checkpoint is what the repository was made from: the truth."""

    repository: Path = REPOSITORY_DIR
    """What `python -m export` wrote."""

    only: str = ""
    """Some of the runtimes, separated by commas; without a report, unless --report-dir asks for one."""

    repeats: int = 7
    """How often each is timed, in turn with ONNX Runtime."""

    report_dir: Path | None = None
    """Where the report goes (reports)."""

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UsageError("BAD_OPTIONS", f"--repeats is {self.repeats}", "it must be 1 or more")


def main(arguments: list[str]) -> int:
    """Measures what was asked for; the report is written if that is all."""
    options = parse_settings(
        RuntimesSettings,
        arguments,
        prog="python -m export.runtimes",
        description="Run the served model in every framework and runtime that takes it, on all test images.",
        epilog=f"Each is installed once, under .cache/runtimes: 7 GB for all of them.\n\n{', '.join(RUNTIMES)}",
    )
    names = names_in(options.only, RUNTIMES, "--only")
    task = _task(options)
    with opened(OURS, task) as (baseline, ours):  # until the last has been timed beside it
        results = list(_measure(names, task, baseline))
    rates = {size: [rate for result in results for rate in result.beside.get(size, [])] for size in BATCH_SIZES}
    results.insert(0, dataclasses.replace(ours, rates=rates, beside=rates))
    facts, date = machine_facts(PACKAGES), datetime.now(UTC).date().isoformat()
    print(f"\n{table_from(results)}")
    directory = options.report_dir or (None if options.only else Path("reports"))
    if directory:
        directory.mkdir(parents=True, exist_ok=True)
        for ending, data_from in (("md", markdown_from), ("json", json_from)):
            write_atomically(directory / f"runtimes-{date}.{ending}", data_from(results, task, facts, date))
        print(f"\nThe report is {directory / f'runtimes-{date}.md'}")
    return 0


def _task(options: RuntimesSettings) -> Task:
    """Raises ConfigurationError OTHER_CHECKPOINT if the truth at hand is not that of the served version."""
    version_dir, manifest = find_version(options.repository)
    model, checkpoint = load_model(options.checkpoint_dir)
    if manifest.checkpoint_sha256 != checkpoint.sha256:
        what = f"{version_dir} was not made from the checkpoint in {options.checkpoint_dir}"
        raise ConfigurationError("OTHER_CHECKPOINT", what, "export it, or name the right one: --checkpoint-dir")
    data = load_dataset(options.data_dir, verify=not options.unverified_data)
    names = [name for name in (ONNX_NAME, PROGRAM_NAME) if name in manifest.files]
    return Task(
        models={name: read_verified(version_dir, manifest, name) for name in names},
        precision=manifest.precision,
        truth=truth_of(model)(data.test_images),
        inputs=ParityInputs(images=data.test_images, labels=data.test_labels, edge_names=()),
        repeats=options.repeats,
        limit_s=LIMIT_S,
    )


def _measure(names: Sequence[str], task: Task, baseline: Session) -> Iterator[Result]:
    for number, name in enumerate(names, 1):
        title = RUNTIMES[name].title
        print(f"{number}/{len(names)} {title}: {RUNTIMES[name].route} ...", flush=True)
        result = measured(RUNTIMES[name], task, baseline)
        print(f"    {result.why or f'{verdict(result)}, {num_flips(result)} class flips'}", flush=True)
        yield result
