"""The journal of a load, one entry for every request, and the account that is drawn from it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from atelier.errors import ProgramError

RIGHT = "right"


@dataclass(kw_only=True, slots=True)
class Entry:
    """One request: entered before it is sent, completed when it ends."""

    number: int
    image: int
    due_s: float  # on the monotonic clock
    retried: int = 0
    ended_s: float | None = None
    outcome: str = ""  # `right`, `WRONG: ...` or the gRPC status that it ended with, `: ...`; empty if it never ended


@dataclass(frozen=True, kw_only=True)
class Account:
    """Account of what became of the requests."""

    sent: int
    right: int
    wrong: int
    failed: dict[str, int]  # by status
    lost: int  # neither answered nor failed
    retried: int  # attempts beyond the first, of all
    longest_s: float

    @property
    def answered(self) -> int:
        """Rightly or not."""
        return self.right + self.wrong


def account(journal: Sequence[Entry]) -> Account:
    """Counts every entry once. Raises ProgramError BAD_JOURNAL if one is missing or there twice."""
    if [entry.number for entry in journal] != list(range(len(journal))):
        raise ProgramError("BAD_JOURNAL", "the numbers of its requests are not 0, 1, 2 ...")
    outcomes = Counter(entry.outcome.partition(":")[0] for entry in journal)
    right, wrong, lost = outcomes.pop(RIGHT, 0), outcomes.pop("WRONG", 0), outcomes.pop("", 0)
    return Account(
        sent=len(journal),
        right=right,
        wrong=wrong,
        failed=dict(outcomes),
        lost=lost,
        retried=sum(entry.retried for entry in journal),
        longest_s=max((entry.ended_s - entry.due_s for entry in journal if entry.ended_s is not None), default=0.0),
    )


def write_journal(path: Path, journal: Sequence[Entry]) -> None:
    """Writes one JSON document a line."""
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in journal))
