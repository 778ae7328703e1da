import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from atelier.contract import TOLERANCES
from atelier.errors import MissingInputError, ResourceUnavailableError, UsageError
from atelier.program import run_program
from export.config import ExportConfig, parse_arguments
from export.export import check_provenance, main
from export.precision import PRECISIONS
from export.repository import triton_config
from serving.backends.select import open_backend
from serving.manifest import (
    ENGINE_NAME,
    LAYERS_NAME,
    ONNX_NAME,
    PROGRAM_NAME,
    RTX_ENGINE_NAME,
    TENSORRT,
    TENSORRT_RTX,
    EngineSpec,
    load_manifest,
    read_verified,
)
from tests.export.small_model import manifest_for, noise_images, perturbed, seeded_model, truth
from tests.idx_files import write_idx_files
from tests.namespaces import read_only
from tests.tensorrt.bindings import rtx_bindings
from training.checkpoint import load_checkpoint, load_model, save_checkpoint
from training.dataset import CLASSES
from training.recipes import RECIPES
from training.run_record import EpochMetrics, RunRecord

HAS_TENSORRT = torch.cuda.is_available() and importlib.util.find_spec("tensorrt") is not None
RECORD = RunRecord(
    recipe=dataclasses.replace(RECIPES["tutorial"], num_epochs=1),
    seed=0,
    completed_epochs=1,
    metrics=(EpochMetrics(epoch=1, train_loss=0.5, train_acc=0.8, test_acc=0.8, step_seconds=1.0, seconds=1.0),),
    dataset_digests={},
    dataset_verified=False,
    num_train_images=0,
    versions={},
    hardware="none",
    device="cpu",
    num_threads=1,
    created="2026-01-01T00:00:00+00:00",
    wall_seconds=0.0,
)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with `data` and `checkpoint`; versions go to `models`."""
    write_idx_files(tmp_path / "data", num_train=10, num_test=30)
    (tmp_path / "checkpoint").mkdir()
    save_checkpoint(tmp_path / "checkpoint", seeded_model().state_dict(), RECORD)
    return tmp_path


def export_in(workplace: Path, *options: str) -> int:
    directories = {"--data-dir": "data", "--checkpoint-dir": "checkpoint", "--repository": "models"}
    given = [part for option, name in directories.items() for part in (option, str(workplace / name))]
    return run_program(main, [*given, "--unverified-data", "--max-batch-size", "16", *options])


@pytest.mark.fault("O1")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "written", "options"),
    [
        ("training", "--checkpoint-dir", ("--epochs", "1", "--device", "cpu")),
        ("export", "--repository", ("--max-batch-size", "16")),
    ],
)
def test_trainer_and_exporter_on_a_read_only_system_name_what_they_cannot_write(
    workplace: Path, module: str, written: str, options: tuple[str, ...]
) -> None:
    directories = ["--data-dir", workplace / "data", "--checkpoint-dir", workplace / "checkpoint"]
    directories += [written, workplace / "new"]
    program = [sys.executable, "-m", module, "--unverified-data", *map(str, directories), *options]
    environment = os.environ | {"TMPDIR": "/var/tmp"}  # noqa: S108
    done = subprocess.run([*read_only(), *program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 74, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: IO_ERROR: {workplace / 'new'}"), done.stderr
    assert "Read-only file system" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_export_publishes_a_proven_version(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_in(workplace) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "| torch on cpu " in printed.out
    assert "| onnxruntime on cpu " in printed.out
    assert f"Version 1 of lenet5 is in {workplace}/models/lenet5/1\n" in printed.out
    assert "TensorRT engine left out" in printed.out
    rtx_bindings()
    assert "not run here: model.rtx.engine, which is proven where it first serves: " in printed.out
    assert "model.rtx.engine: tensorrt-rtx 1." in printed.out

    first_dir = workplace / "models" / "lenet5" / "1"
    manifest = load_manifest(first_dir)
    assert set(manifest.files) == {PROGRAM_NAME, ONNX_NAME, RTX_ENGINE_NAME, LAYERS_NAME, "parity.json", "parity.md"}
    (engine,) = manifest.engines
    assert (engine.file, engine.onnx_sha256) == (RTX_ENGINE_NAME, manifest.files[ONNX_NAME])
    assert (engine.min_batch_size, engine.opt_batch_size, engine.max_batch_size) == (1, 16, 16)
    assert {path.name for path in first_dir.iterdir()} == {*manifest.files, "manifest.json"}
    assert manifest.classes == CLASSES
    assert manifest.checkpoint_sha256 == load_checkpoint(workplace / "checkpoint").sha256
    assert (manifest.max_batch_size, manifest.precision, manifest.opset) == (16, "fp32", 20)
    report = json.loads(read_verified(first_dir, manifest, "parity.json"))
    assert report["passed"] is True
    assert (report["num_test_images"], report["batch_sizes"]) == (30, [1, 2, 7, 16])
    assert report["made_with"]["test images"] == "not Fashion-MNIST, or not checked"
    assert "TensorRT" in report["made_with"]["engines"]

    backend, *_ = open_backend("auto", "cpu", first_dir, manifest, max_batch_size=16, num_threads=1)
    np.testing.assert_allclose(backend.infer(noise_images(5)), truth()(noise_images(5)), rtol=1e-5, atol=1e-5)

    assert export_in(workplace) == 0
    second = load_manifest(workplace / "models" / "lenet5" / "2")
    assert second.version == 2
    assert second.files[ONNX_NAME] == manifest.files[ONNX_NAME]  # same checkpoint, same bytes
    assert second.files[PROGRAM_NAME] == manifest.files[PROGRAM_NAME]


@pytest.mark.slow
@pytest.mark.fault("E13")
def test_a_failed_gate_publishes_nothing_and_names_runtime_image_and_layer(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    really_export: Any = torch.onnx.export

    def export_slightly_wrong(*arguments: Any, **options: Any) -> Any:
        model = really_export(*arguments, **options).model_proto
        moved = perturbed(model.SerializeToString(), "layers.conv2.bias", 0)
        return SimpleNamespace(model_proto=onnx.load_from_string(moved))

    monkeypatch.setattr(torch.onnx, "export", export_slightly_wrong)
    assert export_in(workplace) == os.EX_DATAERR
    error = capsys.readouterr().err
    report = json.loads((workplace / "parity-failed" / "parity.json").read_bytes())
    on_torch, on_onnxruntime = report["runtimes"]
    assert (report["passed"], on_torch["passed"], on_onnxruntime["passed"]) == (False, True, False)
    assert error.startswith("error: PARITY: onnxruntime on cpu: max_abs_diff 0.0")
    assert f"worst image index {on_onnxruntime['worst_image']} (" in error
    assert "first diverging layer layers.conv2 (value conv2d_1, max_abs_diff 0.01)" in error
    assert error.count("\n") == 1
    assert report["first_divergence"] in error
    assert report["first_divergence"] in (workplace / "parity-failed" / "parity.md").read_text()
    assert not (workplace / "models").exists()


@pytest.mark.slow
def test_a_gate_that_crashes_leaves_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("a runtime's last words")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", crash)
    assert export_in(workplace) == os.EX_SOFTWARE
    assert {path.name for path in workplace.iterdir()} == {"checkpoint", "data"}


@pytest.mark.fault("E1")
@pytest.mark.parametrize("flipped_byte", [0, 100, 5000, -1])
def test_a_changed_checkpoint_is_refused_and_nothing_is_made(
    flipped_byte: int, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = next((workplace / "checkpoint").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[flipped_byte] ^= 4
    weights.write_bytes(data)
    assert export_in(workplace) == os.EX_DATAERR
    assert capsys.readouterr().err.startswith("error: BAD_CHECKPOINT: ")
    assert not (workplace / "models").exists()


def test_a_missing_checkpoint_is_told(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_in(workplace, "--checkpoint-dir", str(workplace / "nowhere")) == os.EX_NOINPUT
    assert capsys.readouterr().err.startswith("error: NO_CHECKPOINT: ")


def test_data_that_is_not_fashion_mnist_is_refused_unless_allowed(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verified = dataclasses.replace(RECORD, dataset_verified=True)
    save_checkpoint(workplace / "checkpoint", seeded_model().state_dict(), verified)
    directories = ["--data-dir", str(workplace / "data"), "--checkpoint-dir", str(workplace / "checkpoint")]
    assert run_program(main, [*directories, "--repository", str(workplace / "models")]) == os.EX_DATAERR
    assert capsys.readouterr().err.startswith("error: BAD_DATASET: ")
    assert not (workplace / "models").exists()


def test_command_line_becomes_a_config() -> None:
    assert parse_arguments([]) == ExportConfig()
    assert parse_arguments(["--max-batch-size", "64", "--data-dir", "d", "--debug"]) == ExportConfig(
        max_batch_size=64, data_dir=Path("d")
    )


@pytest.mark.parametrize("max_batch_size", [-1, 0, 4097])
def test_a_largest_batch_out_of_bounds_is_refused(max_batch_size: int) -> None:
    with pytest.raises(UsageError, match=f"BAD_OPTIONS: --max-batch-size is {max_batch_size} .*1 to 4096"):
        ExportConfig(max_batch_size=max_batch_size)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_of:
        parse_arguments(["--help"])
    assert exit_of.value.code == 0
    assert "parity-failed/parity.md" in capsys.readouterr().out


@pytest.mark.slow
def test_training_that_broke_off_is_exported_only_on_request_and_without_an_engine_that_is_not_wanted(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = dataclasses.replace(RECORD, completed_epochs=0, metrics=())
    save_checkpoint(workplace / "checkpoint", seeded_model().state_dict(), record)
    assert export_in(workplace) == os.EX_DATAERR
    error = capsys.readouterr().err
    assert error.startswith("error: INCOMPLETE_CHECKPOINT: ")
    assert f"--resume --checkpoint-dir {workplace}/checkpoint --data-dir {workplace}/data" in error
    assert not (workplace / "models").exists()
    assert export_in(workplace, "--untrained", "--engine", "no") == 0
    assert "engines left out: --engine no" in capsys.readouterr().out
    assert load_manifest(workplace / "models" / "lenet5" / "1").engines == ()


def test_model_that_guesses_is_exported_only_on_request(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for test_acc in (0.1, 0.15):
        last = dataclasses.replace(RECORD.metrics[0], test_acc=test_acc)
        record = dataclasses.replace(RECORD, metrics=(last,))
        save_checkpoint(workplace / "checkpoint", seeded_model().state_dict(), record)
        assert export_in(workplace) == os.EX_DATAERR
        error = capsys.readouterr().err
        found = f"{workplace}/checkpoint has accuracy {test_acc:.3f}, and guessing has"
        assert error.startswith(f"error: NEAR_CHANCE: {found}")
        assert "--untrained exports it as it is" in error
        assert not (workplace / "models").exists()
    request = ExportConfig(checkpoint_dir=workplace / "checkpoint", unverified_data=True, untrained=True)
    check_provenance(load_model(request.checkpoint_dir)[1], request)
    assert capsys.readouterr().err.startswith("warning: NEAR_CHANCE: ")


def test_model_of_unverified_data_is_not_exported_as_if_of_fashion_mnist(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program(main, ["--checkpoint-dir", str(workplace / "checkpoint")]) == os.EX_DATAERR
    assert capsys.readouterr().err.startswith("error: UNVERIFIED_CHECKPOINT: ")


@pytest.mark.slow
def test_a_version_of_another_precision_is_proven_in_it_and_holds_no_program_in_fp32(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_in(workplace, "--precision", "int8") == 0
    assert "| onnxruntime on cpu " in capsys.readouterr().out
    version_dir = workplace / "models" / "lenet5" / "1"
    manifest = load_manifest(version_dir)
    assert manifest.precision == "int8"
    assert set(manifest.files) - {RTX_ENGINE_NAME} == {ONNX_NAME, LAYERS_NAME, "parity.json", "parity.md"}
    report = json.loads(read_verified(version_dir, manifest, "parity.json"))
    assert [runtime["precision"] for runtime in report["runtimes"] if runtime["device"] == "cpu"] == ["fp32", "int8"]
    backend, *_ = open_backend("onnxruntime", "cpu", version_dir, manifest, max_batch_size=16, num_threads=1)
    off = np.abs(backend.infer(noise_images(5)) - truth()(noise_images(5))).max()
    assert 1e-4 < off < 0.4  # 8 bits, and really so
    with pytest.raises(MissingInputError, match=r"NO_ARTIFACT: version 1 has no model\.pt2"):
        open_backend("torch", "cpu", version_dir, manifest, max_batch_size=16, num_threads=1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without CUDA")
def test_bf16_is_proven_by_emulation_and_served_only_where_it_can_be_run(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx_bindings()
    assert export_in(workplace, "--precision", "bf16") == 0
    printed = capsys.readouterr().out
    assert "emulated: nothing here computes in bf16" in printed
    assert "| emulated on cpu " in printed
    assert "types of its layers: 27 bf16, 2 fp32" in printed
    version_dir = workplace / "models" / "lenet5" / "1"
    manifest = load_manifest(version_dir)
    report = json.loads(read_verified(version_dir, manifest, "parity.json"))
    rows = [(runtime["runtime"], runtime["precision"], runtime["passed"]) for runtime in report["runtimes"]]
    assert rows == [("torch", "fp32", True), ("emulated", "bf16", True)]
    (engine,) = manifest.engines
    assert (engine.precision, engine.file) == ("bf16", RTX_ENGINE_NAME)
    with pytest.raises(ResourceUnavailableError, match=r"NO_KERNELS: asked for onnxruntime on cpu"):
        open_backend("auto", "auto", version_dir, manifest, max_batch_size=16, num_threads=1)


@pytest.mark.parametrize("flag", ["--precision", "--engine", "--hardware-compatible"])
def test_an_unknown_choice_is_refused_and_the_known_ones_are_named(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([flag, "fp64"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {flag}: invalid choice: 'fp64'" in error


# --- With a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.fault("E17")
def test_engine_asked_for_and_impossible_publishes_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if HAS_TENSORRT:
        pytest.skip("tells what happens without TensorRT")
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export_in(workplace, "--engine", "yes") == os.EX_UNAVAILABLE
    assert capsys.readouterr().err.startswith("error: RTX_UNAVAILABLE: TensorRT for RTX is not installed: ")
    assert not (workplace / "models").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_TENSORRT, reason="needs an NVIDIA GPU, and the extras `gpu` and `tensorrt`")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_engine_passes_its_gate_and_serves(precision: str, workplace: Path) -> None:
    assert export_in(workplace, "--engine", "yes", "--precision", precision) == 0
    version_dir = workplace / "models" / "lenet5" / "1"
    manifest = load_manifest(version_dir)
    engine = manifest.engine_of(TENSORRT)
    assert engine is not None
    assert engine.onnx_sha256 == manifest.files[ONNX_NAME]
    backend, why, _ = open_backend("auto", "auto", version_dir, manifest, max_batch_size=16, num_threads=1)
    assert backend.name == "tensorrt"
    assert why.startswith("model.plan is for ")
    backend.warm_up()
    tolerance = TOLERANCES[precision]
    expected = truth()(noise_images(7))
    np.testing.assert_allclose(backend.infer(noise_images(7)), expected, rtol=tolerance.rtol, atol=tolerance.atol)
    backend.close()


def test_triton_is_pointed_at_the_engine_where_there_is_one() -> None:
    assert 'platform: "onnxruntime_onnx"' in triton_config(manifest_for({}))
    spec = EngineSpec(
        flavour=TENSORRT,
        file=ENGINE_NAME,
        version="11.4.0.106",
        precision="fp32",
        driver="580.82.07",
        gpu="NVIDIA H200",
        compute_capabilities=("9.0",),
        onnx_sha256="0" * 64,
        min_batch_size=1,
        opt_batch_size=8,
        max_batch_size=16,
        version_compatible=False,
        hardware_compatible="none",
        layer_types={},
    )
    portable = dataclasses.replace(spec, flavour=TENSORRT_RTX, file=RTX_ENGINE_NAME)
    assert "onnxruntime_onnx" in triton_config(dataclasses.replace(manifest_for({}), engines=(portable,)))
    config = triton_config(dataclasses.replace(manifest_for({}), engines=(spec, portable)))
    assert 'platform: "tensorrt_plan"\ndefault_model_filename: "model.plan"' in config
