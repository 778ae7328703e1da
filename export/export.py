"""Exports: checkpoint -> program and ONNX model -> parity gate -> a published version."""

import dataclasses
import datetime
import hashlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from atelier.contract import TensorSpec
from atelier.errors import BadDataError, ProgramError, ResourceUnavailableError
from atelier.files import check_writable, write_atomically
from atelier.machine import package_versions
from export.config import MADE_WITH, ExportConfig, parse_arguments
from export.engines import engines_from_onnx
from export.first_divergence import explain_failure
from export.onnx_model import litert_from, onnx_from_program, opset_of
from export.parity import ParityReport, run_gate, truth_of
from export.parity_inputs import parity_inputs, probes_of
from export.parity_report import reports_from, table_from
from export.playground import epoch_files, layer_files, weights_in
from export.precision import HALF_TYPES, EmulatedBackend, onnx_in
from export.repository import publish, signer_from
from export.torch_program import inference_model, program_bytes, program_from_model
from serving.backends.base import Backend
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.select import UNFIT, open_litert, open_tensorrt
from serving.backends.torch_backend import TorchBackend
from serving.manifest import LITERT_NAME, MODEL_NAME, ONNX_NAME, PROGRAM_NAME, EngineSpec, Manifest, Probes
from training.checkpoint import Checkpoint, load_model
from training.config import TrainConfig, resume_command
from training.dataset import CLASSES, load_dataset
from training.device import hardware_of
from training.divergence import CHANCE, accuracy_of, is_near_chance


def check_provenance(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """Raises BadDataError for a checkpoint that nobody means to serve: a training broken off, or other data."""
    done, planned = checkpoint.completed_epochs, checkpoint.recipe.num_epochs
    if not checkpoint.is_complete and not config.untrained:
        what = f"{config.checkpoint_dir} has {done} of {planned} epochs"
        training = TrainConfig(
            recipe=checkpoint.recipe,
            checkpoint_dir=config.checkpoint_dir,
            data_dir=config.data_dir,
            unverified_data=not checkpoint.dataset_verified,
        )
        cure = f"{resume_command(training)} finishes it; --untrained exports it as it is"
        raise BadDataError("INCOMPLETE_CHECKPOINT", what, cure)
    if not config.unverified_data and not checkpoint.dataset_verified:
        what = f"{config.checkpoint_dir} was trained on data that is not, or not known to be, Fashion-MNIST"
        raise BadDataError("UNVERIFIED_CHECKPOINT", what, "train it again without --unverified-data")
    check_accuracy(checkpoint, config)


def check_accuracy(checkpoint: Checkpoint, config: ExportConfig) -> None:
    """Raises BadDataError NEAR_CHANCE for a model that is as good as guessing; with consent it is a warning."""
    accuracy = accuracy_of(checkpoint.metrics[-1]) if checkpoint.metrics else None
    if accuracy is None or not is_near_chance(accuracy):
        return
    what = f"{config.checkpoint_dir} has accuracy {accuracy:.3f}, and guessing has {CHANCE:g}"
    if not config.untrained:
        cure = "train it --again with another --learning-rate; --untrained exports it as it is"
        raise BadDataError("NEAR_CHANCE", what, cure)
    print(f"warning: NEAR_CHANCE: {what} (it was asked for with --untrained)", file=sys.stderr)


def open_backends(
    files: Mapping[str, bytes], max_batch_size: int, precision: str = "fp32", engines: Sequence[EngineSpec] = ()
) -> list[Backend]:
    """Opens the serving backends on the very bytes to publish: on the CPU, and on CUDA if that works.

    A half precision that nothing here computes in is emulated: a server proves the real one where it first runs. Raises
    ResourceUnavailableError NO_KERNELS if none but the reference can run here what would be published.
    """
    backends: list[Backend] = []
    open_onnx = partial(OnnxRuntimeBackend, precision=precision)
    for device in ("cpu", "cuda"):
        for open_backend, name in ((TorchBackend, PROGRAM_NAME), (open_onnx, ONNX_NAME)):
            try:
                backends.append(open_backend(files[name], device=device, max_batch_size=max_batch_size))
            except ResourceUnavailableError as error:
                print(f"not compared on {device}: {error.why or error.what}")
    if LITERT_NAME in files:
        backends.append(open_litert(files[LITERT_NAME], max_batch_size))
    for spec in engines:
        try:
            engine, onnx_sha256 = files[spec.file], _sha256(files[ONNX_NAME])
            backends.append(
                open_tensorrt(engine, spec, onnx_sha256=onnx_sha256, device="cuda", max_batch_size=max_batch_size)
            )
        except ProgramError as error:
            if error.word not in UNFIT:
                raise
            print(f"not run here: {spec.file}, which is proven where it first serves: {error}")
    if precision in HALF_TYPES and all(backend.name == "torch" for backend in backends):
        print(f"emulated: nothing here computes in {precision}, so every operator's result is rounded to it")
        backends.append(EmulatedBackend(files[ONNX_NAME], max_batch_size=max_batch_size))
    if all(backend.name == "torch" for backend in backends):
        what = f"no runtime on this machine computes in {precision}, so nothing would be proven"
        raise ResourceUnavailableError("NO_KERNELS", what, "export on a machine with an NVIDIA GPU, or another one")
    return backends


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parity_error(report: ParityReport, reports: Mapping[str, bytes], directory: Path) -> BadDataError:
    """Leaves the reports of a failure in `directory`, to be read; the error names runtime, difference, image, layer."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in reports.items():
        write_atomically(directory / name, data)
    failed = next(runtime for runtime in report.runtimes if not runtime)
    what = (
        f"{failed.runtime} on {failed.device}: max_abs_diff {failed.max_abs_diff:.3g} from the float64 truth, worst "
        f"image index {failed.worst_image} ({failed.worst_image_name}), {report.first_divergence}"
    )
    return BadDataError("PARITY", what, f"nothing was published; read {directory / 'parity.md'}")


def manifest_of(
    files: Mapping[str, bytes],
    checkpoint: Checkpoint,
    config: ExportConfig,
    engines: tuple[EngineSpec, ...],
    probes: Probes,
) -> Manifest:
    """Makes the manifest of a version, to be published once its gate has passed; publishing gives it its number."""
    return Manifest(
        model_name=MODEL_NAME,
        version=0,
        architecture=checkpoint.recipe.architecture,
        precision=config.precision,
        classes=CLASSES,
        input=TensorSpec(name="images", dtype="uint8", shape=(-1, 1, 28, 28)),
        output=TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),
        max_batch_size=config.max_batch_size,
        opset=opset_of(config.precision),
        checkpoint_sha256=checkpoint.sha256,
        parity_passed=True,
        files={name: _sha256(data) for name, data in files.items()},
        probes=probes,
        versions=package_versions(MADE_WITH),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        engines=engines,
    )


def main(arguments: list[str]) -> int:
    """Exports, proves and publishes one version. Raises ProgramError, and then nothing is published."""
    config = parse_arguments(arguments)
    sign = signer_from(config.signing_key) if config.signing_key else None
    check_writable(config.repository)  # all of the work takes a minute
    model, checkpoint = load_model(config.checkpoint_dir)
    check_provenance(checkpoint, config)
    data = load_dataset(config.data_dir, verify=not config.unverified_data)

    truth = truth_of(model)  # as it was trained: what was folded is proven with the rest
    inputs = parity_inputs(data.test_images, data.test_labels, truth)
    probes = probes_of(inputs, truth)
    inferring = inference_model(model)
    program = program_from_model(inferring, config.max_batch_size)
    architecture = checkpoint.recipe.architecture
    source = {"checkpoint_sha256": checkpoint.sha256, "architecture": architecture, "precision": "fp32"}
    fp32_onnx = onnx_from_program(program, classes=CLASSES, **source)
    files = {PROGRAM_NAME: program_bytes(program), ONNX_NAME: onnx_in(config.precision, fp32_onnx, data.train_images)}
    files |= layer_files(model, inferring, files[ONNX_NAME])
    files |= epoch_files(model, config.checkpoint_dir, checkpoint, weights_in(files), config.precision)
    if config.litert:
        files[LITERT_NAME] = litert_from(fp32_onnx)
    engines = engines_from_onnx(files[ONNX_NAME], config.engine_options, config.engine)
    files |= engines.files
    # The program is the reference: in another precision nobody is to serve it for what was asked for.
    kept = {name: file for name, file in files.items() if config.precision == "fp32" or name != PROGRAM_NAME}

    backends = open_backends(files, config.max_batch_size, config.precision, engines.specs)
    report = run_gate(truth, backends, inputs, config.precision)
    if not report:
        report = dataclasses.replace(report, first_divergence=explain_failure(report, inferring, files, inputs))
    images = "Fashion-MNIST, digests checked" if data.verified else "not Fashion-MNIST, or not checked"
    circumstances = {"hardware": hardware_of(torch.device("cpu")), "test images": images}
    circumstances |= {"engines": "; ".join(engines.about)}
    reports = reports_from(
        report, source | {"precision": config.precision} | package_versions(MADE_WITH) | circumstances
    )
    if not report:
        raise parity_error(report, reports, config.failed_dir)

    kept |= reports
    manifest = manifest_of(kept, checkpoint, config, engines.specs, probes)
    version_dir = publish(config.repository / MODEL_NAME, kept, manifest, sign)
    print(f"\n{table_from(report)}\n\nVersion {version_dir.name} of {MODEL_NAME} is in {version_dir}")
    print("\n".join(engines.about))
    return 0
