"""The model in TorchServe: its handler, copied beside the model. Runs in TorchServe's environment."""

from pathlib import Path
from typing import Any

import numpy as np

from loadtest.bench.peers.open_model import open_model


class LeNet5:
    """784 bytes in, ten float32 out; batched by TorchServe."""

    def initialize(self, context: Any) -> None:
        """Opens the model: TorchServe's hook."""
        self.logits_of = open_model(str(Path(context.system_properties["model_dir"]) / "model.onnx"))

    def handle(self, data: Any, context: Any) -> list[bytes]:  # noqa: ARG002
        """Answers one batch."""
        images = np.stack([np.frombuffer(request["body"], np.uint8) for request in data])
        return [row.tobytes() for row in self.logits_of(images.reshape(-1, 1, 28, 28))]
