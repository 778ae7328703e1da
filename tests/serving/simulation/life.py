"""One life of a server: its calls, its versions, its end, and what must hold all the while."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from atelier.contract import Images
from atelier.errors import DeviceError
from serving.batching.device import Batch
from serving.batching.request import Answer, Request
from serving.config import ServerConfig
from serving.engine import Engine
from serving.errors import BackendError, ExpiredError, NotServingError, RequestError
from serving.models import ServedModel
from tests.serving.settings import config_with
from tests.serving.simulation.checked import CheckedQueue
from tests.serving.simulation.device import IMAGES, NUM_IMAGES, NUMBERS, Run, SimulatedDevice
from tests.serving.simulation.process import Process
from tests.serving.simulation.rules import Broken, ensure
from tests.serving.simulation.scenario import Random, Scenario
from tests.serving.simulation.virtual_time import BEGIN_S, VirtualLoop


@dataclass(eq=False, kw_only=True)
class Call:
    """Holds what a client asked for, and what came of it."""

    number: int
    num_images: int
    deadline_s: float
    peer: str
    start: int = 0  # among the images that there are
    process: Process | None = field(default=None, repr=False)
    version: str = ""
    latest_s: float = 0.0  # it is promised an answer until then, if it has so much time
    request: Request | None = field(default=None, repr=False)  # once it is admitted
    device: SimulatedDevice | None = field(default=None, repr=False)
    num_run: int = 0
    largest_batch: int = 0
    runs: list[Run] = field(default_factory=list)  # that it was in
    end: str = ""
    timers: list[asyncio.TimerHandle] = field(default_factory=list, repr=False)


class Life:
    """Is lived once; `ends` counts how calls ended."""

    def __init__(self, seed: int, *, is_traced: bool = False) -> None:
        self.random = Random(seed)
        self.scenario = Scenario.draw(self.random)
        self.trace: list[str] | None = [] if is_traced else None
        self.loop = VirtualLoop(self._check)
        self.loop.set_exception_handler(self._on_exception)
        self.config = _config_from(self.scenario)
        self.queues: dict[SimulatedDevice, CheckedQueue] = {}
        self.bad: set[int] = set()  # numbers of images on which the backend fails
        self.cold: set[int] = set()  # versions that cannot be warmed up
        self.version, self.previous, self.num_versions = 1, 0, 1
        self.process: Process | None = None
        self.calls: list[Call] = []
        self.is_draining = self.is_healed = self.has_paused = self.has_lacked_memory = False
        self.num_promises = self.num_processes = 0
        self._broken: BaseException | None = None
        self._call_of: dict[int, Call] = {}  # by the identity of its images
        self._holders: dict[Call, None] = {}  # calls that have images, in the order in which they got them
        self._tasks: list[asyncio.Task[None]] = []
        self._next_image = 1

    @property
    def ends(self) -> "Counter[str]":
        """How many calls ended how."""
        return Counter(call.end for call in self.calls)

    @property
    def lived_s(self) -> float:
        """How long it was."""
        return self.loop.now_s - BEGIN_S

    def live(self) -> None:
        """Raises Broken, or what the server raised and nobody expected."""
        try:
            self.loop.run_until_complete(self._live())
            self._raise_what_broke()
        finally:
            self.loop.set_exception_handler(lambda _loop, _context: None)
            for task in asyncio.all_tasks(self.loop):  # of a life that was cut short, or of a process that has ended
                if (work := task.get_coro()) is not None:
                    work.close()
            self.loop.close()

    async def _live(self) -> None:
        supervisor = self.spawn(self._supervise())
        await self._until_ready()
        await self._arrive()
        if not self.is_draining:
            await self._recover()
            self.is_draining = True
        if self.process is not None:
            self.process.stop()
        await supervisor
        await self._until_ended()

    async def _supervise(self) -> None:
        while not self.is_draining:
            self.num_processes += 1
            self.note(lambda: f"process {self.num_processes}")
            self.process = Process(self, self.version, self.previous)
            await self.process.live()
            self.process = None
            await asyncio.sleep(10 * self.scenario.tick_s)

    # --- What happens --------------------------------------------------------------------------------------------

    async def _arrive(self) -> None:
        random, scenario = self.random, self.scenario
        num_left = scenario.num_requests
        while num_left:
            for _ in range(min(num_left, random.between(1, scenario.max_burst))):
                self._begin(scenario.num_requests - num_left)
                num_left -= 1
                self._call(random.between(1, scenario.max_images), scenario.left_s(random))
            if random.is_one_in(scenario.pause) and not self.has_paused:
                self.has_paused = True
                self.note(lambda: "the process stands still")
                self.loop.now_s += random.seconds(3 * scenario.hang_timeout_s)
            await asyncio.sleep(random.seconds(scenario.gap_s * (40 if random.is_one_in(20) else 2)))
        await self._until_ended()

    def _begin(self, number: int) -> None:
        """Begins a swap or the drain, if it is time for it."""
        scenario, process = self.scenario, self.process
        swaps = [] if scenario.swap is None else [scenario.swap, scenario.swap + 5, scenario.swap + 20]
        if number in swaps and process is not None and not self.is_draining:
            process.swap()
        if scenario.drain == number:
            self.note(lambda: "drain")
            self.is_draining = True
            if process is not None:
                process.stop()

    def _call(self, num_images: int, left_s: float) -> Call:
        peer = "" if self.is_healed else f"unix:{self.random.between(1, self.scenario.num_peers)}"
        deadline_s = self.loop.now_s + left_s
        call = Call(number=len(self.calls), num_images=num_images, deadline_s=deadline_s, peer=peer)
        self.calls.append(call)
        task = self.spawn(self._run(call))
        self._tasks.append(task)
        if self.is_healed:
            return call
        random = self.random
        if random.is_one_in(self.scenario.cancellation):
            call.timers.append(self.loop.call_later(random.seconds(left_s), task.cancel))
        if random.is_one_in(2):  # the call ends at its deadline, or a little later
            call.timers.append(self.loop.call_later(left_s + 1e-6 + self.lag_s(), task.cancel))
        return call

    def _draw_images(self, call: Call) -> Images:
        """Takes images in turn that no call has which is under way."""
        start, count = self._next_image, call.num_images
        while True:
            start = start if start + count <= NUM_IMAGES else 1
            taken = (other for other in self._holders if start < other.start + other.num_images)
            other = next((other for other in taken if other.start < start + count), None)
            if other is None:
                break
            start = other.start + other.num_images
        call.start, self._next_image = start, start + count
        self._holders[call] = None
        if self.bad:
            self.bad.difference_update(range(start, start + count))
        if self.random.is_one_in(self.scenario.bad_image) and not self.is_healed:
            self.bad.add(self.random.between(start, start + count - 1))
        images = IMAGES[start : start + count]
        self._call_of[id(images)] = call
        return images

    async def _run(self, call: Call) -> None:
        try:
            answer = await self._answer_to(call)
        except asyncio.CancelledError:
            call.end = "cancelled"
        except RequestError as error:
            call.end = self._end_from(call, error)
        else:
            self._check_answer(call, answer)
            call.end = "answered"
        finally:
            self._holders.pop(call, None)
            for timer in call.timers:
                timer.cancel()
            if call.device is not None:
                call.device.num_open -= 1
        self.note(lambda: f"{call.number}: {call.end}")
        is_promised = self.scenario.is_calm and call.request is not None and call.latest_s <= call.deadline_s
        ensure(not is_promised or call.end in ("answered", "cancelled"), "promised an answer:", call)
        self.num_promises += is_promised

    async def _answer_to(self, call: Call) -> Answer:
        """Does what a front end does."""
        process = call.process = self.process
        if process is None:
            raise NotServingError("NO_PROCESS", "nobody listens")
        if process.refusal is not None:
            raise process.refusal
        asked = str(self.previous) if self.previous and self.random.is_one_in(5) else ""
        loaded = [served.version for served in process.versions.loaded]
        ensure(process.versions.current.version == str(process.version), "another version serves:", loaded)
        with process.versions.find("", asked) as served:
            ensure(served.version == (asked or loaded[0]), "another version was asked for:", asked)
            call.version = served.version
            if self.random.is_one_in(self.scenario.decoding):
                await asyncio.sleep(self.random.seconds(self.scenario.short_s))
            return await served.classify(self._draw_images(call), call.deadline_s, call.peer)

    async def _until_ended(self) -> None:
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=self.scenario.patience_s)
            ensure(not pending, "never ended:", [call for call in self.calls if not call.end])
            self._tasks.clear()

    async def _recover(self) -> None:
        """Behind all faults the server must be as it was at first: a lone call, then as many as the queue may hold."""
        self.is_healed = True
        await asyncio.sleep(61.0 if self.has_lacked_memory else 11.0)  # for so long the server remembers it
        await self._until_ready()
        for num_images in [1] + [self.scenario.max_batch_size] * (
            self.scenario.max_queue_size // self.scenario.max_batch_size
        ):
            call = self._call(num_images, 1e6)
            if num_images == 1:
                await self._until_ended()
                ensure(call.end == "answered", "no answer behind all faults:", call)
        last = self.calls[-1]
        await self._until_ended()
        ensure(all(call.end == "answered" for call in self.calls[last.number - 1 :]), "no answers behind all faults")

    async def _until_ready(self) -> None:
        while self.process is None or not self.process.is_idle:
            await asyncio.sleep(0.1)

    # --- What the server is given ---------------------------------------------------------------------------------

    def make_engine(self, model: ServedModel, *, on_failure: Callable[[DeviceError], None], **settings: Any) -> Engine:
        """Makes an engine that lives here."""
        device = model.backend
        assert isinstance(device, SimulatedDevice)
        return Engine(
            model,
            on_failure=partial(self._on_failure, device, on_failure),
            make_queue=partial(CheckedQueue, self, device),
            clock=self.loop.clock,
            executor=device,
            **settings,
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Begins a task, which must not fail."""
        task = self.loop.create_task(work)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            self._broken = self._broken or task.exception()

    def lag_s(self) -> float:
        """Draws how late a thread wakes."""
        return 0.0 if self.is_healed else self.random.seconds(self.scenario.max_lag_s)

    def note(self, what: Callable[[], str]) -> None:
        """Notes what happens, if somebody will read it."""
        if self.trace is not None:
            self.trace.append(f"{self.lived_s:.6f} s: {what()}")

    # --- What must hold ------------------------------------------------------------------------------------------

    def on_admitted(self, request: Request, latest_s: float, device: SimulatedDevice) -> None:
        """Notes that a call is in the queue."""
        call = self._call_of[id(request.images)]
        call.request, call.device, call.latest_s = request, device, latest_s
        device.num_open += 1
        self.note(lambda: f"{call.number}: {call.num_images} images until {call.deadline_s - BEGIN_S:.6f} s")
        ensure(self.loop.now_s <= device.process.drains_from_s + 1e-6, "admitted in a drain:", call)
        ensure(device.is_warm and not device.failure and not device.is_dead, "admitted by a device that does not work")

    def name_of(self, request: Request) -> int:
        """Returns the call's number."""
        return self._call_of[id(request.images)].number

    def on_run(self, batch: Batch, run: Run) -> None:
        """Notes that a batch has run, of which nobody has been told yet."""
        for request, start, stop in batch.parts:
            call = self._call_of[id(request.images)]
            ensure(start == call.num_run, "executed twice, or not in order:", call)
            call.num_run, call.largest_batch = stop, max(call.largest_batch, len(batch.images))
            call.runs.append(run)

    def _on_failure(self, device: SimulatedDevice, tell: Callable[[DeviceError], None], failure: DeviceError) -> None:
        self.note(lambda: f"version {device.version}: {failure}")
        if failure.word == "BACKEND_HUNG":
            run = device.running
            took_s = self.scenario.max_lag_s + (run.took_s if run else 0.0)
            ensure(took_s > self.scenario.hang_timeout_s or self.has_paused, "given up, and did not hang:", run)
        else:
            ensure(device.num_failed == 3, "given up behind so many failures:", device.num_failed)
        ensure(not device.failure, "given up twice:", device.failure)
        device.failure = failure.word
        tell(failure)

    def _check_answer(self, call: Call, answer: Answer) -> None:
        numbers = NUMBERS[call.start : call.start + call.num_images]
        ensure(len(answer.logits) == len(numbers) and (answer.logits[:, 0] == numbers).all(), "another's answer:", call)
        ensure((answer.logits[:, 1] == int(call.version)).all(), "another version's answer:", call)
        ensure(call.num_run == len(numbers), "not all of it ran:", call)
        ensure(not self._has_bad_image(call), "an answer to a bad image:", call)
        ensure(answer.batch_size == call.largest_batch, "in a batch of so many:", answer.batch_size)
        ensure(answer.queue_us >= 0 and answer.inference_us >= 0, "times of its own:", answer)
        is_promised = self.scenario.is_calm and call.latest_s <= call.deadline_s
        ensure(not is_promised or self.loop.now_s <= call.latest_s, "promised to be earlier:", call)

    def _end_from(self, call: Call, error: RequestError) -> str:
        """Returns how it ended, if there was reason for it."""
        if call.request is None:
            self._check_refusal(call, error)
            return "refused"
        device = call.device
        assert device is not None
        if isinstance(error, ExpiredError):
            ensure(self.loop.now_s >= call.deadline_s, "expired too early:", call)
            return "expired"
        if error.word == "OUT_OF_MEMORY":
            ensure(any(run.lacks_memory for run in call.runs), "memory was not short:", call)
            return "failed"
        if isinstance(error, BackendError):
            ensure(self._may_fail(call), "failed without a reason:", call, error)
            return "failed"
        is_over = error.word == "DRAIN_TIMEOUT" and device.process.has_timed_out
        ensure(is_over or error.word == device.failure, "given up without a reason:", call, error)
        return "given up"

    def _has_bad_image(self, call: Call) -> bool:
        return bool(self.bad) and not self.bad.isdisjoint(range(call.start, call.start + call.num_images))

    def _may_fail(self, call: Call) -> bool:
        return self._has_bad_image(call) or any(self._may_cost(run) for run in call.runs)

    def _may_cost(self, run: Run) -> bool:
        """Of two bad images in a batch one may cost others their answers, and a device that is slow may too."""
        is_bad = len(run.bad) > 1 or run.failed_alone or run.is_failing
        return is_bad or run.took_s > self.scenario.hang_timeout_s / 2

    def _check_refusal(self, call: Call, error: RequestError) -> None:
        process = call.process
        reasons = {
            "NO_PROCESS": process is None,
            "QUEUE_FULL": True,  # the queue has checked these two
            "DEADLINE_TOO_SHORT": True,
            "EXPIRED": self.loop.now_s >= call.deadline_s,
            "NOT_WARM": process is not None and not process.is_ready,
            "DRAINING": process is not None and process.is_stopping.is_set(),
            "DRAIN_TIMEOUT": process is not None and process.has_timed_out,
            "BACKEND_HUNG": process is not None and process.failure == "BACKEND_HUNG",
            "BACKEND_BROKEN": process is not None and process.failure == "BACKEND_BROKEN",
            "UNKNOWN_VERSION": True,
        }
        ensure(reasons.get(error.word, False), "refused without a reason:", call, error)

    def _check(self) -> None:
        """Holds whenever all that is due has run."""
        self._raise_what_broke()
        if self.process is not None:
            self.process.check()

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "never retrieved" not in context["message"]:
            self._broken = self._broken or context.get("exception") or Broken(context["message"])

    def _raise_what_broke(self) -> None:
        if self._broken is not None:
            raise self._broken


def _config_from(scenario: Scenario) -> ServerConfig:
    return config_with(
        max_queue_size=scenario.max_queue_size,
        hang_timeout_s=scenario.hang_timeout_s,
        max_queue_delay_us=round(scenario.window_s * 1e6),
        probe_after_s=scenario.probe_after_s,
    )
