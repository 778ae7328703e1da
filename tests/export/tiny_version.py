"""A version that no runtime can open, made without one: for what is written, renamed and read."""

import dataclasses
import hashlib

import numpy as np

from serving.manifest import Probes
from tests.serving import fake_backend

FILES = {"model.onnx": b"the model" * 1000, "parity.md": b"pass\n"}
_IMAGES = np.random.default_rng(7).integers(0, 256, (64, 1, 28, 28), dtype=np.uint8)
MANIFEST = dataclasses.replace(
    fake_backend.MANIFEST,
    version=0,
    max_batch_size=16,
    files={name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
    probes=Probes.of([f"noise {index}" for index in range(64)], _IMAGES, _IMAGES[:, 0, 0, :10].astype(np.float32)),
)
