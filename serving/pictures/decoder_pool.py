"""Has requests' pictures decoded off the event loop, with bounds on what waits."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from serving.config import ServerConfig
from serving.errors import ExpiredError, OverloadedError
from serving.pictures.costs import MAX_WAITING_COST, cost_of_request
from serving.pictures.decoders import NUM_DECODERS, read_in_process
from serving.pictures.reading import Reading, ReadPicture

MANY_PICTURES = 16  # of more, decoding takes long; requests of so many may take up half of the queue


class DecoderPool:
    """Decodes for one event loop."""

    def __init__(self, config: ServerConfig) -> None:
        self.num_requests = 0  # whose pictures wait for their turn
        self._config = config
        self._threads = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="decode")  # each waits for a process
        self._num_pictures = 0  # that wait
        self._num_bytes = 0  # of these
        self._cost = 0  # of these
        self._is_done = asyncio.Event()
        self._is_done.set()

    async def decode(self, pictures: Sequence[bytes], reading: Reading, *, deadline_s: float) -> list[ReadPicture]:
        """Raises OverloadedError, ExpiredError and InvalidRequestError."""
        reading.check()
        cost = await asyncio.to_thread(cost_of_request, pictures)
        with self._place_for(pictures, cost):
            # One by one: other requests' pictures get their turn between them, and the wait ends when nobody waits.
            return [await self._decoded(picture, index, reading, deadline_s) for index, picture in enumerate(pictures)]

    async def finish(self) -> None:
        """Returns when no accepted picture waits to be decoded: then all that was accepted is the engine's."""
        await self._is_done.wait()

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _decoded(self, picture: bytes, index: int, reading: Reading, deadline_s: float) -> ReadPicture:
        """Waits in a thread for the picture."""
        if time.monotonic() >= deadline_s:
            raise ExpiredError("EXPIRED", f"the deadline passed after {index} pictures were decoded")
        return await asyncio.get_running_loop().run_in_executor(self._threads, read_in_process, picture, index, reading)

    @contextmanager
    def _place_for(self, pictures: Sequence[bytes], cost: int) -> Iterator[None]:
        """Raises OverloadedError if too many pictures, bytes or pixels of them wait to be decoded."""
        num_bytes, limit = sum(map(len, pictures)), self._config.max_queue_size
        if len(pictures) > MANY_PICTURES:
            limit = max(limit // 2, self._config.max_images_per_request)  # the rest is for small requests
        if self._num_pictures + len(pictures) > limit:
            what = f"{self._num_pictures} pictures wait to be decoded, and {len(pictures)} more would exceed {limit}"
            raise OverloadedError("QUEUE_FULL", what, "try again later, or raise --max-queue-size")
        limit = self._config.max_encoded_bytes
        if self._num_bytes + num_bytes > limit:
            what = f"{self._num_bytes} bytes of pictures wait, and {num_bytes} more would exceed {limit}"
            raise OverloadedError("QUEUE_FULL", what, "try again later")
        if self._cost + cost > MAX_WAITING_COST:
            what = f"{self._cost} pixels of pictures wait, and {cost} more would exceed {MAX_WAITING_COST}"
            raise OverloadedError("QUEUE_FULL", what, "try again later")
        self.num_requests += 1
        self._num_pictures += len(pictures)
        self._num_bytes += num_bytes
        self._cost += cost
        self._is_done.clear()
        try:
            yield
        finally:
            self.num_requests -= 1
            self._num_pictures -= len(pictures)
            self._num_bytes -= num_bytes
            self._cost -= cost
            if not self._num_pictures:
                self._is_done.set()
