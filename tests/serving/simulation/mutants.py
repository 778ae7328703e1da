"""Ways to break the server, each in one place, and what the simulation says of it."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from serving.batching.batcher import Batcher
from serving.batching.device import Device
from serving.batching.queue import BatchQueue
from serving.batching.request import Answer
from serving.batching.runs import BatchRuns
from serving.batching.watchdog import DeviceWatch
from serving.frontends.grpcio.versions import Served, Versions


class Mutant(NamedTuple):
    """Replaces a piece of a method's text."""

    owner: type
    method: str
    old: str
    new: str
    found: str  # the beginning of what is said

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.owner.__name__}.{self.method}: {self.new.strip() or 'nothing'} for {self.old.strip()}"

    def made(self) -> Any:
        """Returns the method, with the fault in it."""
        original = inspect.getattr_static(self.owner, self.method)
        function: Callable[..., Any] = getattr(original, "__func__", original)
        text = textwrap.dedent(inspect.getsource(function))
        assert text.count(self.old) == 1, f"{self.owner.__name__}.{self.method} has changed: choose another piece of it"
        names: dict[str, Any] = {}
        text = text.replace(self.old, self.new)
        exec(text, function.__globals__, names)  # noqa: S102 - the project's own code, changed
        return classmethod(names[self.method]) if isinstance(original, classmethod) else names[self.method]


MUTANTS = [
    Mutant(BatchQueue, "add", "> self.max_queue_size:", "> 2 * self.max_queue_size:", "another refusal was due"),
    Mutant(BatchQueue, "add", "and not is_alone", "", "nothing waits or runs"),
    Mutant(
        BatchQueue, "_answered_in_s", "self._seconds_per_image", "(10 * self._seconds_per_image)", "there is plenty"
    ),
    Mutant(BatchQueue, "finish", "self._taken.remove(num_images)", "pass", "nothing waits or runs"),
    Mutant(BatchQueue, "finish", "sum(self._taken)", "1000 * sum(self._taken)", "there is plenty of time"),
    Mutant(BatchQueue, "add", "self._requests.append(", "self._requests.appendleft(", "another batch was due"),
    Mutant(BatchQueue, "forget", "self._release(request)", "pass", "images counted, and waiting"),
    Mutant(BatchQueue, "forget", "self._requests.remove(request)", "pass", "requests counted, and waiting"),
    Mutant(
        BatchQueue,
        "ready_in_s",
        "self.max_queue_delay_s\n",
        "2 * self.max_queue_delay_s + 0.01\n",
        "a free device waits, and so do requests",
    ),
    Mutant(BatchQueue, "take", "or now_s >= request.deadline_s", "", "another batch was due"),
    Mutant(BatchQueue, "take", "len(request.images) <= self.max_batch_size", "False", "another batch was due"),
    Mutant(BatchQueue, "take", "expired.append(request)", "pass", "requests counted, and waiting"),
    Mutant(BatchQueue, "clear", "yield request", "yield from [request] * (not self._requests)", "others were told"),
    Mutant(Batcher, "submit", "self.refusal is not None", "False", "admitted in a drain"),
    Mutant(
        Batcher,
        "submit",
        "self._next_dispatch = self._loop.call_soon(self._dispatch)",
        "pass",
        "a free device waits, and so do requests",
    ),
    Mutant(Batcher, "answer_to", "self._queue.forget(request)", "pass", "it has ended, and waits"),
    Mutant(
        Batcher,
        "answer_to",
        "self.num_unanswered -= 1",
        "self.num_unanswered -= not request.parts",
        "unanswered, as is counted",
    ),
    Mutant(Batcher, "answer_to", "if not self.num_unanswered", "if True", "the drain has lost a call"),
    Mutant(Batcher, "_dispatch", "(1 if self._watch.is_in_doubt else 2)", "2", "too many batches are on the device"),
    Mutant(Batcher, "_dispatch", "(1 if self._watch.is_in_doubt else 2)", "3", "too many batches are on the device"),
    Mutant(
        Batcher,
        "_dispatch",
        "(1 if self._watch.is_in_doubt else 2)",
        "1",
        "a full batch waits, and there is room ahead",
    ),
    Mutant(
        Batcher,
        "_dispatch",
        "(self._on_device and not self._queue.is_full_batch)",
        "False",
        "the batch could have grown",
    ),
    Mutant(Batcher, "_dispatch", "if parts:", "if parts and len(expired) < 2:", "never ended"),
    Mutant(Batcher, "_deliver", "start, stop = stop, stop +", "start, stop = 0, 0 +", "another's answer"),
    Mutant(Batcher, "_deliver", "if part.request.num_waiting:", "if False:", "it has ended, and waits"),
    Mutant(Batcher, "_deliver", "self._settle(part.request, error)", "pass", "never ended"),
    Mutant(
        Batcher,
        "_deliver",
        "isinstance(outcome, Ran | OverloadedError)",
        "isinstance(outcome, Ran)",
        "a full batch waits, and there is room ahead",
    ),
    Mutant(Batcher, "_deliver", "\n    self._dispatch()", "\n    pass", "a full batch waits, and there is room ahead"),
    Mutant(Batcher, "_settle_part", "if part.stop < len(request.images)", "if part.start", "another's answer"),
    Mutant(Batcher, "abandon", "*self._queue.clear()", "", "the drain has lost a call"),
    Mutant(Batcher, "abandon", "*running, ", "", "the drain has lost a call"),
    Mutant(
        Batcher,
        "_run_probe",
        "if self._on_device or self.refusal is not None",
        "if False",
        "too many batches are on the device",
    ),
    Mutant(Answer, "joined", "for part in parts]", "for part in parts[::-1]]", "another's answer"),
    Mutant(BatchRuns, "_run_in_parts", "len(part) > 1 and", "False and", "failed without a reason"),
    Mutant(BatchRuns, "_try", "] = rows", "] = rows[::-1]", "another's answer"),
    Mutant(DeviceWatch, "end", "0 if is_ok else", "0 and", "too many batches are on the device"),
    Mutant(
        DeviceWatch,
        "end",
        "0 if is_ok else self._num_failed + 1",
        "self._num_failed + (not is_ok)",
        "a full batch waits, and there is room ahead",
    ),
    Mutant(DeviceWatch, "_check_for_hang", "busy_s < self._hang_timeout_s:", "True:", "time stands still"),
    Mutant(
        DeviceWatch,
        "_check_for_hang",
        "busy_s < self._hang_timeout_s:",
        "busy_s < 0.1 * self._hang_timeout_s:",
        "given up, and did not hang",
    ),
    Mutant(
        Device, "_run", "batch.started_s = self._clock()", "batch.started_s = self._clock() + 1e9", "times of its own"
    ),
    Mutant(Device, "_warm_up", "self._executor.end()", "pass", "a device's thread is left behind"),
    Mutant(Device, "close", "self._executor.put(self._free)", "pass", "a device was not freed"),
    Mutant(Served, "end", "await self._is_idle.wait()", "pass", "refused without a reason"),
    Mutant(Versions, "find", "return previous", "return current", "another version was asked for"),
    Mutant(
        Versions,
        "swap",
        "await served.engine.start()",
        "asyncio.create_task(served.engine.start())",
        "refused without a reason",
    ),
    Mutant(Versions, "swap", "if ended is not None", "if False", "a device was not freed"),
    Mutant(
        Versions,
        "swap",
        "self.previous, self.current = self.previous, self.current,",
        "self.current = self.previous,",
        "the version before is another",
    ),
    Mutant(Versions, "drain", "in self.engines", "in [self.current.engine]", "the drain has lost a call"),
    Mutant(
        Versions,
        "abandon",
        "for engine in self.engines:",
        "for engine in [self.current.engine]:",
        "the drain has lost a call",
    ),
    Mutant(Versions, "close", "in self.engines", "in [self.current.engine]", "a device was not freed"),
    Mutant(
        BatchQueue,
        "take",
        "now_s >= request.deadline_s:",
        "now_s + 0.001 >= request.deadline_s:",
        "expired, and should not",
    ),
    Mutant(
        Batcher,
        "_put",
        "self._device.put(batch)",
        "self._loop.call_later(0.003, self._device.put, batch)",
        "executed twice, or not in order",
    ),
    Mutant(
        Batcher,
        "_deliver",
        "len(batch.images))\n        self._settle_part",
        "stop - start)\n        self._settle_part",
        "in a batch of so many",
    ),
    Mutant(
        Batcher,
        "_deliver",
        "self._settle_part(part",
        "self._loop.call_later(0.001, self._settle_part, part",
        "promised to be earlier",
    ),
    Mutant(Batcher, "answer_to", "self._is_idle.set()", "pass", "the drain does not end"),
    Mutant(BatchRuns, "_run_in_parts", "NO_MEMORY if is_memory else BATCH_FAILED", "NO_MEMORY", "memory was not short"),
    Mutant(DeviceWatch, "end", "== MAX_FAILED_BATCHES", "== 2", "given up behind so many failures"),
    Mutant(DeviceWatch, "end", "== MAX_FAILED_BATCHES", "> MAX_FAILED_BATCHES", "failed in a row"),
    Mutant(DeviceWatch, "_check_for_hang", "not self._is_overdue", "True", "hangs, and nobody notices"),
    Mutant(Versions, "find", "return current", "return previous or current", "another version was asked for"),
    Mutant(Versions, "swap", "await served", "self.current = served\n    await served", "another version serves"),
    Mutant(BatchQueue, "_kept_for_others", "LEFT_FREE *", "0 *", "admitted to a full queue"),
    Mutant(
        BatchQueue, "_kept_for_others", "self._others_asked_s + REMEMBERED_S", "math.inf", "another refusal was due"
    ),
    Mutant(BatchQueue, "_give_back", "[request.peer] -= num_images", "[request.peer] -= 1", "images of each peer"),
]
