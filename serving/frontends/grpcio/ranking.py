"""Ranks classes by logits: softmax, shifted by the maximum so that it cannot overflow."""

from math import exp

import numpy as np

from atelier.contract import Logits

# From so many images on NumPy is faster than Python: it takes 6 us to begin, and 0.2 us an image instead of 1.4 us.
MANY_IMAGES = 6


def best(logits: Logits) -> tuple[list[int], list[float]]:
    """Returns the most probable label of each image and its probability; of equal ones the first label."""
    if len(logits) >= MANY_IMAGES:
        doubles = logits.astype(np.float64)  # (N, 10)
        totals = np.exp(doubles - doubles.max(1, keepdims=True)).sum(1)  # (N,): the largest is 1
        return logits.argmax(1).tolist(), (1 / totals).tolist()
    labels, probabilities = [], []
    for row in logits.tolist():
        largest = max(row)
        labels.append(row.index(largest))
        probabilities.append(1 / sum([exp(logit - largest) for logit in row]))
    return labels, probabilities


def probabilities(logits: Logits) -> Logits:
    """Returns the probability of each class, as `rank` has it, of each image."""
    return np.array([_softmax(row) for row in logits.tolist()], np.float32)


def rank(logits: list[float], top_k: int) -> list[tuple[int, float]]:
    """Returns the `top_k` most probable (label, probability) of one image, best first; equal ones by their labels."""
    probabilities = _softmax(logits)
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_k]
    return [(label, probabilities[label]) for label in order]


def _softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    exponentials = [exp(logit - largest) for logit in logits]  # the largest is 1
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]
