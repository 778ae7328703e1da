"""Hands Rust's side of the front end what it runs in Python: a version of the model, and the reading of pictures."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_SHAPE, Images, Logits
from serving.backends.base import Backend
from serving.batching.runs import BatchRuns
from serving.config import ServerConfig
from serving.errors import OverloadedError, RequestError
from serving.frontends.messages import description_of, model_config
from serving.models import ServedModel
from serving.pictures.costs import cost_so_far
from serving.pictures.decoders import read_in_process
from serving.pictures.raw_images import check_raw_images
from serving.pictures.reading import Prepared, Reading
from serving.process import labels_of


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


def check_images(beginning: bytes, num_bytes: int) -> tuple[str, str, str] | None:
    """Returns what is wrong with raw images that may be none: word, what and cure for the client."""
    try:
        check_raw_images(beginning, num_bytes)
        return None
    except RequestError as error:
        return error.word, error.what, error.cure


def picture_cost(beginning: bytes, index: int, num_pictures: int, before: int) -> int | tuple[str, str, str]:
    """Returns what `cost_so_far` does; or word, what and cure for the client."""
    try:
        return cost_so_far(beginning, index, num_pictures, before)
    except RequestError as error:
        return error.word, error.what, error.cure


def decode(
    picture: bytes, index: int, invert: bool, prepare: bool
) -> tuple[bytes, Prepared | None, bool] | tuple[str, str, str]:
    """Returns a picture's image, how it was prepared and whether it is light; or word, what and cure for the client."""
    try:
        read = read_in_process(picture, index, Reading(invert, prepare))
        return read.image.tobytes(), read.prepared, read.is_light
    except RequestError as error:
        return error.word, error.what, error.cure
