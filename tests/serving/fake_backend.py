"""A backend that tests script: it answers at once, waits for a gate, raises, or answers nonsense."""

import threading

import numpy as np

from atelier.contract import IMAGE_SHAPE, Images, Logits, TensorSpec
from serving.manifest import Manifest, Probes

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MANIFEST = Manifest(
    model_name="lenet5",
    version=3,
    architecture="tutorial",
    precision="fp32",
    classes=CLASSES,
    input=TensorSpec(name="images", dtype="uint8", shape=(-1, 1, 28, 28)),
    output=TensorSpec(name="logits", dtype="float32", shape=(-1, 10)),
    max_batch_size=64,
    opset=20,
    checkpoint_sha256="c" * 64,
    parity_passed=True,
    files={"model.onnx": "a" * 64},
    probes=Probes(names=(), images="", logits=()),  # nothing proves a stand-in
    versions={},
    created="2026-11-23T00:00:00+00:00",
)


def image(label: int, count: int = 1) -> Images:
    """`count` images that FakeBackend answers with `label`."""
    return np.full((count, *IMAGE_SHAPE), label, np.uint8)


class FakeBackend:
    """Answers an image with the label that its first pixel names.

    `gate` is what a test closes to keep the device busy; `started` counts batches that reached the device.
    """

    name = "fake"
    device = "cpu"

    def __init__(self, max_batch_size: int = 64) -> None:
        self.max_batch_size = max_batch_size
        self.batches: list[list[int]] = []  # first pixels of each batch that was executed
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)
        self.poison: dict[int, Exception] = {}  # what a batch with such a first pixel raises
        self.nonsense: dict[int, float] = {}  # what the logits of such a first pixel are
        self.answer: Logits | None = None
        self.is_warm = False
        self.is_closed = False

    def infer(self, images: Images) -> Logits:
        self.batches.append(images[:, 0, 0, 0].tolist())
        self.started.release()
        assert self.gate.wait(timeout=20), "the test never opened the gate"
        for pixel in self.poison.keys() & set(self.batches[-1]):
            raise self.poison[pixel]
        if self.answer is not None:
            return self.answer
        logits = np.eye(10, dtype=np.float32)[images[:, 0, 0, 0]] * 9
        for pixel, value in self.nonsense.items():
            logits[images[:, 0, 0, 0] == pixel] = value
        return logits

    def warm_up(self) -> None:
        self.is_warm = True

    def close(self) -> None:
        self.is_closed = True

    @property
    def executed(self) -> list[int]:
        """First pixel of every image that was executed, in order."""
        return [pixel for batch in self.batches for pixel in batch]
