"""Hands the settings to Rust's side of the front end."""

import resource
from dataclasses import asdict
from typing import Any

from serving.config import ServerConfig
from serving.models import ServedModel
from serving.pictures.costs import BEGINNING_BYTES, MAX_COST, MAX_WAITING_COST
from serving.pictures.decoders import NUM_DECODERS

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
