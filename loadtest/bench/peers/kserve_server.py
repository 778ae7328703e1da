"""The model in KServe's Python server: python kserve_server.py MODEL HTTP_PORT GRPC_PORT. Runs in its environment."""

import logging
import sys
from typing import Any

logging.disable(logging.INFO)  # or it writes three lines for each request

from kserve import InferOutput, InferResponse, Model, ModelServer  # noqa: E402

from loadtest.bench.peers.open_model import open_model  # noqa: E402


class LeNet5(Model):  # type: ignore[misc] # KServe is not installed here
    """Open Inference Protocol in, raw tensors out."""

    def load(self) -> bool:
        """Loads the model: KServe's hook."""
        self.logits_of = open_model(sys.argv[1])
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ARG002
        """Answers one request, which KServe's Python server does not batch with others."""
        logits = self.logits_of(payload.inputs[0].as_numpy())
        output = InferOutput(name="logits", shape=list(logits.shape), datatype="FP32")
        output.set_data_from_numpy(logits, binary_data=True)
        return InferResponse(response_id=payload.id or "", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    model = LeNet5("lenet5")
    model.load()
    http_port, grpc_port = map(int, sys.argv[2:4])
    ModelServer(http_port=http_port, grpc_port=grpc_port, access_log_format=None, enable_docs_url=False).start([model])
