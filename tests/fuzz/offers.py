"""Sends mutants of messages to a real server as fast as it answers, and looks at every status."""

import heapq
import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from atelier.wire import classifier_pb2 as pb
from loadtest.load.load_clients import BEST, EXPIRED, Answers, LoadClient, open_client
from tests.fuzz.messages import Method

IN_FLIGHT = 64
HANG_S = 0.1
PICTURE_S = 0.004  # more, for each picture that a message holds: preparing a photograph is work
TIMEOUT_S = 20.0  # of a call: what takes so long is no answer
NUM_SLOWEST = 20  # of those in a block that took long, so many are sent alone
NUM_LOOKS = 5  # at most, that a slow mutant is sent alone: the machine may have been busy
BUSY_SHARE = 0.6  # of its time that a server computes: if it is less, others have the cores, and empty the caches
DEARER = 2.5  # the same work costs more CPU time there: one mutant took 100, 130 and 170 ms, by how busy it was
WAIT_S = 10.0  # what takes longer than this hangs, however busy the machine is, and however little the server does
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a ModelInferRequest may have a timeout of its own
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # a mutant may ask for more than there is room for
}
ALLOWED_CODES = np.array([status.value[0] for status in ALLOWED], np.uint8)
NAMES = {status.value[0]: status.name for status in grpc.StatusCode}
REFUSAL = re.compile(r"[A-Z][A-Z_]+: ")
LEAK = re.compile(r"/work|/usr|/home|\.py\b|\.rs\b|0x[0-9a-f]{6,}|Traceback|<class|numpy|PIL|grpc\._|panicked")


@dataclass
class Found:
    """What became of mutants: how many ended with which status and word, and what must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    by_number: dict[int, str] | None = None  # of one method's, all that were refused, if that is wanted
    slowest_s: float = 0.0  # of those that were sent alone

    @property
    def num_answered(self) -> int:
        """Returns how many there were."""
        return self.outcomes.total()

    def figures(self) -> str:
        """Tells the statuses, and how many of each."""
        statuses: Counter[str] = Counter()
        for outcome, number in self.outcomes.items():
            statuses[outcome.partition(" ")[0]] += number
        return ", ".join(f"{number:,} {status}" for status, number in statuses.most_common() if number)


class Offer:
    """One method's mutants, over connections of their own."""

    def __init__(self, method: Method, target: str, seed: int, cpu_s: Callable[[], float]) -> None:
        """`cpu_s` returns the CPU time that the server has spent."""
        self.method, self.seed, self._cpu_s = method, seed, cpu_s
        self._client: LoadClient = open_client(BEST, target, method.path, 2)

    def send(self, numbers: Sequence[int], found: Found) -> None:
        """Sends the mutants of these numbers, so many at a time that none waits for long, and waits for all answers."""
        left, num_open, slow = iter(numbers), 0, list[tuple[int, int]]()
        while True:
            batch = list(itertools.islice(left, IN_FLIGHT - num_open)) if num_open <= IN_FLIGHT // 2 else []
            if batch:
                self._submit(batch)
                num_open += len(batch)
            elif num_open == 0:
                break
            answers = self._client.take(TIMEOUT_S)
            num_open -= len(answers.codes)
            slow += self._count(answers, found)
        for _, number in heapq.nlargest(NUM_SLOWEST, slow):
            self._send_alone(number, found)

    def close(self) -> None:
        """Ends the connections."""
        self._client.close()

    def _submit(self, numbers: Sequence[int]) -> None:
        messages = [self.method.mutant(self.seed, number) for number in numbers]
        self._client.submit(np.array(numbers, np.int64), messages, TIMEOUT_S)

    def _count(self, answers: Answers, found: Found) -> list[tuple[int, int]]:
        """Counts the answers; returns how long the slow ones took, and their numbers."""
        spent_ns = answers.done_ns - answers.sent_ns
        is_unanswered = (answers.codes == EXPIRED) & (spent_ns >= TIMEOUT_S * 1e9)  # looked at alone, as slow ones are
        for position in np.flatnonzero((answers.codes != 0) & ~is_unanswered):
            outcome = _outcome(answers, int(position))
            found.outcomes[outcome] += 1
            if found.by_number is not None:
                found.by_number[int(answers.numbers[position])] = outcome
            text = unquote(answers.reply(int(position)).decode(errors="replace"))
            has_word = REFUSAL.match(text) or (outcome == "NOT_FOUND" and self.method.name == "Check")  # grpcio's own
            if answers.codes[position] not in ALLOWED_CODES or not has_word or LEAK.search(text):
                found.faults.append(f"{self._named(int(answers.numbers[position]))}: {outcome}, {text[:200]!r}")
        found.outcomes["OK"] += int((answers.codes == 0).sum())
        found.outcomes["UNANSWERED at first"] += int(is_unanswered.sum())
        is_slow = spent_ns > HANG_S * 1e9
        return list(zip(spent_ns[is_slow].tolist(), answers.numbers[is_slow].tolist(), strict=True))

    def _send_alone(self, number: int, found: Found) -> None:
        """Finds out whether a mutant hangs, or others were in its way."""
        mutant, spent_s, cpu_s = self.method.mutant(self.seed, number), 0.0, 0.0
        hang_s = HANG_S + PICTURE_S * self._num_pictures_in(mutant)
        for _ in range(NUM_LOOKS):
            before_s = self._cpu_s()
            answers = self._asked(mutant)
            spent_s = float(answers.done_ns[0] - answers.sent_ns[0]) / 1e9
            cpu_s = self._cpu_s() - before_s
            share = cpu_s / max(spent_s, 1e-9)
            allowed_s = hang_s * (DEARER if share < BUSY_SHARE else 1.0)
            if spent_s < hang_s or (cpu_s < allowed_s and spent_s < WAIT_S):
                found.slowest_s = max(found.slowest_s, min(spent_s, cpu_s))
                return
        found.faults.append(f"{self._named(number)}: took {spent_s:.3f} s, of which {cpu_s:.3f} s of the server's CPU")

    def _num_pictures_in(self, mutant: bytes) -> int:
        if self.method.name != "Classify":
            return 0
        try:
            return len(pb.ClassifyRequest.FromString(mutant).pictures)
        except DecodeError:
            return 0

    def _asked(self, message: bytes) -> Answers:
        self._client.submit(np.zeros(1, np.int64), [message], TIMEOUT_S)
        return self._client.take(TIMEOUT_S)

    def _named(self, number: int) -> str:
        return f"{self.method.name}, seed {self.seed}, number {number}"


def _outcome(answers: Answers, position: int) -> str:
    """Returns the status, and of a refusal its stable word."""
    name = NAMES.get(int(answers.codes[position]), "UNKNOWN")
    word = unquote(answers.reply(position).decode(errors="replace")).partition(":")[0] if name != "OK" else ""
    return f"{name} {word[:40]}".strip()
