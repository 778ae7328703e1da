"""Images with known answers: what the raw model says to them, asked before any server runs."""

from pathlib import Path

from loadtest.load.protocols import Reference
from loadtest.reference import FP32_ATOL, logits_of
from serving.backends.select import open_backend
from serving.manifest import find_version
from training.dataset import load_dataset

NUM_IMAGES = 1000
BATCH_SIZE = 64


def known_answers(repository: Path) -> Reference:
    """Returns test images, and the logits of the newest version of the model on ONNX Runtime, alone and on the CPU.

    Raises MissingInputError if there is no version or no data set.
    """
    version_dir, manifest = find_version(repository)
    images = load_dataset(fetch=False).test_images[:NUM_IMAGES]
    backend = open_backend("onnxruntime", "cpu", version_dir, manifest, max_batch_size=BATCH_SIZE, num_threads=1)[0]
    try:
        return Reference(images=images, logits=logits_of(backend, images), atol=FP32_ATOL)
    finally:
        backend.close()
