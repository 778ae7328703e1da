"""Bounds a server beyond its settings: fences that nobody has reason to choose, so they have no flags."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Holds the fences of a server; tests make others, to reach them sooner."""

    max_images_per_request: int = 1024
    """Most images in one request."""

    max_encoded_bytes: int = 64 << 20
    """Most bytes of encoded pictures that may wait to be decoded; at least one message's."""

    max_concurrent_requests: int = 4096
    """Most calls being handled at once, the last fence before memory."""

    max_queue_delay_us: int = 8000
    """Longest that a free device waits for as many requests as the last batch had; a lone one never waits (grpcio)."""

    default_deadline_s: float = 10.0
    """Deadline of a request whose client set none."""

    max_deadline_s: float = 60.0
    """A client that allows more time than this is served as if it allowed this."""

    message_timeout_s: float = 5.0
    """Longest that a client may take to send its message after the headers (native)."""

    write_timeout_s: float = 5.0
    """Longest that a client may read nothing of what is sent to it before its connection ends (native)."""

    lame_duck_s: float = 0.3
    """After SIGTERM, how long new calls are still answered (UNAVAILABLE, retry) before the port is closed."""

    probe_after_s: float = 10.0
    """An idle device runs a known image at least every twice so many seconds: health rests on a batch that has run."""

    playground_idle_s: float = 600.0
    """The process of the page that looks inside ends once nobody has looked for so long."""

    trial_bytes: int = 1 << 30
    """Most memory that opening and proving a version may take, beside what its runtime takes without any."""

    trial_cpu_s: int = 60
    """Most CPU time for that."""

    trial_s: float = 120.0
    """Longest that it may take, with the import of the runtime, on a machine that is busy too."""

    trial_again_s: float = 600.0
    """A version that took too long or crashed is tried again after so long: a busy machine may have been the reason."""
