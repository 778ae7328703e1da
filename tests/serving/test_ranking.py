"""Softmax and its order, against NumPy in float64."""

import numpy as np
import pytest

from serving.frontends.grpcio.responses import MANY_IMAGES, best, rank


def softmax(logits: list[float]) -> list[float]:
    exponentials = np.exp(np.array(logits) - max(logits))
    return (exponentials / exponentials.sum()).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [1e-3, 1, 50, 3e4])
def test_probabilities_are_the_softmax_and_descend(scale: float) -> None:
    for logits in np.random.default_rng(0).normal(0, scale, (100, 10)).tolist():
        ranked = rank(logits, 10)
        probabilities = softmax(logits)
        assert [label for label, _ in ranked] == np.argsort(-np.array(logits)).tolist()
        assert [probability for _, probability in ranked] == pytest.approx(sorted(probabilities, reverse=True))
        assert sum(probability for _, probability in ranked) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-3, 1, 50, 3e4])
@pytest.mark.parametrize("num_images", [1, MANY_IMAGES - 1, MANY_IMAGES, 300])
def test_best_is_the_first_of_the_ranked(num_images: int, scale: float) -> None:
    logits = np.random.default_rng(0).normal(0, scale, (num_images, 10)).astype(np.float32)
    logits[0, 7] = logits[0, 3] = logits[0].max()  # the first of equal ones
    labels, probabilities = best(logits)
    ranked = [rank(row, 1)[0] for row in logits.tolist()]
    assert labels == [label for label, _ in ranked]
    assert probabilities == pytest.approx([probability for _, probability in ranked], rel=1e-14)
    assert labels[0] <= 3


def test_equal_logits_rank_in_the_order_of_their_labels() -> None:
    assert [label for label, _ in rank([0.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], 4)] == [1, 3, 9, 2]


def test_top_k_returns_so_many() -> None:
    assert [len(rank([0.0] * 10, top_k)) for top_k in (1, 3, 10)] == [1, 3, 10]
