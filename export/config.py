"""The exporter's settings and its command line."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from atelier.errors import UsageError
from export.engine_options import HARDWARE_LEVELS, TIMING_CACHE, WANTED, EngineOptions
from export.precision import PRECISIONS
from training.record import CHECKPOINT_DIR

REPOSITORY_DIR = Path("artifacts/models")
MADE_WITH = (  # packages to record
    *("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy"),
    *("tensorrt", "tensorrt-rtx-cu13-libs"),
)
LARGEST_MAX_BATCH_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What one export reads, proves and writes."""

    checkpoint_dir: Path = CHECKPOINT_DIR
    """Where `python -m training` left its checkpoint."""

    repository_dir: Path = REPOSITORY_DIR
    """The model repository; the version goes under `<repository_dir>/lenet5/`."""

    data_dir: Path | None = None
    """Where the test images are; None looks in the usual places and fetches them if need be."""

    verify_data: bool = True
    """Whether the data must be Fashion-MNIST, byte for byte."""

    incomplete: bool = False
    """Whether a checkpoint may be exported whose training has not finished."""

    near_chance: bool = False
    """Whether a model may be exported that is hardly better than guessing."""

    max_batch_size: int = 256
    """The largest batch that is proven, and so the largest that may be served."""

    precision: str = "fp32"
    """What the layers compute in, one of PRECISIONS; `images` are uint8 and `logits` float32 in all of them."""

    engine: str = "auto"
    """Whether to build engines: `no`, `yes`, or `auto`, which builds those that this machine has the libraries for."""

    opt_batch_size: int = 64
    """The batch size that the engine's kernels are timed at."""

    version_compatible: bool = False
    """Whether the engine also runs on later TensorRT of the same major version, and on the lean runtime."""

    hardware_compatible: str = "none"
    """Which other GPUs the engine is to run on: none, same_compute_capability, ampere_plus."""

    def __post_init__(self) -> None:
        if self.opt_batch_size < 1:
            raise UsageError("BAD_OPTIONS", f"--opt-batch-size is {self.opt_batch_size}", "it must be at least 1")
        for option, value, known in (
            ("--engine", self.engine, WANTED),
            ("--hardware-compatible", self.hardware_compatible, HARDWARE_LEVELS),
        ):
            if value not in known:
                raise UsageError("BAD_OPTIONS", f"{option} is {value!r}", f"one of {', '.join(known)}")
        if self.precision not in PRECISIONS:
            raise UsageError("BAD_OPTIONS", f"--precision is {self.precision!r}", f"one of {', '.join(PRECISIONS)}")
        if not 1 <= self.max_batch_size <= LARGEST_MAX_BATCH_SIZE:
            what = f"--max-batch-size is {self.max_batch_size}"
            raise UsageError("BAD_OPTIONS", what, f"it must be 1 to {LARGEST_MAX_BATCH_SIZE}")

    @property
    def engine_options(self) -> EngineOptions:
        """How the engine is built; its timing cache lies beside the repository."""
        return EngineOptions(
            precision=self.precision,
            max_batch_size=self.max_batch_size,
            opt_batch_size=self.opt_batch_size,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            timing_cache=self.repository_dir.parent / TIMING_CACHE.name,
        )

    @property
    def failed_dir(self) -> Path:
        """Where the reports of a failed gate go, to be read; never a place that a server looks at."""
        return self.repository_dir.parent / "parity-failed"


EPILOG = f"""
  python -m export                       {CHECKPOINT_DIR} becomes the next version under {REPOSITORY_DIR}/lenet5

Makes a torch.export program, an ONNX model, a portable engine of TensorRT for RTX and, on a host with an NVIDIA GPU
and TensorRT, an engine for that GPU; and proves that each that runs here gives the answers of the model in float64: on
every test image and on edge cases, in batches of 1, 2, 7, 64 and the largest. Then publishes them, whole or not at all.
Where the proof fails nothing is published, the exit code is 65, and parity-failed/parity.md beside the repository tells
what differs, on which image, and from which layer on.
"""


def config_from(arguments: list[str]) -> ExportConfig:
    """Reads the command line; `--help` explains it."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn the trained model into what is served, and prove that it gives the same answers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint-dir", type=Path, default=CHECKPOINT_DIR, metavar="DIR", help=f"({CHECKPOINT_DIR})")
    add("--repository", type=Path, default=REPOSITORY_DIR, metavar="DIR", help=f"where versions go ({REPOSITORY_DIR})")
    add("--data-dir", type=Path, metavar="DIR", help="the four files; default: look for them, or fetch them")
    add("--unverified-data", action="store_true", help="for tests: take any IDX files for Fashion-MNIST")
    add("--incomplete", action="store_true", help="export a checkpoint even if its training has not finished")
    add("--near-chance", action="store_true", help="export a model even if its accuracy is within 5 points of chance")
    add("--max-batch-size", type=int, default=256, metavar="N", help="largest to prove, and so to serve (256)")
    add("--precision", choices=PRECISIONS, default="fp32", help="what the layers compute in (fp32)")
    add("--engine", choices=WANTED, default="auto", help="build TensorRT engines (auto: those that can be built)")
    add("--opt-batch-size", type=int, default=64, metavar="N", help="batch that the engine is timed at (64)")
    add("--version-compatible", action="store_true", help="engine for later TensorRT and the lean runtime too")
    add("--hardware-compatible", choices=HARDWARE_LEVELS, default="none", help="engine for other GPUs too (none)")
    add("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    return ExportConfig(
        checkpoint_dir=options.checkpoint_dir,
        repository_dir=options.repository,
        data_dir=options.data_dir,
        verify_data=not options.unverified_data,
        incomplete=options.incomplete,
        near_chance=options.near_chance,
        max_batch_size=options.max_batch_size,
        precision=options.precision,
        engine=options.engine,
        opt_batch_size=options.opt_batch_size,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )
