"""The exporter's settings, and with them its flags."""

from dataclasses import dataclass
from pathlib import Path

from atelier.errors import UsageError
from atelier.settings import parse_settings
from export.engine_options import TIMING_CACHE, EngineOptions, HardwareLevel, Wanted
from export.precision import Precision
from serving.manifest import LARGEST_MAX_BATCH_SIZE
from training.run_record import CHECKPOINT_DIR

REPOSITORY_DIR = Path("artifacts/models")
MADE_WITH = (  # packages to record
    *("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy"),
    *("tensorrt", "tensorrt-rtx-cu13-libs"),
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Says what a program of this wing starts from."""

    checkpoint_dir: Path = CHECKPOINT_DIR
    """The checkpoint that `python -m training` left."""

    data_dir: Path | None = None
    """The folder of Fashion-MNIST's four files; None looks in the usual places and fetches them if need be."""

    unverified_data: bool = False
    """For tests: take any IDX files for Fashion-MNIST."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Trained):
    """Says what one export reads, proves and writes. Raises UsageError BAD_OPTIONS if that cannot be."""

    repository: Path = REPOSITORY_DIR
    """The model repository; the version goes under <repository>/lenet5/."""

    signing_key: Path | None = None
    """Sign the manifest with this Ed25519 private key in PEM, for servers with --require-signature; needs the extra
    `signing`.
    """

    untrained: bool = False
    """Export even a checkpoint whose training has not finished, or whose accuracy is within 5 points of chance."""

    max_batch_size: int = 256
    """The largest batch that is proven, and so the largest that may be served."""

    precision: Precision = "fp32"
    """The type that layers compute in; `images` are uint8 and `logits` float32 in all of them."""

    engine: Wanted = "auto"
    """Build TensorRT engines; auto builds those that this machine has the libraries for."""

    litert: bool = False
    """Make a LiteRT model too, which `--backend litert` serves; fetches its converter, 2.5 GB, into .cache."""

    version_compatible: bool = False
    """Build an engine that also runs on later TensorRT of the same major version, and on the lean runtime."""

    hardware_compatible: HardwareLevel = "none"
    """Other GPUs that the engine is to run on."""

    def __post_init__(self) -> None:
        if self.litert and self.precision != "fp32":
            what = f"--litert makes a model in fp32, not {self.precision}"
            raise UsageError("BAD_OPTIONS", what, "leave out one of them")
        if not 1 <= self.max_batch_size <= LARGEST_MAX_BATCH_SIZE:
            what = f"--max-batch-size is {self.max_batch_size}"
            raise UsageError("BAD_OPTIONS", what, f"it must be 1 to {LARGEST_MAX_BATCH_SIZE}")

    @property
    def engine_options(self) -> EngineOptions:
        """The engine's options; its timing cache lies beside the repository."""
        return EngineOptions(
            precision=self.precision,
            max_batch_size=self.max_batch_size,
            version_compatible=self.version_compatible,
            hardware_compatible=self.hardware_compatible,
            timing_cache=self.repository.parent / TIMING_CACHE.name,
        )

    @property
    def failed_dir(self) -> Path:
        """The folder for the reports of a failed gate, to be read; never a place that a server looks at."""
        return self.repository.parent / "parity-failed"


EPILOG = f"""
  python -m export                       {CHECKPOINT_DIR} becomes the next version under {REPOSITORY_DIR}/lenet5

Makes a torch.export program, an ONNX model, a portable engine of TensorRT for RTX and, on a host with an NVIDIA GPU
and TensorRT, an engine for that GPU; and proves that each that runs here gives the answers of the model in float64: on
every test image and on edge cases, in batches of 1, 2, 7, 64 and the largest. Then publishes them, whole or not at all.
If the proof fails nothing is published, the exit code is 65, and parity-failed/parity.md beside the repository reports
what differs, on which image, and from which layer on.
"""


def parse_arguments(arguments: list[str]) -> ExportConfig:
    """Reads the command line; `--help` explains it."""
    return parse_settings(
        ExportConfig,
        arguments,
        prog="python -m export",
        description="Turn the trained model into what is served, and prove that it gives the same answers.",
        epilog=EPILOG,
    )
