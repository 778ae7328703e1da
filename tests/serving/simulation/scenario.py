"""What happens in one simulated life of a server, all of it drawn from a seed.

The first half is the native core's, draw by draw (native/tests/simulation/scenario.rs): a seed is the same
scenario in both. The second half is what only this server has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

T = TypeVar("T")
_MASK = (1 << 64) - 1


class Random:
    """Sebastiano Vigna's splitmix64."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def between(self, low: int, high: int) -> int:
        """Draws from `low` to `high`, both included."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return low + (z ^ (z >> 31)) % (high - low + 1)

    def is_one_in(self, n: int) -> bool:
        """Draws true once in so many times; never if 0."""
        return n > 0 and self.between(0, n - 1) == 0

    def one_of(self, choices: Sequence[T]) -> T:
        """Draws one of these."""
        return choices[self.between(0, len(choices) - 1)]

    def seconds(self, longest_s: float) -> float:
        """Draws a time up to this, to the microsecond."""
        return self.between(0, round(longest_s * 1e6)) / 1e6 if longest_s else 0.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Holds what was drawn: times in seconds, and of faults one in how many there is; 0 is none."""

    max_batch_size: int
    max_queue_size: int
    hang_timeout_s: float
    is_calm: bool  # a constant pace, nothing fails or comes late: who has time must be answered in time
    base_s: float
    image_s: float
    slow: int
    failure: int
    hang: int
    cancellation: int
    num_requests: int
    num_peers: int
    max_images: int
    max_burst: int
    gap_s: float  # between two bursts, in the mean
    short_s: float
    max_lag_s: float  # how late a thread may wake
    tick_s: float
    drain: int | None  # behind so many requests
    swap: int | None

    window_s: float
    probe_after_s: float
    drain_timeout_s: float
    bad_image: int
    glitch: int  # a batch fails once
    memory: int  # images for which there is some; 0 is enough
    pause: int  # the whole process stands still
    decoding: int  # a call is admitted long before it asks the engine
    cold: int  # a version cannot be warmed up

    @classmethod
    def draw(cls, random: Random) -> Self:
        """Draws one."""
        is_calm = random.is_one_in(3)
        size = random.one_of([1, 2, 4, 8, 32, 64])
        max_queue_size = size * random.between(2, 12)
        unit_us = random.one_of([10, 100, 1_000, 20_000])
        base_us, image_us = random.between(1, 10) * unit_us, random.between(0, 10) * unit_us // 8
        batch_us = base_us + image_us * size
        max_images = random.one_of([1, (size + 1) // 2 + 1, size, 3 * size])
        max_burst = random.one_of([1, 4, 4 * size])
        # From a tenth of what the device can do to ten times that.
        burst_us = max_burst * max_images * batch_us // (4 * size)
        num_requests = random.between(1_000, 4_000) if random.is_one_in(50) else random.between(20, 160)

        def faults(rates: Sequence[int]) -> int:
            return 0 if is_calm else random.one_of(rates)

        def behind() -> int | None:
            return random.between(0, num_requests) if random.is_one_in(2) else None

        return cls(
            max_batch_size=size,
            max_queue_size=max_queue_size,
            hang_timeout_s=batch_us * random.between(10, 1_000) / 1e6,
            is_calm=is_calm,
            base_s=base_us / 1e6,
            image_s=image_us / 1e6,
            slow=faults([0, 5, 30]),
            failure=faults([0, 3, 20]),
            hang=faults([0, 0, 40]),
            cancellation=random.one_of([0, 3, 20]),
            num_requests=num_requests,
            num_peers=random.one_of([1, 3, 20]),
            max_images=max_images,
            max_burst=max_burst,
            gap_s=(1 + burst_us * random.one_of([1, 5, 10, 100]) // 10) / 1e6,
            short_s=(batch_us * random.between(1, 20) + random.between(0, 3_000)) / 1e6,
            max_lag_s=faults([0, base_us // 4, batch_us * 3]) / 1e6,
            tick_s=batch_us * random.between(1, 20) / 1e6,
            drain=behind(),
            swap=behind(),
            window_s=random.one_of([0, 0, 300, 8_000]) / 1e6,
            probe_after_s=random.one_of([2.0, 10.0]),
            drain_timeout_s=1e6 if is_calm else random.one_of([1e6, 3 * batch_us / 1e6, 0]),
            bad_image=faults([0, 0, 3, 30]),
            glitch=faults([0, 0, 5]),
            memory=faults([0, 0, 0, 1, max(1, size // 3)]),
            pause=faults([0, 0, 5]),
            decoding=random.one_of([0, 4]),
            cold=random.one_of([0, 3]),
        )

    @property
    def patience_s(self) -> float:
        """How long anything may take: a full queue, each of its batches as slow as none may be."""
        return 20 * self.hang_timeout_s + 50 * self.short_s + 100

    def batch_s(self, num_images: int) -> float:
        """Returns what the device usually takes."""
        return self.base_s + self.image_s * num_images

    def left_s(self, random: Random) -> float:
        """Draws how much time a request has."""
        kind = random.between(0, 9)
        return random.seconds(self.short_s * (0 if kind == 0 else 1 if kind <= 5 else 50))
