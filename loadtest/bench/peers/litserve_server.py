"""The model in LitServe: python litserve_server.py MODEL PORT. Runs in LitServe's environment."""

import base64
import os
import sys
from typing import Any

import litserve
import numpy as np

from loadtest.bench.peers.open_model import open_model


class LeNet5(litserve.LitAPI):  # type: ignore[misc] # LitServe is not installed here
    """JSON with the image's bytes in base64 in, logits as a list out; batched."""

    def setup(self, device: Any) -> None:  # noqa: ARG002
        """Opens the model: LitServe's hook."""
        self.logits_of = open_model(sys.argv[1])

    def decode_request(self, request):  # type: ignore[no-untyped-def] # what its type is decides what LitServe passes
        """Reads an image (1, 28, 28)."""
        return np.frombuffer(base64.b64decode(request["image"]), np.uint8).reshape(1, 28, 28)

    def batch(self, inputs: Any) -> Any:
        """Stacks images (N, 1, 28, 28)."""
        return np.stack(inputs)

    def predict(self, images: Any) -> Any:
        """Returns logits (N, 10)."""
        return self.logits_of(images)

    def unbatch(self, output: Any) -> Any:
        """Returns a row for each image."""
        return list(output)

    def encode_response(self, output: Any) -> Any:
        """Returns JSON."""
        return {"logits": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(LeNet5(max_batch_size=64, batch_timeout=0.002), accelerator="cpu")
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[2]),
        num_api_servers=os.cpu_count(),
        log_level="warning",
        generate_client_file=False,
    )
