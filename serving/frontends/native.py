"""The front end in Rust (native/): gRPC, batches and metrics there, and here the model and Pillow, called once a batch.

python -m serving.frontends.native --repository artifacts/models --port 50051
"""

import argparse
import contextlib
import ctypes
import logging
import resource
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import atelier_native
import numpy as np
from numpy.typing import NDArray

from protos import classifier_pb2 as pb
from serving import __version__
from serving.backends.base import IMAGE_SHAPE, Backend, Logits
from serving.channel import SERVICE
from serving.config import ServerConfig
from serving.errors import DeviceError, ProgramError, RequestError, run_program
from serving.images import image_from_picture
from serving.manifest import TensorSpec
from serving.served_model import ServedModel, load_model, say

logger = logging.getLogger(__name__)


SPARE_FILES = 100  # that are no connections

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

# Under the same names on both sides.
SHARED_SETTINGS = (
    "max_queue_size",
    "max_images_per_request",
    "max_message_bytes",
    "max_encoded_bytes",
    "max_concurrent_requests",
    "default_deadline_s",
    "max_deadline_s",
    "message_timeout_s",
    "hang_timeout_s",
    "lame_duck_s",
    "drain_timeout_s",
)


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What the native front end can be told beyond ServerConfig."""

    listen: tuple[str, ...] = ()  # instead of host and port
    metrics_listen: tuple[str, ...] = ()
    io_threads: int = 1
    # ONNX Runtime on a CPU is known not to hang: what it takes less than this for needs no thread of its own.
    max_inline_us: int = 500
    max_connections: int = 2048
    write_timeout_s: float = 5.0
    num_restarts: int = 0
    tls_certificate: str | None = None  # PEM files
    tls_key: str | None = None
    tls_client_authority: str | None = None  # clients then need a certificate
    tokens: str | None = None  # a file of SHA-256 digests


class NativeServer:
    """A served model behind the native front end: `start`, then `wait` until it says how it ended."""

    def __init__(self, config: ServerConfig, model: ServedModel, extras: Extras | None = None) -> None:
        self.addresses: list[str] = []  # once it has started
        self.metrics_addresses: list[str] = []
        self._model = model
        self._server = atelier_native.Server(
            _settings(config, model, extras or Extras()),
            [_instance(model.backend)],
            _decode,
            name=model.manifest.model_name,
            version=str(model.manifest.version),
            classes=model.manifest.classes,
            description=_description(config, model),
        )

    def start(self) -> None:
        """Listens, warms up; then health says SERVING."""
        self.addresses, self.metrics_addresses = self._server.start()
        backend = self._model.backend
        backend.warm_up()
        self._server.set_serving(sorted({1, backend.max_batch_size}) * 2)

    def stop(self) -> None:
        """Begins the drain."""
        self._server.stop()

    def wait(self, timeout_s: float) -> bool:
        """Whether all has been answered and closed. Raises ProgramError if something was not, or the device is lost."""
        outcome = self._server.wait(timeout_s)
        if not outcome:
            return outcome is not None
        word, _, what = outcome.partition(": ")
        if word.startswith("BACKEND_"):
            raise DeviceError(word, what.partition(" (")[0], "another takes over; the errors above say why")
        raise ProgramError(word, what, "raise --drain-timeout-s")

    @property
    def num_requests(self) -> int:
        """Requests answered so far."""
        return self._server.counts()[0]

    @property
    def num_images(self) -> int:
        """Images answered so far."""
        return self._server.counts()[1]


def keep_heap_small() -> None:
    """Has the C library give back what large messages took: by default it keeps up to twice the largest, per thread."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 256 << 10)
        mallopt(M_TRIM_THRESHOLD, 1 << 20)
        mallopt(M_ARENA_MAX, 2)


def _instance(backend: Backend) -> tuple[NDArray[np.uint8], Callable[[int], Logits | None]]:
    """The buffer that Rust fills, and what runs its first n images."""
    images = np.zeros((backend.max_batch_size, *IMAGE_SHAPE), np.uint8)
    views = [images[:count] for count in range(backend.max_batch_size + 1)]
    infer = backend.infer

    def run(num_images: int) -> Logits | None:
        try:
            return infer(views[num_images])
        except Exception:
            logger.exception("a batch of %d images failed", num_images)
            return None

    return images, run


def _decode(picture: bytes, index: int, invert: bool) -> bytes | tuple[str, str, str]:
    """A picture's image; or word, what and cure for the client."""
    try:
        return image_from_picture(picture, index=index, invert=invert).tobytes()
    except RequestError as error:
        what, _, cure = str(error).removeprefix(f"{error.word}: ").rpartition(" (")
        return error.word, what, cure.removesuffix(")")


def _settings(config: ServerConfig, model: ServedModel, extras: Extras) -> dict[str, Any]:
    backend = model.backend
    metrics_listen = (f"{config.host}:{config.metrics_port_to_open}",) if config.has_metrics else ()
    return (
        asdict(extras)
        | {name: getattr(config, name) for name in SHARED_SETTINGS}
        | {
            "listen": extras.listen or (f"{config.host}:{config.port}",),
            "metrics_listen": extras.metrics_listen or metrics_listen,
            "max_inline_us": extras.max_inline_us if (backend.name, backend.device) == ("onnxruntime", "cpu") else 0,
            "max_batch_size": backend.max_batch_size,
            "labels": list(labels_of(model).items()),
        }
    )


def _max_connections(wanted: int) -> int:
    """As many as there can be files, with some left for what else is open; the process' soft limit is raised for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft < needed and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - SPARE_FILES))


def labels_of(model: ServedModel) -> dict[str, str]:
    """What the metrics page says of the model."""
    manifest, backend = model.manifest, model.backend
    return {
        "backend": backend.name,
        "device": backend.device,
        "model": manifest.model_name,
        "model_version": str(manifest.version),
        "precision": manifest.precision,
        "version": __version__,
    }


def _description(config: ServerConfig, model: ServedModel) -> bytes:
    """GetModel's answer."""
    manifest, backend = model.manifest, model.backend
    return pb.GetModelResponse(
        model_name=manifest.model_name,
        model_version=str(manifest.version),
        architecture=manifest.architecture,
        backend=backend.name,
        device=backend.device,
        precision=manifest.precision,
        input=_tensor_spec(manifest.input),
        output=_tensor_spec(manifest.output),
        classes=manifest.classes,
        max_batch_size=backend.max_batch_size,
        max_images_per_request=config.max_images_per_request,
        max_message_bytes=config.max_message_bytes,
        model_sha256=model.sha256,
        checkpoint_sha256=manifest.checkpoint_sha256,
    ).SerializeToString()


def _tensor_spec(spec: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(name=spec.name, dtype=spec.dtype, shape=spec.shape)


def main(arguments: list[str]) -> int:
    """Serves until SIGTERM or SIGINT; for trials, until the supervisor starts this front end."""
    parser = argparse.ArgumentParser(prog="python -m serving.frontends.native")
    parser.add_argument("--repository", type=Path, default=Path("artifacts/models"))
    parser.add_argument("--listen", action="append", help="host:port or unix:path; may be given again")
    parser.add_argument("--metrics-port", type=int, default=None)
    parser.add_argument("--port", type=int, default=50051)
    parser.add_argument("--io-threads", type=int, default=1)
    parser.add_argument("--num-threads", type=int, default=1)
    settings = parser.parse_args(arguments)
    config = ServerConfig(
        repository=settings.repository,
        port=settings.port,
        metrics_port=settings.metrics_port,
        num_threads=settings.num_threads,
    )
    keep_heap_small()
    model = load_model(config)
    extras = Extras(listen=tuple(settings.listen or ()), io_threads=settings.io_threads)
    server = NativeServer(config, model, extras)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.start()
    _announce(server)
    while not server.wait(0.2):
        pass
    model.backend.close()
    say(f"answered {server.num_requests} requests, {server.num_images} images")
    return 0


def _announce(server: NativeServer) -> None:
    for address in server.metrics_addresses:
        say(f"metrics at http://{address}/metrics")
    say(f"serving {SERVICE} on {', '.join(server.addresses)}")


if __name__ == "__main__":
    raise SystemExit(run_program(main))
