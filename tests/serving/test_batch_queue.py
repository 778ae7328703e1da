"""The policy of batching, on a clock driven by hand."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.batching.queue import BatchQueue
from serving.batching.request import Request
from serving.errors import OverloadedError
from tests.serving.fake_backend import image

FAR_S = 1e9


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def request(
    loop: asyncio.AbstractEventLoop,
    count: int = 1,
    *,
    arrived_s: float = 0.0,
    deadline_s: float = FAR_S,
    peer: str = "",
) -> Request:
    future = loop.create_future()
    return Request(images=image(0, count), future=future, arrived_s=arrived_s, deadline_s=deadline_s, peer=peer)


def make_queue(*, max_batch_size: int = 4, max_queue_size: int = 8, max_queue_delay_us: int = 0) -> BatchQueue:
    return BatchQueue(
        max_batch_size=max_batch_size, max_queue_size=max_queue_size, max_queue_delay_us=max_queue_delay_us
    )


def test_free_device_takes_a_request_at_once(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    assert queue.ready_in_s(0.0) is None
    queue.add(request(loop), 0.0)
    assert queue.ready_in_s(0.0) == 0.0


def queue_after_batch_of(num_requests: int, loop: asyncio.AbstractEventLoop) -> BatchQueue:
    """A queue that handed out a batch of so many requests at 10 s; its window is 1 ms."""
    queue = make_queue(max_queue_delay_us=1000)
    for _ in range(num_requests):
        queue.add(request(loop), 10.0)
    queue.take(10.0)
    return queue


def test_lone_request_never_waits(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(1, loop)
    queue.add(request(loop, arrived_s=10.001), 10.001)
    assert queue.ready_in_s(10.001) == 0.0


def test_window_counts_from_the_oldest_request(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(4, loop)
    for arrived_s in (10.001, 10.0014, 10.0018):
        queue.add(request(loop, arrived_s=arrived_s), arrived_s)
    assert queue.ready_in_s(10.0019) == pytest.approx(0.0001)
    assert queue.ready_in_s(10.0021) == 0.0


def test_window_ends_early_when_none_has_come_for_a_third_of_it(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(3, loop)
    queue.add(request(loop, arrived_s=10.001), 10.001)
    assert queue.ready_in_s(10.001) == pytest.approx(0.001 / 3)
    queue.add(request(loop, arrived_s=10.0012), 10.0012)
    assert queue.ready_in_s(10.0013) == pytest.approx(0.001 / 3 - 0.0001)
    assert queue.ready_in_s(10.0016) == 0.0


def test_as_many_requests_as_last_time_end_the_window(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(2, loop)
    queue.add(request(loop, arrived_s=10.001), 10.001)
    assert queue.ready_in_s(10.001) != 0.0
    queue.add(request(loop, arrived_s=10.0012), 10.0012)
    assert queue.ready_in_s(10.0012) == 0.0


def test_full_batch_ends_the_window(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(3, loop)
    queue.add(request(loop, 4, arrived_s=10.001), 10.001)
    assert queue.ready_in_s(10.001) == 0.0


def test_request_after_a_pause_never_waits(loop: asyncio.AbstractEventLoop) -> None:
    queue = queue_after_batch_of(3, loop)
    queue.add(request(loop, arrived_s=10.5), 10.5)
    assert queue.ready_in_s(10.5) == 0.0


def test_window_of_zero_never_waits(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_delay_us=0)
    for _ in range(3):
        queue.add(request(loop), 0.0)
    queue.take(0.0)
    queue.add(request(loop), 0.0)
    assert queue.ready_in_s(0.0) == 0.0


def test_batch_holds_whole_requests_in_order_of_arrival(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    requests = [request(loop, count) for count in (2, 1, 3)]
    for each in requests:
        queue.add(each, 0.0)
    first, _ = queue.take(0.0)
    second, _ = queue.take(0.0)
    assert [part.request for part in first] == requests[:2]
    assert [part.request for part in second] == requests[2:]
    assert queue.take(0.0) == ([], [])


def test_request_larger_than_a_batch_is_split_and_shares_its_last_batch(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=20)
    large, small = request(loop, 10), request(loop, 2)
    queue.add(large, 0.0)
    queue.add(small, 0.0)
    batches = [queue.take(0.0)[0] for _ in range(3)]
    assert [[(part.request, part.start, part.stop) for part in batch] for batch in batches] == [
        [(large, 0, 4)],
        [(large, 4, 8)],
        [(large, 8, 10), (small, 0, 2)],
    ]
    assert queue.num_images == 0


def test_batches_never_exceed_their_limit_and_lose_no_image(loop: asyncio.AbstractEventLoop) -> None:
    random = np.random.default_rng(0)
    queue = make_queue(max_batch_size=16, max_queue_size=10**9)
    sizes = random.integers(1, 50, 500).tolist()
    for size in sizes:
        queue.add(request(loop, size), 0.0)
    taken = 0
    while batch := queue.take(0.0)[0]:
        num_images = sum(part.stop - part.start for part in batch)
        assert 1 <= num_images <= 16
        taken += num_images
    assert taken == sum(sizes)


def test_queue_is_bounded_in_images(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=8)
    queue.add(request(loop, 5), 0.0)
    queue.add(request(loop, 3), 0.0)
    with pytest.raises(OverloadedError, match=r"QUEUE_FULL: 8 images wait and 1 more would exceed 8"):
        queue.add(request(loop, 1), 0.0)
    queue.take(0.0)  # 4 of the 5
    queue.add(request(loop, 4), 0.0)


def test_cancelled_request_frees_its_place_at_once(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=4)
    gone = request(loop, 4)
    queue.add(gone, 0.0)
    gone.future.cancel()
    queue.forget(gone)
    queue.add(request(loop, 4), 0.0)
    assert queue.num_images == 4


def test_cancelled_request_is_in_no_batch(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    gone, stays = request(loop), request(loop)
    queue.add(gone, 0.0)
    queue.add(stays, 0.0)
    gone.future.cancel()
    batch, expired = queue.take(0.0)
    assert [part.request for part in batch] == [stays]
    assert expired == []


def test_device_is_not_woken_for_cancelled_requests(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    gone = request(loop)
    queue.add(gone, 0.0)
    gone.future.cancel()
    assert queue.ready_in_s(0.0) is None
    assert queue.num_images == 0


def test_expired_request_is_handed_back_and_in_no_batch(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    late, alive = request(loop, deadline_s=5.0), request(loop, deadline_s=6.0)
    queue.add(late, 0.0)
    queue.add(alive, 0.0)
    batch, expired = queue.take(5.0)
    assert [part.request for part in batch] == [alive]
    assert expired == [late]
    assert queue.num_images == 0


def test_request_that_expires_and_is_cancelled_gives_its_room_back_once(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    late = request(loop, 3, deadline_s=1.0)
    queue.add(late, 0.0)
    queue.take(2.0)
    late.future.cancel()
    queue.forget(late)
    assert queue.num_images == 0
    assert not queue.num_images_of


@pytest.mark.fault("S21")
def test_request_that_cannot_meet_its_deadline_is_refused(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_batch_size=4, max_queue_size=1000)
    queue.observe(4, 0.04)  # 10 ms an image
    queue.add(request(loop, 100), 0.0)
    # What waits, its own image, 1 ms, and an eighth of its time.
    with pytest.raises(OverloadedError, match=r"DEADLINE_TOO_SHORT: 1000 ms are left, .* take 1136 ms"):
        queue.add(request(loop, deadline_s=1.0), 0.0)
    queue.add(request(loop, deadline_s=1.2), 0.0)


@pytest.mark.fault("S21")
def test_what_the_device_has_is_waited_for_too(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_batch_size=4, max_queue_size=1000)
    queue.observe(4, 0.04)  # 10 ms an image
    for now_s in (0.0, 0.0):  # one that runs, and one behind it
        queue.add(request(loop, 4), now_s)
        queue.take(now_s)
    with pytest.raises(OverloadedError, match=r"DEADLINE_TOO_SHORT: 100 ms are left, .* take 104 ms"):
        queue.add(request(loop, deadline_s=0.1), 0.0)
    queue.add(request(loop, deadline_s=0.105), 0.005)
    queue.finish(4, 0.02)  # earlier than thought
    queue.add(request(loop, deadline_s=0.1), 0.02)
    queue.finish(4, 0.06)
    queue.add(request(loop, deadline_s=0.1), 0.06)


@pytest.mark.fault("S21")
def test_idle_device_is_asked_whatever_was_measured(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    queue.observe(4, 40.0)
    queue.add(request(loop, deadline_s=0.01), 0.0)
    with pytest.raises(OverloadedError, match="DEADLINE_TOO_SHORT"):
        queue.add(request(loop, deadline_s=0.01), 0.0)


@pytest.mark.fault("S21")
@pytest.mark.parametrize("deadline_s", [0.02, 0.1])
def test_ten_times_what_a_device_can_do_leaves_it_nine_tenths_of_its_goodput(
    deadline_s: float, loop: asyncio.AbstractEventLoop
) -> None:
    """A device of 500 images a second, one at a time; the next batch lies behind the one that runs."""
    queue = make_queue(max_batch_size=1, max_queue_size=4096)
    image_s, num_arrived, num_in_time = 0.002, 0, 0
    on_device: list[tuple[Request, float]] = []  # and when it will be done
    while num_arrived < 10_000:
        now_s = num_arrived / 5_000
        while on_device and on_device[0][1] <= now_s:
            done, ends_s = on_device.pop(0)
            num_in_time += ends_s < done.deadline_s
            queue.observe(1, image_s)
            queue.finish(1, ends_s)
        with contextlib.suppress(OverloadedError):
            queue.add(request(loop, arrived_s=now_s, deadline_s=now_s + deadline_s), now_s)
        while len(on_device) < 2 and queue.num_images:
            parts, _ = queue.take(now_s)
            begins_s = max(now_s, on_device[-1][1]) if on_device else now_s
            on_device += [(part.request, begins_s + image_s) for part in parts]
        num_arrived += 1
    assert num_in_time >= 0.9 * 500 * now_s


@pytest.mark.fault("S24")
def test_lone_client_may_use_all_room_and_all_time(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=100)
    queue.observe(4, 0.04)  # 10 ms an image
    for _ in range(100):
        queue.add(request(loop, peer="lone", deadline_s=1.2), 0.0)
    with pytest.raises(OverloadedError, match=r"QUEUE_FULL: 100 images wait and 1 more would exceed 100 \("):
        queue.add(request(loop, peer="lone"), 0.0)


@pytest.mark.fault("S24")
def test_connection_leaves_twice_as_much_room_as_it_holds_to_others(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=100)
    queue.add(request(loop, peer="modest"), 0.0)
    for _ in range(33):
        queue.add(request(loop, peer="greedy"), 0.0)
    expected = r"QUEUE_FULL: 34 images wait and 1 more would exceed 100, with 66 kept for other connections \("
    with pytest.raises(OverloadedError, match=expected):
        queue.add(request(loop, peer="greedy"), 0.0)
    for _ in range(21):
        queue.add(request(loop, peer="modest"), 0.0)
    queue.add(request(loop, 45, peer="newcomer"), 0.0)


@pytest.mark.fault("S24")
def test_connection_leaves_twice_as_much_time_as_it_takes_to_others(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=1000)
    queue.observe(4, 0.04)  # 10 ms an image
    queue.add(request(loop, 10, peer="modest"), 0.0)
    for _ in range(26):
        queue.add(request(loop, peer="greedy", deadline_s=1.0), 0.0)
    expected = r"DEADLINE_TOO_SHORT: 1000 ms are left, .* take 1016 ms, with 52 kept for other connections \("
    with pytest.raises(OverloadedError, match=expected):
        queue.add(request(loop, peer="greedy", deadline_s=1.0), 0.0)
    queue.add(request(loop, peer="modest", deadline_s=1.0), 0.0)


@pytest.mark.fault("S24")
def test_refused_newcomer_finds_room_when_it_comes_again(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_queue_size=100)
    for now_s in (0.0, 100.0):
        while queue.num_images < 100:
            queue.add(request(loop, peer="greedy"), now_s)
        with pytest.raises(OverloadedError, match="QUEUE_FULL"):
            queue.add(request(loop, peer="newcomer"), now_s)
        queue.take(now_s)
        with pytest.raises(OverloadedError, match="kept for other connections"):
            queue.add(request(loop, peer="greedy"), now_s + 0.1)
        queue.add(request(loop, peer="newcomer"), now_s + 0.1)
        while queue.take(now_s + 0.2)[0]:
            pass


@pytest.mark.fault("S24")
def test_greedy_client_costs_others_next_to_nothing(loop: asyncio.AbstractEventLoop) -> None:
    """30,000 images a second are asked for where 20,000 can be run: 20 of 30 by one client, and one each by ten."""
    queue = make_queue(max_batch_size=64, max_queue_size=4096)
    asked, answered = Counter[bool](), Counter[bool]()
    number, now_s = 0, 0.0
    while now_s < 1.0:
        parts, _ = queue.take(now_s)
        ends_s = now_s + max(0.0001, len(parts) / 20_000)
        while number / 30_000 < ends_s:
            arrived_s, peer = number / 30_000, min(number % 30, 10)
            asked[peer < 10] += 1
            with contextlib.suppress(OverloadedError):
                each = request(loop, arrived_s=arrived_s, deadline_s=arrived_s + 0.02, peer=f"ipv4:127.0.0.1:{peer}")
                queue.add(each, arrived_s)
            number += 1
        if parts:
            queue.observe(len(parts), ends_s - now_s)
            queue.finish(len(parts), ends_s)
            answered += Counter(part.request.peer[-2:] != "10" for part in parts if ends_s <= part.request.deadline_s)
        now_s = ends_s
    assert answered[True] >= 0.98 * asked[True]
    assert answered[False] >= 0.4 * asked[False], "the rest is the greedy one's"


def test_pace_is_not_learnt_from_nearly_empty_batches(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_batch_size=64, max_queue_size=1000)
    queue.observe(1, 10.0)
    queue.add(request(loop, 100), 0.0)
    queue.add(request(loop, deadline_s=0.5), 0.0)


def test_one_slow_batch_does_not_have_everything_refused_for_ever(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue(max_batch_size=64, max_queue_size=1000)
    queue.observe(64, 0.5)  # the machine was busy with something else
    queue.add(request(loop, 60), 0.0)
    with pytest.raises(OverloadedError, match="DEADLINE_TOO_SHORT"):
        queue.add(request(loop, deadline_s=0.1), 0.0)
    for _ in range(30):
        queue.observe(8, 0.001)  # what is let through is served fast
    queue.add(request(loop, deadline_s=0.1), 0.0)


def test_forgetting_what_a_batch_has_does_not_write_its_images_out(loop: asyncio.AbstractEventLoop) -> None:
    """An error of `deque.remove` has its argument in it: 7 ms, for each call that is cancelled while it runs."""
    written = []

    class Watched(np.ndarray[Any, Any]):
        def __repr__(self) -> str:
            written.append(self)
            return ""

    queue = make_queue()
    gone = request(loop)
    gone.images = gone.images.view(Watched)
    queue.add(gone, 0.0)
    queue.take(0.0)
    queue.forget(gone)
    assert written == []
    assert (queue.num_images, queue.num_requests) == (0, 0)


def test_forgotten_request_keeps_no_memory(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    for _ in range(1000):
        gone = request(loop)
        queue.add(gone, 0.0)
        gone.future.cancel()
        queue.forget(gone)
    assert list(queue.clear()) == []


def test_clearing_yields_what_waited_and_leaves_nothing(loop: asyncio.AbstractEventLoop) -> None:
    queue = make_queue()
    requests = [request(loop, 2), request(loop, 3)]
    for each in requests:
        queue.add(each, 0.0)
    assert list(queue.clear()) == requests
    assert (queue.num_images, queue.ready_in_s(0.0)) == (0, None)
