"""Measures what each precision costs in accuracy and gains in speed on this machine: `python -m export.ladder`.

Every precision goes through the parity gate on every runtime and device that can run it, and is then timed there, from
uint8 images in host memory to float32 logits in host memory. Publishes nothing.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atelier.contract import Images
from atelier.errors import ResourceUnavailableError
from atelier.files import save_json
from atelier.machine import package_versions
from atelier.program import run_program
from atelier.settings import parse_settings
from atelier.tables import aligned, spread
from atelier.timing import images_per_s
from export.config import MADE_WITH, Trained
from export.export import open_backends
from export.onnx_model import onnx_from_program
from export.parity import RuntimeParity, run_gate, truth_of
from export.parity_inputs import ParityInputs, parity_inputs
from export.precision import HALF_TYPES, PRECISIONS, EmulatedBackend, onnx_in
from export.torch_program import program_bytes, program_from_model
from serving.backends.base import Backend
from serving.manifest import ONNX_NAME, PROGRAM_NAME
from training.checkpoint import load_model
from training.dataset import CLASSES, FashionMNIST, load_dataset
from training.device import hardware_of

MAX_BATCH_SIZE = 256
NUM_REPEATS = 7
REPEAT_S = 0.3
HEADER = ("precision", "runtime", "max_abs_diff", "top-1 agreement", "accuracy", "pass", "images/s (lowest to highest)")


@dataclass(frozen=True, kw_only=True)
class LadderSettings(Trained):
    """Says what is compared, and where the figures go."""

    report_dir: Path | None = None
    """Also write the figures there, as ladder.json."""


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One precision on one runtime: what the gate found, and images/s of each repeat (none for an emulation)."""

    parity: RuntimeParity
    images_per_s: list[float]

    @property
    def row(self) -> tuple[str, ...]:
        """The cells under HEADER."""
        parity, rates = self.parity, self.images_per_s
        speed = spread(rates, 0) if rates else "not timed"
        found = f"{parity.max_abs_diff:.2e}", f"{100 * parity.top1_agreement:.5g} %", f"{parity.accuracy:.4f}"
        verdict = "pass" if parity else "FAIL"
        return parity.precision, f"{parity.runtime} on {parity.device}", *found, verdict, speed


def climb(
    model: nn.Module,
    dataset: FashionMNIST,
    precisions: Sequence[str] = PRECISIONS,
    inputs: ParityInputs | None = None,
    num_repeats: int = NUM_REPEATS,
) -> Iterator[Rung]:
    """Yields the rungs, precision by precision; `inputs` other than the test images and edges are for tests."""
    program = program_from_model(model, MAX_BATCH_SIZE)
    fp32_onnx, truth = onnx_from_program(program, classes=CLASSES, precision="fp32"), truth_of(model)
    inputs = inputs or parity_inputs(dataset.test_images, dataset.test_labels, truth)
    for precision in precisions:
        onnx = onnx_in(precision, fp32_onnx, dataset.train_images)
        files = {PROGRAM_NAME: program_bytes(program), ONNX_NAME: onnx}
        backends = _backends(files, precision)
        for backend, parity in zip(backends, run_gate(truth, backends, inputs, precision).runtimes, strict=True):
            is_real = not isinstance(backend, EmulatedBackend)
            rates = _images_per_s(backend, inputs.images, num_repeats) if is_real else []
            yield Rung(parity=parity, images_per_s=rates)
            backend.close()


def _backends(files: dict[str, bytes], precision: str) -> list[Backend]:
    """Opens all that runs this precision; the reference once, with fp32."""
    found: list[Backend] = []
    try:
        found += open_backends(files, MAX_BATCH_SIZE, precision)
    except ResourceUnavailableError as error:
        print(error)
    if precision != "fp32":
        found = [backend for backend in found if backend.name != "torch"]
    if precision in HALF_TYPES and not any(isinstance(backend, EmulatedBackend) for backend in found):
        found.append(EmulatedBackend(files[ONNX_NAME], max_batch_size=MAX_BATCH_SIZE))
    return found


def _images_per_s(backend: Backend, images: Images, num_repeats: int) -> list[float]:
    """Measures one figure per repeat, at the largest batch."""
    batch = np.resize(images, (MAX_BATCH_SIZE, *images.shape[1:]))
    backend.infer(batch)  # not counted
    return [images_per_s(backend.infer, batch, REPEAT_S) for _ in range(num_repeats)]


def table_from(rungs: Sequence[Rung]) -> str:
    """Writes one line per rung, in aligned Markdown."""
    return aligned([HEADER, *(rung.row for rung in rungs)])


def main(arguments: list[str]) -> int:
    """Climbs and prints the table; returns 65 if a rung fails its gate."""
    options = parse_settings(LadderSettings, arguments, prog="python -m export.ladder", description=__doc__ or "")
    model, checkpoint = load_model(options.checkpoint_dir)
    rungs = list(climb(model, load_dataset(options.data_dir, verify=not options.unverified_data)))
    machine = hardware_of(torch.device("cpu"))
    print(
        f"\n{table_from(rungs)}\n\n{machine}; one inference thread; batches of {MAX_BATCH_SIZE}, {NUM_REPEATS} repeats"
    )
    if options.report_dir:
        document = {
            "machine": machine,
            "versions": package_versions(MADE_WITH),
            "checkpoint_sha256": checkpoint.sha256,
            "rungs": [asdict(rung) | {"passed": bool(rung.parity)} for rung in rungs],
        }
        save_json(options.report_dir / "ladder.json", document)
    return 0 if all(rung.parity for rung in rungs) else 65


if __name__ == "__main__":
    sys.exit(run_program(main))
