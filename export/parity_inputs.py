"""Makes what the runtimes are compared on: every test image, and images at the edges of what can be sent."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atelier.contract import Images
from serving.manifest import Probes

Truth = Callable[[Images], NDArray[np.float64]]  # (N, 1, 28, 28) -> (N, 10), the model in float64

NUM_PROBES = 64
NUM_NOISE = 128
NUM_NEAR_TIES = 64
NUM_BISECTIONS = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class ParityInputs:
    """Holds `images` (N, 1, 28, 28): first the test images, one per label, then one edge image per name."""

    images: Images
    labels: NDArray[np.uint8]  # (L,), L <= N
    edge_names: tuple[str, ...]  # N - L of them

    def describe(self, index: int) -> str:
        """Names an image: `test image 4711`, `edge image 3 (one pixel at row 0, column 2)`."""
        edge = index - len(self.labels)
        return f"test image {index}" if edge < 0 else f"edge image {edge} ({self.edge_names[edge]})"


def parity_inputs(test_images: Images, test_labels: NDArray[np.uint8], truth: Truth) -> ParityInputs:
    """Puts the edge images behind the test images."""
    edges = {
        "all 0": np.zeros((1, 1, 28, 28), np.uint8),
        "all 255": np.full((1, 1, 28, 28), 255, np.uint8),
        "single pixel": _single_pixel_images(),
        "noise": np.random.default_rng(0).integers(0, 256, (NUM_NOISE, 1, 28, 28), dtype=np.uint8),
        "near tie": _near_tie_images(test_images, truth),
    }
    names = [f"{name}, number {number}" for name, images in edges.items() for number in range(len(images))]
    images = np.concatenate([test_images, *edges.values()])  # (N, 1, 28, 28)
    return ParityInputs(images=images, labels=test_labels, edge_names=tuple(names))


def probes_of(inputs: ParityInputs, truth: Truth) -> Probes:
    """Chooses the manifest's 64 probes: up to four edge images of each kind, the others from all over the tests."""
    num_labels = len(inputs.labels)
    kinds = np.array([name.partition(",")[0] for name in inputs.edge_names])
    places = [np.flatnonzero(kinds == kind) for kind in dict.fromkeys(kinds)]
    edges = {num_labels + int(place[int(at)]) for place in places for at in np.linspace(0, len(place) - 1, 4)}
    tests = np.linspace(0, num_labels - 1, NUM_PROBES - len(edges)).astype(int)
    chosen = [*tests.tolist(), *sorted(edges)]
    images = inputs.images[chosen]  # (64, 1, 28, 28)
    return Probes.of([inputs.describe(index) for index in chosen], images, truth(images))


def _single_pixel_images() -> Images:
    """Makes (784, 1, 28, 28): number n is black but for its pixel n, counted row by row."""
    return np.diag(np.full(28 * 28, 255, np.uint8)).reshape(28 * 28, 1, 28, 28)


def _near_tie_images(test_images: Images, truth: Truth) -> Images:
    """Blends two test images, one on either side of where the first one's class ends: (128, 1, 28, 28).

    Where the decision is closest, a small error shows as another class. The end is found by bisection; rounding to
    uint8 moves single pixels by 1, so the two sides are as near as two images of this format can be.
    """
    first, second = test_images[: 2 * NUM_NEAR_TIES : 2], test_images[1 : 2 * NUM_NEAR_TIES : 2]
    first = first[: len(second)]

    def blend(weight: NDArray[np.float64]) -> Images:
        return np.rint((1 - weight) * first + weight * second).astype(np.uint8)

    first_class = truth(first).argmax(1)  # (64,)
    low, high = np.zeros((len(first), 1, 1, 1)), np.ones((len(first), 1, 1, 1))
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        is_first = (truth(blend(middle)).argmax(1) == first_class).reshape(-1, 1, 1, 1)
        low, high = np.where(is_first, middle, low), np.where(is_first, high, middle)
    return np.concatenate([blend(low), blend(high)])
