"""What fails in a batch costs its mates nothing: halves are run again until the image is found."""

import itertools
import math
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch

from atelier.contract import Images, Logits
from serving.backends.onnxruntime_backend import OnnxRuntimeBackend
from serving.batching.runs import LOWERED_S, BatchRuns, Ran, checked
from serving.errors import RequestError
from serving.manifest import ONNX_NAME
from tests.export.small_model import noise_images
from tests.reliability.plugin import Figure
from tests.serving.fake_backend import FakeBackend, image

POISON = 99
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 4096"
    ),
    RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
)


def images_of(labels: list[int]) -> Images:
    return np.concatenate([image(label) for label in labels])


def words(ran: Ran) -> dict[int, str]:
    return {index: error.word for index, error in ran.failures.items()}


@pytest.mark.fault("S25")
@pytest.mark.parametrize("num_images", [1, 2, 3, 33, 64])
def test_one_bad_image_is_found_at_every_position_and_its_mates_are_answered(num_images: int) -> None:
    for position in range(num_images):
        backend = FakeBackend()
        backend.poison[POISON] = ValueError("this image")
        labels = [index % 10 for index in range(num_images)]
        labels[position] = POISON
        ran = BatchRuns(backend).run(images_of(labels))
        assert words(ran) == {position: "BACKEND_FAILED"}
        answered = ran.logits.argmax(1).tolist()
        assert all(answered[index] == label for index, label in enumerate(labels) if index != position)
        assert len(backend.batches) - 1 <= 2 * math.ceil(math.log2(num_images)) + 1


class PickyBackend(OnnxRuntimeBackend):
    """Fails on one image."""

    bad: Images | None = None

    def infer(self, images: Images) -> Logits:
        if self.bad is not None and (images == self.bad).all(axis=(1, 2, 3)).any():
            raise RuntimeError("this image")
        return super().infer(images)


@pytest.mark.fault("S25")
@pytest.mark.goal("G6", of="positions of a bad image, on ONNX Runtime", ci=64, release=64)
def test_mates_of_a_bad_image_have_the_models_logits(small_repository: Path, size: int, figure: Figure) -> None:
    model = (small_repository / "lenet5" / "1" / ONNX_NAME).read_bytes()
    backend, images = PickyBackend(model, max_batch_size=64), noise_images(64)
    expected = backend.infer(images)
    largest = 0.0
    for position in range(size):
        backend.bad = images[position]
        ran = BatchRuns(backend).run(images)
        assert words(ran) == {position: "BACKEND_FAILED"}
        mates = np.arange(64) != position
        largest = max(largest, float(np.abs(ran.logits - expected)[mates].max()))
    figure(f"{size} of {size}: it alone failed; its mates' logits moved by {largest:.0e} at most")
    assert largest <= 1e-6


@pytest.mark.fault("S25")
def test_however_many_images_are_bad_none_is_answered_and_the_runs_are_bounded() -> None:
    random = Random(0)
    for num_bad in (2, 3, 10, 63, 64):
        bad = set(random.sample(range(64), num_bad))
        backend = FakeBackend()
        backend.poison[POISON] = ValueError("these images")
        ran = BatchRuns(backend).run(images_of([POISON if index in bad else index % 10 for index in range(64)]))
        assert bad <= ran.failures.keys()
        answered = ran.logits.argmax(1)
        assert all(answered[index] == index % 10 for index in range(64) if index not in ran.failures)
        assert len(backend.batches) <= 13


class SmallBackend(FakeBackend):
    """Has memory for so many images."""

    def __init__(self, memory: int, error: Exception = OUT_OF_MEMORY[0]) -> None:
        super().__init__()
        self.memory, self.error = memory, error

    def infer(self, images: Images) -> Logits:
        if len(images) > self.memory:
            self.batches.append([-1] * len(images))
            raise self.error
        return super().infer(images)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@pytest.mark.fault("S30")
@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30] or "MemoryError")
def test_batch_that_memory_is_too_small_for_is_run_in_halves(error: Exception) -> None:
    backend = SmallBackend(10, error)
    ran = BatchRuns(backend).run(images_of([index % 10 for index in range(64)]))
    assert words(ran) == {}
    assert ran.logits.argmax(1).tolist() == [index % 10 for index in range(64)]
    assert backend.sizes == [64, 32, 16, *[8] * 8]


@pytest.mark.fault("S30")
def test_batches_stay_small_for_a_minute_and_then_a_large_one_is_tried() -> None:
    now_s, backend = [0.0], SmallBackend(20)
    runs = BatchRuns(backend, lambda: now_s[0])
    expected = [(0.0, [64, 32, 16, 16, 16, 16]), (1.0, [16, 16, 16, 16]), (LOWERED_S + 1, [64, 32, 16, 16, 16, 16])]
    for at_s, sizes in expected:
        now_s[0] = at_s
        backend.batches.clear()
        assert not runs.run(image(3, 64)).failures
        assert backend.sizes == sizes
    backend.memory, now_s[0] = 64, 3 * LOWERED_S
    backend.batches.clear()
    for _ in range(2):
        assert not runs.run(image(3, 64)).failures
    assert backend.sizes == [64, 64]


@pytest.mark.fault("S30")
def test_image_that_there_is_no_memory_for_is_told_to_try_again() -> None:
    backend = SmallBackend(0)
    runs = BatchRuns(backend)
    ran = runs.run(image(3, 4))
    assert words(ran) == dict.fromkeys(range(4), "OUT_OF_MEMORY")
    assert {error.status for error in ran.failures.values()} == {"RESOURCE_EXHAUSTED"}
    backend.memory = 1
    assert not runs.run(image(3, 4)).failures


@pytest.mark.fault("S25")
def test_slow_device_is_not_asked_for_so_long_that_it_would_be_taken_for_hung() -> None:
    now_s = [0.0]

    class Slow(FakeBackend):
        def infer(self, images: Images) -> Logits:
            now_s[0] += 4.0
            return super().infer(images)

    backend = Slow()
    backend.poison[POISON] = ValueError("this image")
    ran = BatchRuns(backend, lambda: now_s[0], hang_timeout_s=30.0).run(images_of([POISON, *[1] * 63]))
    assert now_s[0] <= 30.0
    assert set(words(ran)) >= {0} and set(words(ran).values()) == {"BACKEND_FAILED"}
    assert 32 not in ran.failures  # what had been answered by then is


def test_bad_image_is_found_where_memory_is_short_too() -> None:
    backend = SmallBackend(3)
    backend.poison[POISON] = ValueError("this image")
    ran = BatchRuns(backend).run(images_of([1, 2, 3, 4, POISON, 6, 7, 8]))
    assert words(ran) == {4: "BACKEND_FAILED"}
    assert np.delete(ran.logits.argmax(1), 4).tolist() == [1, 2, 3, 4, 6, 7, 8]


# --- Logits that make no sense ---------------------------------------------------------------------------------------


@pytest.mark.fault("S28")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_single_value_that_is_not_finite_fails_its_image_alone(value: float) -> None:
    for row, column in itertools.product((0, 2), (0, 9)):
        ran = Ran(np.zeros((3, 10), np.float32))
        assert checked(ran, 3) is ran
        ran.logits[row, column] = value
        found = checked(ran, 3)
        assert isinstance(found, Ran)
        assert words(found) == {row: "BAD_OUTPUT"}


@pytest.mark.fault("S28")
def test_infinities_that_cancel_are_refused() -> None:
    found = checked(Ran(np.array([[np.inf] * 10, [-np.inf] * 10], np.float32)), 2)
    assert isinstance(found, RequestError) and found.word == "BAD_OUTPUT"


@pytest.mark.fault("S28")
@pytest.mark.parametrize("shape", [(0,), (10,), (20,), (1, 10), (2, 9), (3, 10), (2, 10, 1)])
def test_other_shape_than_one_row_per_image_is_refused(shape: tuple[int, ...]) -> None:
    found = checked(Ran(np.zeros(shape, np.float32)), 2)
    assert isinstance(found, RequestError) and found.word == "BAD_OUTPUT"
