"""Measures serving beside echo servers, raw ONNX Runtime and other servers, and training beside the tutorial's loop.

Absolute figures move with whatever else the machine does, so each repeat measures every contender in turn and what
counts is the ratio within a repeat.
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from atelier.errors import UsageError
from atelier.files import save_json
from atelier.machine import machine_facts
from atelier.settings import parse_settings
from loadtest.bench.contenders import contenders_from
from loadtest.bench.measure import measure_goodput, measure_serving, measure_starts
from loadtest.bench.overload import SIZES, Runs, goodput_rows
from loadtest.bench.peers.known import PEERS
from loadtest.bench.peers.start import running_peers
from loadtest.bench.playground import measure_page, page_rows
from loadtest.bench.rows import contenders_table, draw, serving_rows, table
from loadtest.bench.training_speed import measure_training, training_row
from serving.manifest import ONNX_NAME, find_version

PACKAGES = ("grpcio", "onnxruntime", "numpy", "protobuf", "torch")
PARTS = ("peers", "overload", "page", "training")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The command line."""

    repository: Path = Path("artifacts/models")
    """What `python -m export` wrote."""

    measure: str = "overload,training"
    """What to measure beside serving, separated by commas. peers: TorchServe, KServe and LitServe, which are installed
    in .cache/peers; overload: rates past saturation; page: beside the page that looks inside; training: beside the
    tutorial's loop; nothing: none."""

    repeats: int = 7
    """How often each contender of serving runs, in turn; rates past saturation and training half as often."""

    scale: float = 1.0
    """Length of the runs, as a share; 0.05 for a rehearsal."""

    report_dir: Path = Path("artifacts/bench")
    """Where all figures are written as bench-<date>.json, and a chart of the contenders as peers.svg."""

    def __post_init__(self) -> None:
        if not self.parts <= {*PARTS, "nothing"}:
            cure = f"it may be {', '.join(PARTS)}, or nothing"
            raise UsageError("BAD_OPTIONS", f"--measure is {self.measure!r}", cure)

    @property
    def parts(self) -> set[str]:
        """What to measure beside serving."""
        return {name.strip() for name in self.measure.split(",")}


def main(arguments: list[str]) -> int:
    """Runs `python -m loadtest.bench`: measures, prints the tables, and writes figures and chart."""
    settings = parse_settings(BenchSettings, arguments, prog="python -m loadtest.bench", description=__doc__ or "")
    repository, repeats, half = settings.repository, settings.repeats, max(1, settings.repeats // 2)
    model = find_version(repository)[0] / ONNX_NAME
    wanted = PEERS if "peers" in settings.parts else {}
    goodput: Mapping[str, Runs] = {}
    with contenders_from(repository) as contenders:
        with running_peers(model, contenders.raw.infer, wanted) as (peers, absent):
            names = [*contenders.targets, *peers]
            figures = measure_serving(contenders, peers, repeats, settings.scale)
        served = list(contenders.served)
        if "overload" in settings.parts:
            peaks = {  # requests/s by the images of each
                name: {size: statistics.median(figures[f"{name}, {size}"]) / size for size in SIZES} for name in served
            }
            goodput = measure_goodput(contenders, repository, peaks, half, settings.scale)
    figures |= measure_starts(repository, repeats)
    rows = serving_rows(figures, served) + goodput_rows(goodput)
    if "page" in settings.parts:
        of_page = measure_page(repository, repeats, settings.scale)
        figures, rows = figures | of_page, rows + page_rows(of_page)
    if "training" in settings.parts:
        figures |= measure_training(half)
        rows.append(training_row(figures))

    facts, date, num_requests = machine_facts(PACKAGES), datetime.now(UTC).date().isoformat(), sum(figures["requests"])
    print(f"{facts['cpu']}; Python {facts['python']}; {facts['packages']}")
    print(f"{repeats} repeats after one warm-up, {half} past saturation and of training; medians")
    print(f"{num_requests:.0f} requests sent to the served model, all of them answered\n")
    print(table(rows), contenders_table(figures, names, absent), sep="\n\n")
    document = {
        "machine": facts,
        "date": date,
        "repeats": repeats,
        "scale": settings.scale,
        "requests": num_requests,
        "rows": [asdict(row) | {"is_met": row.is_met} for row in rows],
        "contenders": names,
        "absent": absent,
        "figures": figures,
        "goodput": [
            {"server": name, "images_per_request": size, "deadline_ms": deadline_ms, "factor": factor}
            | {"repeats": [asdict(run) for run in runs]}
            for name, of_server in goodput.items()
            for (size, deadline_ms, factor), runs in of_server.items()
        ],
    }
    report = settings.report_dir / f"bench-{date}.json"
    save_json(report, document)
    caption = f"{facts['cpu']}, {date}; h2load on the same cores; medians of {repeats} repeats"
    draw(figures, names, caption, settings.report_dir / "peers.svg")
    print(f"\nwritten: {report} and peers.svg")
    return 0
