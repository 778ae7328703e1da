"""Goals of reliability, and what a test that measures one of them says.

A test is marked `@pytest.mark.goal("G17", of="flips of each kind of file", ci=200, release=10_000)`. Its fixture `size`
is one of the two numbers (0 stands for all there are), and what it passes to its fixture `figure` is what the report
prints. `make reliability` runs all tests so marked; the gate runs them, at the smaller size, among its others.
"""

import hashlib
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

GOALS = {
    "G1": "No answer is lost, wrong or another's over SIGTERM restarts under load",
    "G2": "Nothing is executed twice over SIGTERM restarts, and no answer given twice over kill -9",
    "G3": "A server ends within its drain, the longest batch and 0.5 s of SIGTERM",
    "G4": "The first right answer comes within 2 s of a start, and 1.5 s of a crash",
    "G5": "Versions are swapped under load without a failed call; bad ones are refused",
    "G6": "A poisoned image fails alone, at each position of a batch of 64",
    "G7": "Goodput at 10 times the peak is at least 95 %; refusals take at most 5 ms; then all is as before within 1 s",
    "G8": "Mutated messages and raw bytes cause no crash, no hang, no UNKNOWN and no INTERNAL",
    "G9": "Streams that send only headers do not slow an honest client beyond twice its p99",
    "G10": "Rapid resets fail no call of others, and the memory comes back within 64 MiB",
    "G11": "10,000 idle TLS connections cost at most 40 KB each, and nobody a call",
    "G12": "A picture of 1 MiB costs at most 50 ms of CPU and 8 MiB; 100 bombs at once leave p99 within twice",
    "G13": "Memory grows by at most 8 MB over 1,000,000 requests, after 15,000 to warm up; files and threads by none",
    "G14": "What was cancelled or expired in the queue is not executed, and every request is accounted for",
    "G15": "The batching core keeps its invariants through simulated lives with faults",
    "G16": "A soak with a fault every second breaks nothing",
    "G17": "No flipped bit, cut or swap of a file is accepted, of any kind of file",
    "G18": "A writer killed, or out of space, at any system call leaves the old or the new",
    "G19": "A training killed at any moment ends with the unbroken run's weights, bit for bit",
    "G20": "Runtimes agree on all images and on adversarial ones; every mutant of a model is caught",
    "G21": "Every method refuses every bad credential, in the same time",
    "G22": "Nothing that is loaded can execute code",
    "G23": "No reply and no log holds a path, a class name, an address of memory, a token or pixels",
    "G24": "With our client every call of the soak succeeds within 5 s, with at most 1.10 attempts a request",
    "G25": "Every fault of the catalogue has its exit code or status and its word asserted, and no traceback",
    "G26": "A server opens no outbound connection, writes no file, and needs none of the rights of root",
}
RELEASE = "ATELIER_GOALS_RELEASE"  # set: sizes for a release
RESULTS = "ATELIER_GOALS_RESULTS"  # directory that keeps what was measured


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of one test of a goal."""

    goal: str
    test: str  # pytest's node id
    of: str  # what is counted
    ci: int
    release: int
    size: int
    figures: list[str]
    outcome: str  # passed, failed or skipped
    why: str  # the failure's or skip's last line
    seconds: float
    revision: str

    def save(self, directory: Path) -> None:
        """Writes it under a name of its own."""
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{self.goal}-{hashlib.sha256(self.test.encode()).hexdigest()[:12]}.json"
        (directory / name).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_bytes()))


def is_release() -> bool:
    """Returns whether sizes are those of a release."""
    return RELEASE in os.environ


def revision() -> str:
    """Returns the commit that is checked out, with a `+` if files differ from it; empty without git."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()
