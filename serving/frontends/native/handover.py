"""Hands Rust's side of the front end what it serves with: settings, versions of the model, the reading of pictures."""

import resource
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, Images, Logits
from serving.backends.base import Backend
from serving.batching.runs import BatchRuns
from serving.config import ServerConfig
from serving.errors import OverloadedError
from serving.frontends.messages import description_of, model_config
from serving.models import ServedModel
from serving.pictures.costs import BEGINNING_BYTES, MAX_COST, MAX_WAITING_COST
from serving.pictures.decoders import NUM_DECODERS, read_in_process
from serving.pictures.reading import Prepared, Reading
from serving.process import labels_of

# The thread that read a lone request runs it itself if that takes no longer than this: handing it to another thread
# and back costs as much as the model. A GPU may hang; what runs there has a thread of its own, which is watched.
MAX_INLINE_US = 500
MAX_CONNECTIONS = 10_240
SPARE_FILES = 100  # that are no connections
# What Rust's side of the front end needs of the settings, besides all limits, under the same names.
SETTINGS = (
    "max_queue_size",
    "max_images_per_request",
    "max_message_bytes",
    "max_encoded_bytes",
    "hang_timeout_s",
    "drain_timeout_s",
    "has_records",
)


def settings_for(config: ServerConfig, model: ServedModel) -> dict[str, Any]:
    """Returns what native/src/settings.rs reads, under the same names."""
    backend = model.backend
    may_run_inline = (backend.name, backend.device) == ("onnxruntime", "cpu")
    return (
        asdict(config.limits)
        | {name: getattr(config, name) for name in SETTINGS}
        | {
            "max_inline_us": MAX_INLINE_US if may_run_inline else 0,
            "max_connections": max_connections(),
            "num_decoders": NUM_DECODERS,
            "picture_beginning_bytes": BEGINNING_BYTES,
            "max_picture_cost": MAX_COST,
            "max_waiting_picture_cost": MAX_WAITING_COST,
        }
    )


def max_connections() -> int:
    """Returns as many as there can be files, with some left for what else is open; raises the soft limit for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = MAX_CONNECTIONS + SPARE_FILES
    if soft < needed and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(MAX_CONNECTIONS, soft - SPARE_FILES))


def version_for(model: ServedModel, config: ServerConfig) -> dict[str, Any]:
    """Returns what Rust is to know of a version, and to run it by."""
    images, run = _images_and_run(model.backend, config.hang_timeout_s)
    return {
        "images": images,
        "run": run,
        "close": model.backend.close,
        "name": model.manifest.model_name,
        "version": str(model.manifest.version),
        "classes": model.manifest.classes,
        "description": description_of(model, config),
        "config": model_config(model, config).SerializeToString(),
        "labels": sorted(labels_of(model).items()),
        "probe": model.manifest.probes.one().tobytes(),
    }


def measured_sizes(model: ServedModel) -> list[int]:
    """Returns the batch sizes from whose runs Rust learns the model's pace: twice, for the first may be slow."""
    return sorted({1, model.backend.max_batch_size}) * 2


# Of images that failed: which one, whether for lack of memory, and word, what and cure for the client.
Failures = list[tuple[int, bool, str, str, str]]


def _images_and_run(
    backend: Backend, hang_timeout_s: float
) -> tuple[NDArray[np.uint8], Callable[[int], Logits | tuple[Logits, Failures]]]:
    """Returns the buffer that Rust fills with images, and what runs its first n."""
    images: Images = np.zeros((backend.max_batch_size, *IMAGE_SHAPE), np.uint8)
    views = [images[:count] for count in range(backend.max_batch_size + 1)]
    run_batch = BatchRuns(backend, hang_timeout_s=hang_timeout_s).run

    def run(num_images: int) -> Logits | tuple[Logits, Failures]:
        logits, failures = run_batch(views[num_images])
        if not failures:
            return logits
        return logits, [
            (index, isinstance(error, OverloadedError), error.word, error.what, error.cure)
            for index, error in failures.items()
        ]

    return images, run


def decode(picture: bytes, index: int, invert: bool, prepare: bool) -> tuple[bytes, Prepared | None, bool]:
    """Returns a picture's image, how it was prepared and whether it is light. Raises InvalidRequestError."""
    read = read_in_process(picture, index, Reading(invert, prepare))
    return read.image.tobytes(), read.prepared, read.is_light
