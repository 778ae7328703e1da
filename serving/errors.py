"""The errors that fail one request, with their gRPC statuses, and the one of a picture, which becomes such an error.

A message goes to the client as it is: it names the value, the limit and the cure, and starts with a stable word
(`QUEUE_FULL`). What ends the whole program is in atelier/errors.py.
"""

from typing import ClassVar

from atelier.errors import AtelierError


class RequestError(AtelierError):
    """Fails one request; `status` is the gRPC status code's name. The message goes to the client as it is."""

    status: ClassVar[str] = "INTERNAL"
    # How long a client that may retry should wait first (gRFC A6); None if retrying cannot help.
    retry_pushback_ms: ClassVar[int | None] = None


class InvalidRequestError(RequestError):
    """The request can never succeed."""

    status = "INVALID_ARGUMENT"


class UnauthenticatedError(RequestError):
    """The call carries no token, or one that is not known."""

    status = "UNAUTHENTICATED"


class UnknownModelError(RequestError):
    """The model or version asked for is not the one served."""

    status = "NOT_FOUND"


class OverloadedError(RequestError):
    """The queue is full, or the deadline cannot be met: load is shed."""

    status = "RESOURCE_EXHAUSTED"
    retry_pushback_ms = 100


class ExpiredError(RequestError):
    """The deadline passed before the request was executed."""

    status = "DEADLINE_EXCEEDED"


class NotServingError(RequestError):
    """Draining, not warm yet, or the device is gone: another try, or another server, may succeed."""

    status = "UNAVAILABLE"
    retry_pushback_ms = 700


class BackendError(RequestError):
    """The backend failed on this batch, or its output makes no sense."""

    status = "INTERNAL"


class PictureError(Exception):
    """The picture is not decoded; what is wrong with it is worded to follow "pictures[3] "."""

    def __init__(self, what: str, cure: str = "send a whole PNG, JPEG or WebP file") -> None:
        super().__init__(what)
        self.what, self.cure = what, cure

    def at(self, index: int) -> InvalidRequestError:
        """Returns the refusal of the request, of which this is the picture at `index`."""
        return InvalidRequestError("BAD_PICTURE", f"pictures[{index}] {self.what}", self.cure)
