"""Images with known answers: what the raw model says to them, asked before any server runs."""

from pathlib import Path

import numpy as np

from atelier.errors import MissingInputError
from loadtest.load.protocols import Reference
from serving.backends.select import open_backend
from serving.manifest import list_versions, load_manifest
from training.dataset import load_dataset

NUM_IMAGES = 1000
BATCH_SIZE = 64
ATOL = 1e-4  # of a probability, for fp32


def known_answers(repository: Path, model: str = "lenet5") -> Reference:
    """Returns test images, and the logits of the newest version of the model on ONNX Runtime, alone and on the CPU.

    Raises MissingInputError if there is no version or no data set.
    """
    versions = list_versions(repository / model)
    if not versions:
        raise MissingInputError("NO_MODEL", f"there is no version in {repository / model}", "make export writes one")
    version_dir = repository / model / str(versions[-1])
    manifest = load_manifest(version_dir)
    images = load_dataset(fetch=False).test_images[:NUM_IMAGES]
    backend = open_backend("onnxruntime", "cpu", version_dir, manifest, max_batch_size=BATCH_SIZE, num_threads=1)[0]
    try:
        batches = [backend.infer(images[start : start + BATCH_SIZE]) for start in range(0, NUM_IMAGES, BATCH_SIZE)]
    finally:
        backend.close()
    return Reference(images=images, logits=np.concatenate(batches), atol=ATOL)
