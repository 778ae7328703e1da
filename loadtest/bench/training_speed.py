"""Training's speed beside the tutorial's own loop: both from the command line, in turn, on the same images."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from atelier.errors import ProgramError
from loadtest.bench.rows import Figures, Row
from training.dataset import load_dataset

NUM_IMAGES = 60_000
RAW_DIR = Path("FashionMNIST") / "raw"  # where torchvision looks


def training_row(figures: Figures) -> Row:
    """Makes the row of training."""
    return Row(
        name="training, two epochs with evaluation",
        unit="examples/s",
        ours=figures["training"],
        yardstick=figures["tutorial's loop"],
        yardstick_name="the tutorial's loop",
        target=3.0,
    )


def measure_training(repeats: int) -> Figures:
    """Measures examples/s of ours and of the tutorial's loop."""
    figures: Figures = {"training": [], "tutorial's loop": []}
    for _ in tqdm(range(repeats), desc="training, two epochs each", unit="run", disable=None):
        ours, tutorials = training_rates(num_epochs=2)
        figures["training"].append(ours)
        figures["tutorial's loop"].append(tutorials)
    return figures


def training_rates(num_epochs: int, num_images: int = NUM_IMAGES) -> tuple[float, float]:
    """Measures examples/s of ours and of the tutorial's loop by the epochs' wall clock, with evaluation, on all cores.

    What comes before the first epoch is in neither. Both get the first `num_images`, and a sixth as many to evaluate.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _lay_out(root, num_images)
        data = ("--data-dir", str(root / RAW_DIR), "--unverified-data")  # checked before they were laid out
        checkpoint = ("--checkpoint-dir", str(root / "checkpoint"))
        _run("training", "--epochs", str(num_epochs), *checkpoint, *data, "--device", "cpu")
        tutorials = json.loads(_run("loadtest.bench.tutorial_loop", directory, str(num_epochs)))
        epochs = json.loads((root / "checkpoint" / "checkpoint.json").read_bytes())["metrics"]
    return num_epochs * num_images / sum(epoch["seconds"] for epoch in epochs), tutorials["examples_per_s"]


def _lay_out(root: Path, num_images: int) -> None:
    """Writes the data set as torchvision's own class reads it: IDX files, uncompressed."""
    dataset, num_tests = load_dataset(), num_images // 6
    (root / RAW_DIR).mkdir(parents=True)
    for name, array in (
        ("train-images-idx3-ubyte", dataset.train_images[:num_images, 0]),
        ("train-labels-idx1-ubyte", dataset.train_labels[:num_images]),
        ("t10k-images-idx3-ubyte", dataset.test_images[:num_tests, 0]),
        ("t10k-labels-idx1-ubyte", dataset.test_labels[:num_tests]),
    ):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (root / RAW_DIR / name).write_bytes(header + array.tobytes())


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise ProgramError("BENCH_FAILED", f"{module}: {done.stderr[-300:]}")
    return done.stdout
