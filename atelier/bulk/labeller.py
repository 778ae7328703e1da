"""Labels a table of pictures by asking a server: the one function that a machine's threads and Ray's actors run."""

import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from atelier.answers import ClassifyError, program_errors
from atelier.bulk.sources import Source
from atelier.bulk.writers import Row, with_rows
from atelier.client import Client

PICTURES_AT_ONCE = 64
SHARE_OF_MESSAGE = 0.9  # the rest is for what a request has beside its pictures
ITS_OWN_FAULT = ("INVALID_ARGUMENT", "MESSAGE_TOO_LARGE")  # status or word of an error that no other try would mend
LONGEST_PAUSE_S = 5.0
NUM_TRIES = 8


class Labeller:
    """Takes tables, returns them labelled. Threads may share it; it connects when it is first called."""

    def __init__(
        self, connect: Callable[[], Client], source: Source, *, reading: dict[str, bool], timeout_s: float
    ) -> None:
        """`reading`: what `classify_pictures` is told of the pictures, prepare and invert."""
        self._client, self._source, self._reading, self._timeout_s = connect(), source, reading, timeout_s
        with program_errors():
            model = self._client.model(timeout_s=timeout_s)
        self._max_bytes = int(model.max_message_bytes * SHARE_OF_MESSAGE)
        self._max_pictures = min(PICTURES_AT_ONCE, model.max_images_per_request)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table with a label for each picture, or the reason why it has none.

        Raises ProgramError if the server cannot be asked any more.
        """
        rows = [row for content in self._requests(table) for row in self._rows(content)]
        return with_rows(self._source.kept(table), rows)

    def _requests(self, table: pa.Table) -> Iterator[list[bytes | str]]:
        """Yields pictures, and reasons for those that are none, as many as go into one request."""
        together: list[bytes | str] = []
        num_bytes = 0
        for content in self._source.contents(table, self._max_bytes):
            if together and (num_bytes + len(content) > self._max_bytes or len(together) == self._max_pictures):
                yield together
                together, num_bytes = [], 0
            together.append(content)
            num_bytes += len(content)
        if together:
            yield together

    def _rows(self, contents: list[bytes | str]) -> list[Row]:
        answered = iter(self._answered([content for content in contents if isinstance(content, bytes)]))
        return [next(answered) if isinstance(content, bytes) else Row(error=content) for content in contents]

    def _answered(self, pictures: list[bytes]) -> list[Row]:
        """Asks about all; if a picture among them is refused, about each half, until that one is alone."""
        if not pictures:
            return []
        try:
            return self._asked(pictures)
        except ClassifyError as error:
            if not {error.status, error.word} & set(ITS_OWN_FAULT):
                with program_errors():
                    raise
            if len(pictures) == 1:
                return [Row(error=error.message)]
        middle = len(pictures) // 2
        return self._answered(pictures[:middle]) + self._answered(pictures[middle:])

    def _asked(self, pictures: list[bytes]) -> list[Row]:
        """Asks once, and again while the server has too much to do."""
        for number in range(NUM_TRIES):
            try:
                answer = self._client.classify_pictures(pictures, **self._reading, timeout_s=self._timeout_s)
                break
            except ClassifyError as error:
                is_busy = error.status in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
                if not is_busy or error.word in ITS_OWN_FAULT or number == NUM_TRIES - 1:
                    raise
                time.sleep(min(LONGEST_PAUSE_S, 0.1 * 2**number))
        return [
            Row(best.label, best.name, best.probability, answer.model_version) for best, *_ in answer.classifications
        ]
