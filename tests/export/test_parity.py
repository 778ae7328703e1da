import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from atelier.contract import TIE_MARGIN, Images, Logits
from atelier.errors import BadDataError
from export.parity import ParityReport, RuntimeParity, compare, run_gate
from export.parity_inputs import ParityInputs
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.backends.torch_backend import TorchBackend
from serving.manifest import ONNX_NAME, PROGRAM_NAME
from tests.export.small_model import (
    MAX_BATCH_SIZE,
    exported_files,
    noise_inputs,
    perturbed,
    truth,
    weights_of,
    with_weights,
)
from tests.reliability.plugin import Figure

ONNX = exported_files()[ONNX_NAME]
WEIGHTS = weights_of(onnx.load_from_string(ONNX))
NOTHING = ParityInputs(images=np.empty((0, 1, 28, 28), np.uint8), labels=np.empty(0, np.uint8), edge_names=())


def gate(onnx_bytes: bytes, inputs: ParityInputs | None = None) -> ParityReport:
    torch = TorchBackend(exported_files()[PROGRAM_NAME], max_batch_size=MAX_BATCH_SIZE)
    onnxruntime = OnnxRuntimeBackend(onnx_bytes, max_batch_size=MAX_BATCH_SIZE)
    return run_gate(truth(), [torch, onnxruntime], noise_inputs() if inputs is None else inputs, "fp32")


def test_real_runtimes_pass_within_the_tolerance() -> None:
    report = gate(ONNX)
    assert report
    for runtime in report.runtimes:
        assert 0 < runtime.max_abs_diff < 1e-5
        assert runtime.top1_agreement == 1
        assert runtime.accuracy == 1  # the labels are the truth's own
        assert runtime.num_compared == 20 * 10 * 4
    assert report.batch_sizes == (1, 2, 7, 16)
    assert report.pairs[0].max_abs_diff < 1e-5


@pytest.mark.slow
@pytest.mark.fault("E13")
@pytest.mark.goal("G20", of="exports with a weight that is 0.02 off", ci=20, release=100)
def test_any_weight_moved_by_a_fiftieth_is_caught(size: int, figure: Figure) -> None:
    for seed in range(size):
        rng = np.random.default_rng(seed)
        name = str(rng.choice(sorted(WEIGHTS)))
        report = gate(perturbed(ONNX, name, int(rng.integers(WEIGHTS[name].size)), by=0.02))
        torch, onnxruntime = report.runtimes
        assert not report, seed
        assert torch
        assert not onnxruntime
    figure(f"{size} of {size} were caught by the gate")


@pytest.mark.parametrize("name", [name for name in WEIGHTS if name.endswith(".bias")])
def test_a_bias_in_the_wrong_order_is_caught(name: str) -> None:
    assert not gate(with_weights(ONNX, {name: WEIGHTS[name][::-1].copy()}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_fail(value: float) -> None:
    report = gate(perturbed(ONNX, "layers.linear3.bias", 3, by=value))
    assert not report
    assert report.runtimes[1].num_non_finite > 0


class WarmsUp(OnnxRuntimeBackend):
    """Tells what it is asked to do."""

    def __init__(self) -> None:
        super().__init__(ONNX, max_batch_size=MAX_BATCH_SIZE)
        self.calls: list[str] = []

    def infer(self, images: Images) -> Logits:
        self.calls.append("infer")
        return super().infer(images)

    def warm_up(self) -> None:
        self.calls.append("warm up")


def test_backends_are_compared_as_they_serve_after_warming_up() -> None:
    backend = WarmsUp()
    run_gate(truth(), [backend], noise_inputs(), "fp32")
    assert backend.calls[0] == "warm up" and backend.calls.count("warm up") == 1


def test_comparing_no_image_is_an_error() -> None:
    with pytest.raises(BadDataError, match="PARITY: nothing was compared: 2 runtimes, 0 test images"):
        gate(ONNX, NOTHING)


def test_comparing_no_runtime_is_an_error() -> None:
    with pytest.raises(BadDataError, match="PARITY: nothing was compared: 0 runtimes, 20 test images"):
        run_gate(truth(), [], noise_inputs(), "fp32")


class DriftingBackend:
    """A runtime that is wrong in batches of 7 only."""

    name, device, max_batch_size = "drifting", "cpu", MAX_BATCH_SIZE

    def infer(self, images: Images) -> Logits:
        logits = truth()(images).astype(np.float32)
        return logits + np.float32(0.5) if len(images) == 7 else logits

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.fault("E14")
def test_a_fault_at_one_batch_size_is_caught() -> None:
    report = run_gate(truth(), [DriftingBackend()], noise_inputs(), "fp32")
    assert not report
    assert report.runtimes[0].max_batch_movement == pytest.approx(0.5, abs=1e-5)


# --- the comparison itself, on numbers made for it --------------------------------------------------------------------


def against(truth_logits: NDArray[np.float64], *found: NDArray[np.float64], precision: str = "fp32") -> RuntimeParity:
    """`found` has one array (N, 10) per batch size."""
    inputs = ParityInputs(
        images=np.zeros((len(truth_logits), 1, 28, 28), np.uint8),
        labels=truth_logits.argmax(1).astype(np.uint8),
        edge_names=(),
    )
    logits = np.stack(found).astype(np.float32)
    return compare(truth_logits, logits, inputs, precision, runtime="made up", device="cpu")


def logits_of_two(first: float, second: float) -> NDArray[np.float64]:
    """One image whose classes 0 and 1 lead with these logits."""
    return np.array([[first, second] + 8 * [-1.0]])


def test_tolerance_grows_with_the_truth() -> None:
    large, small = logits_of_two(1000, 0), logits_of_two(1, 0)
    error = 5e-3 * np.eye(10)[0]
    assert against(large, large + error)
    assert not against(small, small + error)


def test_an_error_just_outside_the_tolerance_fails_and_one_inside_passes() -> None:
    zero = logits_of_two(1, 0)
    error = np.eye(10)[1]  # only where the truth is 0, so only atol counts
    assert against(zero, zero + 0.99e-5 * error)
    assert not against(zero, zero + 1.01e-5 * error)


def test_a_tie_may_go_either_way_and_is_counted_apart() -> None:
    truth_logits = np.concatenate([logits_of_two(5, 5 + TIE_MARGIN / 10), logits_of_two(5, 1)])
    swapped = np.concatenate([logits_of_two(5 + TIE_MARGIN / 10, 5), logits_of_two(5, 1)])
    result = against(truth_logits, swapped)
    assert result
    assert result.num_decided == 1
    assert result.top1_agreement == 1


def test_only_ties_decide_nothing_and_fail() -> None:
    tie = logits_of_two(5, 5)
    assert not against(tie, tie)


def test_another_class_outside_a_tie_is_a_disagreement_and_a_flip() -> None:
    truth_logits = logits_of_two(5, 4)
    result = against(truth_logits, truth_logits, logits_of_two(4, 5))
    assert not result
    assert result.top1_agreement == 0
    assert result.num_batch_flips == 1
    assert result.max_batch_movement == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_in_the_right_class_is_outside_the_tolerance(value: float) -> None:
    found = logits_of_two(value, 4)  # NumPy's argmax takes NaN for the best
    result = against(logits_of_two(5, 4), found)
    assert not result
    assert (result.num_outside, result.num_non_finite, result.top1_agreement) == (1, 1, 1)


def test_the_worst_image_is_named() -> None:
    truth_logits = np.concatenate(5 * [logits_of_two(5, 4)])
    found = truth_logits.copy()
    found[3, 2] += 1
    result = against(truth_logits, found)
    assert (result.worst_image, result.worst_image_name) == (3, "test image 3")
    assert result.max_abs_diff == pytest.approx(1)
    assert result.num_outside == 1


def test_a_truth_that_is_no_number_fails() -> None:
    assert not against(np.full((1, 10), np.nan), np.zeros((1, 10)))
