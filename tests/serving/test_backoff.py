"""How long a worker's replacement waits, by the numbers."""

import math

from serving.backoff import MAX_PAUSE_S, STABLE_S, failures_in_a_row, pause_s


def pauses_s(*served_s: float) -> list[float]:
    """Of replacements whose predecessors all failed, each so long after it was ready."""
    pauses, num_failures = [], 0
    for each in served_s:
        num_failures = failures_in_a_row(num_failures, each, is_failure=True)
        pauses.append(pause_s(num_failures))
    return pauses


def test_first_replacement_comes_at_once_and_the_next_ever_more_slowly() -> None:
    assert pauses_s(*[5.0] * 8) == [0, 1, 2, 4, 8, 16, MAX_PAUSE_S, MAX_PAUSE_S]


def test_worker_that_fails_after_long_service_is_replaced_at_once() -> None:
    assert pauses_s(10_000.0) == [0]


def test_replacement_that_has_stayed_up_for_a_minute_starts_the_pauses_anew() -> None:
    assert pauses_s(5, 5, 5, STABLE_S - 1, STABLE_S, 5, 5) == [0, 1, 2, 4, 0, 1, 2]


def test_other_ends_between_failures_neither_lengthen_the_pauses_nor_forget_them() -> None:
    assert failures_in_a_row(3, 5.0, is_failure=False) == 3
    assert failures_in_a_row(3, -math.inf, is_failure=False) == 3  # it never was ready
    assert failures_in_a_row(3, STABLE_S, is_failure=False) == 0


def test_pauses_stay_the_same_for_ever() -> None:
    assert pause_s(10**6) == MAX_PAUSE_S
