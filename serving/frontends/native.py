"""The front end in Rust (native/): connections, gRPC, batches and metrics there; here the model, once a batch."""

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import atelier_native
import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, Images, Logits
from atelier.errors import DeviceError, ProgramError
from serving.backends.base import Backend
from serving.errors import RequestError
from serving.frontends.messages import description_of
from serving.models import ServedModel
from serving.pictures.decode import image_from_picture
from serving.process import Process, labels_of

logger = logging.getLogger(__name__)

# The thread that read a lone request runs it itself if that takes no longer than this: handing it to another thread
# and back costs as much as the model. A GPU may hang; what runs there has a thread of its own, which is watched.
MAX_INLINE_US = 500
IO_THREADS = 1
MAX_CONNECTIONS = 2048
WRITE_TIMEOUT_S = 5.0
TICK_S = 0.25
# What Rust's side of the front end needs of the settings, under the same names.
SETTINGS = (
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


def serve(process: Process) -> None:
    """Serves until the supervisor says otherwise. Raises ProgramError if it cannot go on."""
    model = process.open_model()
    server = atelier_native.Server(
        _settings(process, model),
        [_instance(model.backend)],
        _decode,
        name=model.manifest.model_name,
        version=str(model.manifest.version),
        classes=model.manifest.classes,
        description=description_of(model, process.config),
    )
    server.start()
    model.backend.warm_up()
    server.set_serving(sorted({1, model.backend.max_batch_size}) * 2)  # twice: the pace is learned from these runs
    process.tell_ready(model)
    outcome = _wait(server, process)
    num_requests, num_images, _num_waiting = server.counts()
    process.tell_answered(num_requests, num_images)
    failure = _failure_from(outcome) if outcome else None
    if isinstance(failure, DeviceError):
        process.tell_failure(failure)
    else:
        model.backend.close()
    if failure is not None:
        raise failure


def _wait(server: atelier_native.Server, process: Process) -> str:
    """Returns "" once all that was admitted is answered, or why it could not be."""
    is_stopping = False
    while (outcome := server.wait(TICK_S)) is None:
        process.tell_alive()
        if not is_stopping and process.is_told_to_stop():
            is_stopping = True
            server.stop()
    return outcome


def _failure_from(outcome: str) -> ProgramError:
    word, _, what = outcome.partition(": ")
    if word.startswith("BACKEND_"):
        cure = "another process takes over; the errors above say why, nvidia-smi whether a GPU is in order"
        return DeviceError(word, what.partition(" (")[0], cure)
    return ProgramError(word, what, "raise --drain-timeout-s")


def _settings(process: Process, model: ServedModel) -> dict[str, Any]:
    config, backend = process.config, model.backend
    may_run_inline = (backend.name, backend.device) == ("onnxruntime", "cpu")
    return {name: getattr(config, name) for name in SETTINGS} | {
        "listen": _handed_over(process.sockets),
        "metrics_listen": _handed_over(process.metrics_sockets),
        "io_threads": IO_THREADS,
        "max_inline_us": MAX_INLINE_US if may_run_inline else 0,
        "max_batch_size": backend.max_batch_size,
        "max_connections": MAX_CONNECTIONS,
        "write_timeout_s": WRITE_TIMEOUT_S,
        "tls_certificate": _path(config.tls_certificate),
        "tls_key": _path(config.tls_key),
        "tls_client_authority": _path(config.tls_client_authority),
        "tokens": _path(config.tokens),
        "num_restarts": process.num_restarts,
        "labels": sorted(labels_of(model).items()),
    }


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _handed_over(sockets: Sequence[socket.socket]) -> list[str]:
    """Duplicates the sockets for Rust, which closes its own."""
    return [f"fd:{os.dup(each.fileno())}" for each in sockets]


def _instance(backend: Backend) -> tuple[NDArray[np.uint8], Callable[[int], Logits | None]]:
    """Returns the buffer that Rust fills with images, and what runs its first n."""
    images: Images = np.zeros((backend.max_batch_size, *IMAGE_SHAPE), np.uint8)
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
    """Returns a picture's image; or word, what and cure for the client."""
    try:
        return image_from_picture(picture, index=index, invert=invert).tobytes()
    except RequestError as error:
        return error.word, error.what, error.cure
