"""The precisions: what they are in the graph, and that each passes its own row of the gate and no worse model does."""

import copy
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from atelier.contract import TOLERANCES
from atelier.errors import BadDataError, ResourceUnavailableError
from export.ladder import climb
from export.onnx_model import BF16_OPSET, OPSET
from export.parity import BATCH_SIZES, ParityReport, compare, run_gate
from export.precision import (
    HALF_TYPES,
    NUM_CALIBRATION_IMAGES,
    PRECISIONS,
    EmulatedBackend,
    calibration_images,
    emulated_onnx,
    onnx_in,
)
from serving.backends.base import Backend
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.manifest import ONNX_NAME
from tests.conftest import Job
from tests.export.small_model import MAX_BATCH_SIZE, exported_files, noise_images, noise_inputs, perturbed, seeded_model
from tests.export.small_model import truth as small_truth
from training.checkpoint import load_model
from training.dataset import FashionMNIST

FP32 = exported_files()[ONNX_NAME]
CALIBRATION = noise_images(256, seed=1)
MODELS = {precision: onnx_in(precision, FP32, CALIBRATION) for precision in PRECISIONS}
RUNS_ON_CPU = ("fp32", "tf32", "fp16", "int8")


def gate(precision: str, model: bytes) -> ParityReport:
    backend: Backend
    if precision == "bf16":
        backend = EmulatedBackend(model, max_batch_size=MAX_BATCH_SIZE)
    else:
        backend = OnnxRuntimeBackend(model, max_batch_size=MAX_BATCH_SIZE)
    return run_gate(small_truth(), [backend], noise_inputs(64), precision)


def test_every_precision_has_a_tolerance_and_coarser_ones_allow_more() -> None:
    assert tuple(TOLERANCES) == PRECISIONS
    for field in ("rtol", "atol", "tie_margin"):
        allowed = [getattr(tolerance, field) for tolerance in TOLERANCES.values()]
        assert allowed == sorted(allowed)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_passes_its_row(precision: str) -> None:
    report = gate(precision, MODELS[precision])
    assert report
    assert report.runtimes[0].precision == precision
    assert report.runtimes[0].num_decided > 32


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_no_lower_precision_passes_as_fp32(precision: str) -> None:
    open_backend = EmulatedBackend if precision in HALF_TYPES else OnnxRuntimeBackend
    backend = open_backend(MODELS[precision], max_batch_size=4)
    assert not run_gate(small_truth(), [backend], noise_inputs(16), "fp32")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bias_moved_by_twice_the_tolerance_is_caught(precision: str) -> None:
    tolerance = TOLERANCES[precision]
    moved = perturbed(FP32, "layers.linear3.bias", 3, by=2 * tolerance.atol + 4 * tolerance.rtol)
    assert not gate(precision, onnx_in(precision, moved, CALIBRATION))


def test_accuracy_lost_on_ties_fails_int8() -> None:
    """Every image is a tie for int8, and each goes to the wrong side: inside the tolerance, and useless."""
    inputs = noise_inputs(8)
    true_logits = np.zeros((8, 10))
    true_logits[np.arange(8), inputs.labels] = 0.1
    true_logits[-1, inputs.labels[-1]] = 5  # one that is decided
    wrong = true_logits.astype(np.float32)
    wrong[:-1, (inputs.labels[0] + 1) % 10] += 0.2
    result = compare(true_logits, wrong[np.newaxis], inputs, "int8", runtime="made up", device="cpu")
    assert (result.num_outside, result.top1_agreement) == (0, 1)
    assert result.accuracy_loss > 0.5
    assert not result


@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_and_logits_keep_their_types_and_the_metadata_tells_the_precision(precision: str) -> None:
    model = onnx.load_from_string(MODELS[precision])
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {entry.key: entry.value for entry in model.metadata_props}["precision"] == precision
    assert model.opset_import[0].version == (BF16_OPSET if precision == "bf16" else OPSET)
    assert model.graph.node[0].op_type == "Cast"


@pytest.mark.parametrize("precision", HALF_TYPES)
def test_everything_between_the_ends_of_a_half_model_is_half(precision: str) -> None:
    model = onnx.load_from_string(MODELS[precision])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    between = {name: element for name, element in types.items() if name != model.graph.node[0].output[0]}
    assert len(between) > 10
    assert set(between.values()) == {HALF_TYPES[precision][0]}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_model_and_images_give_the_same_bytes(precision: str) -> None:
    assert onnx_in(precision, FP32, CALIBRATION) == MODELS[precision]


def test_int8_is_symmetric_with_a_scale_per_output_channel_and_biases_in_float32() -> None:
    model = onnx.load_from_string(MODELS["int8"])
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    zero_points = [tensor for name, tensor in tensors.items() if name.endswith("_zero_point")]
    assert len(zero_points) == 10  # of five layers' weights and inputs
    assert all(tensor.dtype == np.int8 and not tensor.any() for tensor in zero_points)
    assert tensors["layers.conv2.weight_scale"].shape == (16,)
    assert tensors["layers.linear1.weight_scale"].shape == (120,)
    assert tensors["layers.linear1.bias"].dtype == np.float32
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert len(layers) == 5
    assert all(makers[name] == "DequantizeLinear" for node in layers for name in node.input[:2])


def test_calibration_takes_the_same_thousand_training_images_every_time() -> None:
    images = np.arange(60_000, dtype=np.uint16).view(np.uint8).reshape(60_000, 2)
    chosen = calibration_images(images)
    assert len(np.unique(chosen, axis=0)) == NUM_CALIBRATION_IMAGES
    assert np.array_equal(chosen, calibration_images(images))


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_emulation_rounds_as_torch_does_in_that_type(precision: str, dtype: torch.dtype) -> None:
    images = noise_images(MAX_BATCH_SIZE)
    emulated = EmulatedBackend(MODELS[precision], max_batch_size=MAX_BATCH_SIZE).infer(images)
    with torch.inference_mode():
        native = copy.deepcopy(seeded_model()).to(dtype)(torch.tensor(images)).float().numpy()  # (N, 10)
    last_place = np.spacing(np.abs(native).max()) * 2.0 ** (23 - {"fp16": 10, "bf16": 7}[precision])
    assert np.abs(emulated - native).max() <= 2 * last_place  # sums in another order may round to the neighbour
    assert np.mean(emulated == native) > 0.5
    assert emulated_onnx(MODELS[precision]) == emulated_onnx(MODELS[precision])


def test_bf16_on_a_cpu_is_refused_for_lack_of_kernels() -> None:
    with pytest.raises(ResourceUnavailableError, match="NO_KERNELS: asked for onnxruntime on cpu: Could not find an"):
        OnnxRuntimeBackend(MODELS["bf16"], max_batch_size=1)


def test_a_model_that_is_not_ours_is_refused_in_every_precision() -> None:
    model = onnx.load_from_string(FP32)
    model.graph.node[3].op_type = "Exp"
    with pytest.raises(BadDataError, match="BAD_MODEL"):
        onnx_in("fp16", model.SerializeToString(), CALIBRATION)


@pytest.mark.slow
def test_all_precisions_pass_on_real_images(job: Job, data: FashionMNIST) -> None:
    """A thousand of them; `make ladder` takes all ten thousand, as the export has done in fp32."""
    model, _ = load_model(job.checkpoint_dir)
    some = dataclasses.replace(data, test_images=data.test_images[:1000], test_labels=data.test_labels[:1000])
    rungs = list(climb(model, some, num_repeats=1))
    on_cpu = [(rung.parity.precision, rung.parity.runtime) for rung in rungs if rung.parity.device == "cpu"]
    assert [precision for precision, runtime in on_cpu if runtime == "onnxruntime"] == list(RUNS_ON_CPU)
    assert [precision for precision, runtime in on_cpu if runtime == "emulated"] == ["fp16", "bf16"]
    for rung in rungs:
        assert rung.parity, rung
        assert rung.parity.num_compared >= len(BATCH_SIZES) * 10 * 1000
        assert bool(rung.images_per_s) == (rung.parity.runtime != "emulated")
