"""A progress bar in seconds, for measurements whose length is known."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tqdm import tqdm

BAR = "{desc:<34}|{bar}| {n:.0f} of {total:.0f} s"


class Progress:
    """Shown on a terminal only."""

    def __init__(self, total_s: float) -> None:
        self._bar = tqdm(total=total_s, bar_format=BAR, disable=None, leave=False)
        self._begun_s = self._planned_s = 0.0

    @contextmanager
    def step(self, name: str, planned_s: float) -> Iterator[None]:
        """One measurement."""
        self._planned_s = planned_s
        self._bar.set_description_str(name)
        yield
        self._begun_s += planned_s
        self._show(0.0)

    def tick(self, elapsed_s: float) -> None:
        """So much of the step has passed; one that takes longer than planned stands still."""
        self._show(min(elapsed_s, self._planned_s))

    def _show(self, of_step_s: float) -> None:
        self._bar.n = min(self._begun_s + of_step_s, self._bar.total or 0.0)
        self._bar.refresh()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
