"""A backend that computes nothing: images to the GPU and logits back, the lower bound for any runtime's latency."""

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images, Logits
from serving.backends.base import Backend

LOGITS_BYTES = 10 * 4


class Floor(Backend):
    """One launch of a graph of both copies, and one wait. Raises CudaError."""

    name = "floor"

    def __init__(self, device: str, max_batch_size: int) -> None:
        from serving.backends.cuda import DeviceMemory, Graph, PinnedArray, Stream, use_device

        self.device, self.max_batch_size = device, max_batch_size
        use_device(int(device.partition(":")[2] or "0"))
        self.stream = Stream()
        self._graphs: dict[int, Graph] = {}
        self._images = PinnedArray((max_batch_size, *IMAGE_SHAPE), np.uint8)
        self._logits = PinnedArray((max_batch_size, 10), np.float32)
        self._device_images = DeviceMemory(max_batch_size * IMAGE_BYTES)
        self._device_logits = DeviceMemory(max_batch_size * LOGITS_BYTES)

    def infer(self, images: Images) -> Logits:
        """Returns (N, 10) float32 for (N, 1, 28, 28) uint8, whatever lies on the device."""
        num_images = len(images)

        def copy() -> None:
            self.stream.copy_to_device(self._device_images, self._images, num_images * IMAGE_BYTES)
            self.stream.copy_to_host(self._logits, self._device_logits, num_images * LOGITS_BYTES)

        if num_images not in self._graphs:
            self._graphs[num_images] = self.stream.capture(copy)
        self._images.array[:num_images] = images
        self._graphs[num_images].launch(self.stream)
        self.stream.synchronize()
        logits: Logits = self._logits.array[:num_images].copy()
        return logits

    def close(self) -> None:
        """Frees the device."""
        for graph in self._graphs.values():
            graph.free()
        for resource in (self._images, self._logits, self._device_images, self._device_logits, self.stream):
            resource.free()
