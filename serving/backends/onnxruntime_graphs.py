"""Runs ONNX Runtime on CUDA with nothing but kernels: tensors bound once, one CUDA graph per batch size bucket.

ONNX Runtime captures a graph by itself, one for each `gpu_graph_id`, in the first runs on bound tensors; later runs
replay it. A batch is padded to the next bucket.
"""

import bisect
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnxruntime

from atelier.contract import IMAGE_SHAPE, Images, Logits
from serving.backends.base import batch_size_buckets


class BoundRuns:
    """Runs a session on tensors that stay on the device; `kind` and `index` are ONNX Runtime's words for one."""

    def __init__(self, session: Any, *, kind: str, index: int, max_batch_size: int) -> None:
        self._session, self._device = session, (kind, index)
        self._sizes = batch_size_buckets(max_batch_size)
        self._buckets: dict[int, _Bucket] = {}

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32."""
        num_images = len(images)
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not 1 <= num_images <= self._sizes[-1]:
            raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 (1..{self._sizes[-1]}, 1, 28, 28)")
        bucket = self._bucket_of(num_images)
        bucket.padded[:num_images] = images  # what is left of an earlier batch pads it; rows do not mix
        bucket.images.update_inplace(bucket.padded)
        self._session.run_with_iobinding(bucket.binding, bucket.run_options)
        return cast(Logits, bucket.logits.numpy()[:num_images].copy())

    def _bucket_of(self, num_images: int) -> "_Bucket":
        """Finds the smallest bucket that holds the batch; bound at its first use, which warming up is."""
        size = self._sizes[bisect.bisect_left(self._sizes, num_images)]
        if size not in self._buckets:
            self._buckets[size] = self._bound(size)
        return self._buckets[size]

    def _bound(self, size: int) -> "_Bucket":
        padded = np.zeros((size, *IMAGE_SHAPE), np.uint8)
        images = onnxruntime.OrtValue.ortvalue_from_numpy(padded, *self._device)
        logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type([size, 10], np.float32, *self._device)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("images", images)
        binding.bind_ortvalue_output("logits", logits)
        run_options = onnxruntime.RunOptions()
        run_options.add_run_config_entry("gpu_graph_id", str(size))
        return _Bucket(padded=padded, images=images, logits=logits, binding=binding, run_options=run_options)


@dataclass(frozen=True, kw_only=True)
class _Bucket:
    """Holds one batch size's images and logits, on the host and on the device."""

    padded: Images
    images: Any
    logits: Any
    binding: Any
    run_options: Any
