"""KServe's client, unmodified: kserve_calls.py TARGET IMAGES.npy PROBABILITIES.npy prints a line of JSON a protocol."""

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

TARGET = sys.argv[1]
IMAGES, EXPECTED = np.load(sys.argv[2]), np.load(sys.argv[3])


def request(*, is_raw: bool) -> InferRequest:
    tensor = InferInput("images", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=is_raw)
    outputs = [RequestedOutput("probabilities", {"binary_data": is_raw})]
    return InferRequest("lenet5", [tensor], request_id="k1", request_outputs=outputs)


def found(response: Any) -> list[Any]:
    values = np.array(response.outputs[0].as_numpy(), np.float32).reshape(EXPECTED.shape)
    return [bool((values == EXPECTED).all()), response.id]


def note(protocol: str, ready: list[bool], raw: Any, typed: Any) -> None:
    print(json.dumps({"ready": ready, "raw": found(raw), "typed": found(typed), "protocol": protocol}), flush=True)


async def main() -> None:
    grpc = InferenceGRPCClient(TARGET)
    ready = [await grpc.is_server_live(), await grpc.is_server_ready(), await grpc.is_model_ready("lenet5")]
    note("grpc", ready, await grpc.infer(request(is_raw=True)), await grpc.infer(request(is_raw=False)))
    await grpc.close()
    http, url = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{TARGET}"
    ready = [await http.is_server_live(url), await http.is_server_ready(url), await http.is_model_ready(url, "lenet5")]
    replies = [await http.infer(url, request(is_raw=is_raw), model_name="lenet5") for is_raw in (True, False)]
    note("http", ready, *replies)


asyncio.run(main())
