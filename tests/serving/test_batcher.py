"""The seven rules of the batcher, on a fake device whose gate and clock the test drives."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from atelier.contract import Images, Logits
from atelier.errors import ProgramError
from serving.batching.batcher import Batcher
from serving.batching.queue import BatchQueue
from serving.batching.request import Answer
from serving.errors import BackendError, ExpiredError, NotServingError, OverloadedError, RequestError
from tests.serving.fake_backend import FakeBackend, image

FAR_S = 1e9


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


@asynccontextmanager
async def running(backend: FakeBackend, **settings: Any) -> AsyncIterator[Batcher]:
    queue = BatchQueue(
        max_batch_size=backend.max_batch_size,
        max_queue_size=settings.pop("max_queue_size", 1000),
        max_queue_delay_us=settings.pop("max_queue_delay_us", 0),
    )
    batcher = Batcher(backend, queue, **settings)
    await batcher.start()
    try:
        yield batcher
    finally:
        backend.gate.set()
        await batcher.close()


async def device_started(backend: FakeBackend) -> None:
    """Returns when one more batch has reached the device."""
    assert await asyncio.to_thread(backend.started.acquire, timeout=10)


def labels(answer: Answer) -> list[int]:
    labels: list[int] = answer.logits.argmax(1).tolist()
    return labels


def test_free_device_runs_a_request_at_once_and_batches_grow_while_it_is_busy() -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with running(backend) as batcher:
            first = batcher.submit(image(1), FAR_S)
            await device_started(backend)
            rest = [batcher.submit(image(label), FAR_S) for label in (2, 3, 4)]
            backend.gate.set()
            answers = [await batcher.answer_to(request) for request in (first, *rest)]
        assert backend.batches == [[1], [2, 3, 4]]
        assert [labels(answer) for answer in answers] == [[1], [2], [3], [4]]
        assert [answer.batch_size for answer in answers] == [1, 3, 3, 3]

    run(test())


@pytest.mark.fault("S32")
def test_answers_belong_to_their_requests_whatever_their_neighbours() -> None:
    async def test() -> None:
        random = np.random.default_rng(0)
        backend = FakeBackend(max_batch_size=8)
        async with running(backend, max_queue_size=10**6) as batcher:
            wanted = [random.integers(0, 10, size).tolist() for size in random.integers(1, 30, 200)]
            batches = [np.concatenate([image(label) for label in row]) for row in wanted]
            requests = [batcher.submit(images, FAR_S) for images in batches]
            answers = await asyncio.gather(*map(batcher.answer_to, requests))
        assert [labels(answer) for answer in answers] == wanted

    run(test())


def test_split_request_is_rejoined_in_order() -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=4)
        async with running(backend) as batcher:
            images = np.concatenate([image(label) for label in range(10)])
            answer = await batcher.answer_to(batcher.submit(images, FAR_S))
        assert labels(answer) == list(range(10))
        assert answer.batch_size == 4  # the largest
        assert [len(batch) for batch in backend.batches] == [4, 4, 2]
        assert answer.logits.shape == (10, 10)

    run(test())


def test_full_queue_refuses_at_once() -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with running(backend, max_queue_size=2) as batcher:
            running_request = batcher.submit(image(1), FAR_S)
            await device_started(backend)
            waiting = batcher.submit(image(2, 2), FAR_S)
            with pytest.raises(OverloadedError, match="QUEUE_FULL"):
                batcher.submit(image(3), FAR_S)
            backend.gate.set()
            await batcher.answer_to(running_request)
            await batcher.answer_to(waiting)
        assert 3 not in backend.executed

    run(test())


def test_window_gathers_as_many_requests_as_the_last_batch_and_then_ends() -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with running(backend, max_queue_delay_us=10_000_000) as batcher:
            together = [batcher.submit(image(1), FAR_S) for _ in range(3)]
            await asyncio.gather(*map(batcher.answer_to, together))
            first, second = batcher.submit(image(2), FAR_S), batcher.submit(image(3), FAR_S)
            for _ in range(5):
                await asyncio.sleep(0)
            assert backend.executed == [1, 1, 1]  # the two wait for a third
            third = batcher.submit(image(4), FAR_S)
            await asyncio.gather(*map(batcher.answer_to, (first, second, third)))
        assert backend.batches == [[1, 1, 1], [2, 3, 4]]

    run(test())


def test_window_that_nobody_fills_ends_by_itself() -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with running(backend, max_queue_delay_us=20_000) as batcher:
            together = [batcher.submit(image(1), FAR_S) for _ in range(3)]
            await asyncio.gather(*map(batcher.answer_to, together))
            assert labels(await batcher.answer_to(batcher.submit(image(2), FAR_S))) == [2]
        assert backend.batches == [[1, 1, 1], [2]]

    run(test())


async def busy(batcher: Batcher, backend: FakeBackend) -> "asyncio.Task[Answer]":
    """Closes the gate and has the device run a batch behind it."""
    backend.gate.clear()
    task = asyncio.create_task(batcher.answer_to(batcher.submit(image(0), FAR_S)))
    await device_started(backend)
    return task


@pytest.mark.fault("S18")
def test_cancelled_request_is_not_executed_and_frees_its_place() -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with running(backend, max_queue_size=1) as batcher:
            first = await busy(batcher, backend)
            waiter = asyncio.create_task(batcher.answer_to(batcher.submit(image(5), FAR_S)))
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            replacement = batcher.submit(image(6), FAR_S)  # there is room again
            backend.gate.set()
            await first
            assert labels(await batcher.answer_to(replacement)) == [6]
        assert backend.executed == [0, 6]

    run(test())


@pytest.mark.fault("S19")
def test_request_cancelled_in_mid_batch_leaves_its_mates_their_answers() -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with running(backend) as batcher:
            first = await busy(batcher, backend)
            tasks = [asyncio.create_task(batcher.answer_to(batcher.submit(image(label), FAR_S))) for label in (1, 2, 3)]
            await asyncio.sleep(0)
            backend.gate.set()
            await first
            tasks[1].cancel()  # its batch may be on the device already: either way the mates are answered
            assert labels(await tasks[0]) == [1]
            assert labels(await tasks[2]) == [3]

    run(test())


def test_request_that_expires_while_queued_is_not_executed() -> None:
    async def test() -> None:
        now_s = [0.0]
        backend = FakeBackend()
        async with running(backend, clock=lambda: now_s[0]) as batcher:
            first = await busy(batcher, backend)
            late = batcher.submit(image(5), deadline_s=1.0)
            now_s[0] = 2.0
            backend.gate.set()
            await first
            with pytest.raises(ExpiredError, match="while the request was queued"):
                await batcher.answer_to(late)
            with pytest.raises(ExpiredError, match="on arrival"):
                batcher.submit(image(6), deadline_s=1.0)
        assert backend.executed == [0]

    run(test())


@pytest.mark.fault("S25")
def test_image_that_fails_fails_exactly_its_request_and_tells_no_secret() -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.poison[2] = RuntimeError("/secret/path")
        async with running(backend) as batcher:
            first = await busy(batcher, backend)
            mates = [batcher.submit(images, FAR_S) for images in (image(1), image(2), image(3, 2))]
            backend.gate.set()
            assert labels(await first) == [0]
            assert labels(await batcher.answer_to(mates[0])) == [1]
            with pytest.raises(BackendError, match="BACKEND_FAILED") as caught:
                await batcher.answer_to(mates[1])
            assert "secret" not in str(caught.value)
            assert labels(await batcher.answer_to(mates[2])) == [3, 3]
            assert labels(await batcher.answer_to(batcher.submit(image(9), FAR_S))) == [9]

    run(test())


class SteppedBackend(FakeBackend):
    """Runs one batch for each step."""

    def __init__(self, max_batch_size: int) -> None:
        super().__init__(max_batch_size)
        self.steps = threading.Semaphore(0)

    def infer(self, images: Images) -> Logits:
        assert self.steps.acquire(timeout=20), "the test made no step"
        return super().infer(images)


@pytest.mark.slow
def test_rest_of_a_failed_request_takes_no_room_while_the_device_is_busy() -> None:
    async def test() -> None:
        backend = SteppedBackend(max_batch_size=2)
        backend.poison[6] = RuntimeError("poison")
        async with running(backend) as batcher:
            requests = [batcher.submit(image(6, count), FAR_S) for count in (2, 8)]
            # Each batch of two is run again in halves; the second leaves the device in doubt, and one more batch on it.
            backend.steps.release(6)
            for request in requests:
                with pytest.raises(BackendError):
                    await batcher.answer_to(request)
            assert (batcher.num_waiting, batcher.num_waiting_requests) == (0, 0)
            backend.steps.release()

    run(test())


def test_failures_collect_no_tracebacks() -> None:
    """One error stands for many: with each raise its traceback would grow, and pin what it points to."""

    async def test() -> None:
        backend = FakeBackend()
        backend.poison[2] = RuntimeError("broken")
        depths = []
        async with running(backend) as batcher:
            for _ in range(5):
                with pytest.raises(BackendError) as caught:
                    await batcher.answer_to(batcher.submit(image(2), FAR_S))
                depths.append(len(caught.traceback))
                await batcher.answer_to(batcher.submit(image(1), FAR_S))  # or the device would be given up
        assert len(set(depths)) == 1

    run(test())


def test_images_that_cannot_be_assembled_fail_their_batch_only() -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with running(backend) as batcher:
            first = await busy(batcher, backend)
            broken = [batcher.submit(image(1), FAR_S), batcher.submit(np.zeros((1, 3), np.uint8), FAR_S)]
            backend.gate.set()
            await first
            for request in broken:
                with pytest.raises(BackendError):
                    await batcher.answer_to(request)
            assert labels(await batcher.answer_to(batcher.submit(image(4), FAR_S))) == [4]

    run(test())


@pytest.mark.fault("S28")
@pytest.mark.parametrize(
    "answer",
    [
        np.zeros((1, 10), np.float32),
        np.zeros((3, 10), np.float32),
        np.zeros((2, 9), np.float32),
        np.zeros(20, np.float32),
        np.zeros((2, 10, 1), np.float32),
        np.full((2, 10), np.nan, np.float32),
        np.full((2, 10), np.inf, np.float32),
    ],
    ids=["a row too few", "a row too many", "a class too few", "flat", "nested", "nan", "infinity"],
)
def test_output_that_makes_no_sense_is_an_error_and_never_a_label(answer: Any) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.answer = answer
        async with running(backend) as batcher:
            with pytest.raises(BackendError, match="BAD_OUTPUT"):
                await batcher.answer_to(batcher.submit(image(1, 2), FAR_S))

    run(test())


def test_hung_backend_trips_the_watchdog_and_fails_what_waits() -> None:
    async def test() -> None:
        backend = FakeBackend()
        failure: asyncio.Future[ProgramError] = asyncio.get_running_loop().create_future()
        async with running(backend, hang_timeout_s=0.05, on_failure=failure.set_result) as batcher:
            stuck = await busy(batcher, backend)
            waiting = batcher.submit(image(1), FAR_S)
            assert str(await failure).startswith("BACKEND_HUNG: a batch ran longer than 0.05 s (another process takes")
            with pytest.raises(NotServingError, match="BACKEND_HUNG"):
                await stuck
            with pytest.raises(NotServingError, match="BACKEND_HUNG"):
                await batcher.answer_to(waiting)
            with pytest.raises(NotServingError, match="BACKEND_HUNG"):
                batcher.submit(image(2), FAR_S)
        assert backend.executed == [0]

    run(test())


def test_watchdog_leaves_a_busy_but_living_backend_alone() -> None:
    async def test() -> None:
        now_s = [0.0]
        failures: list[ProgramError] = []
        backend = FakeBackend()
        async with running(backend, hang_timeout_s=0.02, on_failure=failures.append, clock=lambda: now_s[0]) as batcher:
            task = await busy(batcher, backend)
            now_s[0] = 0.019
            await asyncio.sleep(0.05)  # the timer fires, but on the batcher's clock the batch is young
            backend.gate.set()
            assert labels(await task) == [0]
        assert failures == []

    run(test())


async def outcome_of(batcher: Batcher, label: int) -> str:
    """Of a request that runs alone: "ok", or the first word of its error."""
    try:
        await batcher.answer_to(batcher.submit(image(label), FAR_S))
        return "ok"
    except RequestError as error:
        return error.word


@pytest.mark.fault("S26")
def test_third_failing_batch_in_a_row_gives_the_device_up() -> None:
    async def test() -> None:
        failures: list[ProgramError] = []
        backend = FakeBackend()
        backend.poison[2] = RuntimeError("CUDA error: an illegal memory access was encountered")
        async with running(backend, on_failure=failures.append) as batcher:
            assert [await outcome_of(batcher, 2) for _ in range(4)] == [*["BACKEND_FAILED"] * 3, "BACKEND_BROKEN"]
            with pytest.raises(NotServingError, match="BACKEND_BROKEN"):
                batcher.submit(image(1), FAR_S)
        (failure,) = failures
        assert str(failure).startswith("BACKEND_BROKEN: 3 batches in a row failed (another process takes over; ")
        assert backend.executed == [2, 2, 2]

    run(test())


def test_success_between_failures_starts_the_count_anew() -> None:
    async def test() -> None:
        failures: list[ProgramError] = []
        backend = FakeBackend()
        backend.poison[2] = RuntimeError("broken")
        async with running(backend, on_failure=failures.append) as batcher:
            outcomes = [await outcome_of(batcher, label) for label in (2, 2, 1, 2, 2, 1)]
        assert outcomes == ["BACKEND_FAILED", "BACKEND_FAILED", "ok"] * 2
        assert failures == []

    run(test())


@pytest.mark.slow
def test_device_that_hung_and_then_fails_is_given_up_once() -> None:
    async def test() -> None:
        failures: list[ProgramError] = []
        backend = FakeBackend()
        backend.poison[2] = RuntimeError("broken")
        async with running(backend, hang_timeout_s=0.5, on_failure=failures.append) as batcher:
            assert [await outcome_of(batcher, 2) for _ in range(2)] == ["BACKEND_FAILED"] * 2
            backend.gate.clear()
            assert await outcome_of(batcher, 2) == "BACKEND_HUNG"
            backend.gate.set()  # it comes back, and is the third in a row
        assert [failure.word for failure in failures] == ["BACKEND_HUNG"]

    run(test())


def test_output_that_makes_no_sense_counts_as_a_failure() -> None:
    async def test() -> None:
        failures: list[ProgramError] = []
        backend = FakeBackend()
        backend.answer = np.full((1, 10), np.nan, np.float32)
        async with running(backend, on_failure=failures.append) as batcher:
            assert [await outcome_of(batcher, 1) for _ in range(3)] == ["BAD_OUTPUT"] * 3
        assert [failure.word for failure in failures] == ["BACKEND_BROKEN"]

    run(test())


def test_batches_that_cannot_be_assembled_say_nothing_of_the_device() -> None:
    async def test() -> None:
        failures: list[ProgramError] = []
        backend = FakeBackend()
        async with running(backend, on_failure=failures.append) as batcher:
            for _ in range(4):
                mates = [batcher.submit(image(1), FAR_S), batcher.submit(np.zeros((1, 3), np.uint8), FAR_S)]
                for request in mates:
                    with pytest.raises(BackendError):
                        await batcher.answer_to(request)
            assert await outcome_of(batcher, 1) == "ok"
        assert failures == []

    run(test())


def test_what_waits_for_a_broken_device_is_told_to_go_elsewhere_and_never_executed() -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=1)  # full batches wait: one would be handed over ahead
        backend.poison[2] = RuntimeError("broken")
        async with running(backend) as batcher:
            first = await busy(batcher, backend)
            doomed = [batcher.submit(image(2), FAR_S) for _ in range(3)]
            waiting = [batcher.submit(image(label), FAR_S) for label in (4, 5, 6)]
            backend.gate.set()
            assert labels(await first) == [0]
            for request in doomed:
                with pytest.raises(BackendError, match="BACKEND_FAILED"):
                    await batcher.answer_to(request)
            for request in waiting:
                with pytest.raises(NotServingError, match=r"BACKEND_BROKEN: .*retry"):
                    await batcher.answer_to(request)
        assert backend.executed == [0, 2, 2, 2]

    run(test())


def test_device_that_cannot_be_freed_is_left_as_it_is() -> None:
    """After CUDA's worst errors every call fails, those that free included."""

    class Broken(FakeBackend):
        def close(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    async def test() -> None:
        async with running(Broken()) as batcher:
            assert await outcome_of(batcher, 1) == "ok"

    run(test())


def test_draining_refuses_new_requests_and_loses_no_accepted_one() -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=2)
        async with running(backend) as batcher:
            tasks = [await busy(batcher, backend)]
            tasks += [asyncio.create_task(batcher.answer_to(batcher.submit(image(1), FAR_S))) for _ in range(7)]
            drained = asyncio.create_task(batcher.drain(NotServingError("DRAINING", "shutting down")))
            await asyncio.sleep(0)
            with pytest.raises(NotServingError, match="DRAINING"):
                batcher.submit(image(2), FAR_S)
            assert not drained.done()
            backend.gate.set()
            await drained
            assert [labels(await task) for task in tasks] == [[0]] + [[1]] * 7
        assert backend.is_closed

    run(test())


def test_nothing_is_accepted_before_the_backend_is_warm() -> None:
    async def test() -> None:
        backend = FakeBackend()
        batcher = Batcher(backend, BatchQueue(max_batch_size=4, max_queue_size=4))
        with pytest.raises(NotServingError, match="NOT_WARM"):
            batcher.submit(image(0), FAR_S)
        await batcher.start()
        assert backend.is_warm
        assert labels(await batcher.answer_to(batcher.submit(image(3), FAR_S))) == [3]
        await batcher.close()

    run(test())


def test_backend_that_cannot_warm_up_fails_the_start() -> None:
    class Cold(FakeBackend):
        def warm_up(self) -> None:
            raise RuntimeError("no memory on the device")

    async def test() -> None:
        with pytest.raises(RuntimeError, match="no memory"):
            await Batcher(Cold(), BatchQueue(max_batch_size=4, max_queue_size=4)).start()

    run(test())


def test_one_thread_owns_the_device() -> None:
    threads: set[int] = set()

    class Watched(FakeBackend):
        def infer(self, images: Images) -> Logits:
            threads.add(threading.get_ident())
            return super().infer(images)

        def warm_up(self) -> None:
            threads.add(threading.get_ident())
            super().warm_up()

        def close(self) -> None:
            threads.add(threading.get_ident())
            super().close()

    async def test() -> None:
        async with running(Watched()) as batcher:
            answers: list[Awaitable[Answer]] = [batcher.answer_to(batcher.submit(image(1), FAR_S)) for _ in range(50)]
            await asyncio.gather(*answers)
        assert len(threads) == 1
        assert threading.get_ident() not in threads

    run(test())
