"""The errors of the page's requests, with their HTTP statuses; all are answered as JSON."""

from typing import Any

from atelier.errors import AtelierError, ProgramError
from serving.errors import InvalidRequestError


class PageError(AtelierError):
    """Fails one request of the page with an HTTP status."""

    def __init__(self, status: int, word: str, what: str, cure: str) -> None:
        super().__init__(word, what, cure)
        self.status = status


def described(error: AtelierError) -> tuple[int, dict[str, Any]]:
    """Returns the status and what the page is told; 404 for what is not there, 503 for what cannot be used."""
    if isinstance(error, PageError):
        status = error.status
    elif isinstance(error, InvalidRequestError):
        status = 400
    elif isinstance(error, ProgramError):
        status = 404 if error.word == "NO_MODEL" else 503
    else:
        status = 500
    return status, {"reason": error.word, "message": str(error), "cure": error.cure}
