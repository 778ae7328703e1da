from collections.abc import Callable, Mapping, Sequence
from typing import Any

Buffer = Any  # Python has a type for it from 3.12 on

class Server:
    def __init__(
        self,
        settings: Mapping[str, Any],
        images: Buffer,
        run: Callable[[int], Buffer | None],
        decode: Callable[[bytes, int, bool], bytes | tuple[str, str, str]],
        check_images: Callable[[bytes, int], tuple[str, str, str] | None],
        *,
        name: str,
        version: str,
        classes: Sequence[str],
        description: bytes,
    ) -> None: ...
    def start(self, sockets: Sequence[int], metrics_sockets: Sequence[int]) -> None: ...
    def set_serving(self, batch_sizes: Sequence[int]) -> None: ...
    def stop(self) -> None: ...
    def wait(self, timeout_s: float) -> str | None: ...
    def counts(self) -> tuple[int, int, int]: ...

class LoadClient:
    def __init__(self, target: str, method: str, num_connections: int) -> None: ...
    def submit(
        self,
        numbers: Buffer,
        messages: Sequence[bytes],
        timeout_s: float,
        due_ns: Buffer | None = None,
        late_s: float | None = None,
    ) -> None: ...
    def take(self, timeout_s: float) -> list[bytes]: ...
    def close(self) -> None: ...

def classifications(replies: bytes, ends: bytes, num_images: int, top_k: int) -> list[bytes]: ...
def logits(replies: bytes, ends: bytes, num_images: int) -> list[bytes]: ...
