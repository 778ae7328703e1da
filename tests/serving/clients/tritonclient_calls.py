"""Triton's client, unmodified: everything that it can ask of this server, and what it says to what cannot be.

Usage: tritonclient_calls.py grpc|http TARGET IMAGES.npy PROBABILITIES.npy, the second being what Classify answers.
Prints one line of JSON for each call: its name, and what came of it.
"""

import asyncio
import importlib
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

KIND, TARGET = sys.argv[1], sys.argv[2]
IMAGES, EXPECTED = np.load(sys.argv[3]), np.load(sys.argv[4])
triton = importlib.import_module(f"tritonclient.{KIND}")
tritons_aio = importlib.import_module(f"tritonclient.{KIND}.aio")


def tensor(images: Any, name: str = "images", datatype: str = "UINT8", **options: Any) -> Any:
    made = triton.InferInput(name, list(images.shape), datatype)
    made.set_data_from_numpy(images, **options)
    return made


def output(name: str, **options: Any) -> Any:
    return triton.InferRequestedOutput(name, **options)


def is_exact(result: Any, images: Any = IMAGES) -> bool:
    """Bit by bit what Classify says, in float32 as it came."""
    found = result.as_numpy("probabilities")
    return found.dtype == np.float32 and found.tobytes() == EXPECTED[: len(images)].tobytes()


def note(name: str, call: Callable[[], Any]) -> None:
    try:
        came = call()
    except Exception as error:
        came = f"{error.status()}: {error.message()}" if hasattr(error, "status") else repr(error)
    print(json.dumps({"name": name, "came": came}), flush=True)


def about(client: Any) -> None:
    options = {"as_json": True} if KIND == "grpc" else {}
    note("live", client.is_server_live)
    note("ready", client.is_server_ready)
    note("model ready", lambda: client.is_model_ready("lenet5"))
    note("version ready", lambda: client.is_model_ready("lenet5", "1"))
    note("other model ready", lambda: client.is_model_ready("resnet"))
    note("server", lambda: client.get_server_metadata(**options)["name"])
    note("inputs", lambda: [each["name"] for each in client.get_model_metadata("lenet5", **options)["inputs"]])
    note("other model", lambda: client.get_model_metadata("resnet"))

    def config() -> Any:
        found = client.get_model_config("lenet5", **options)
        return found["config"]["name"] if KIND == "grpc" else found["name"]

    def index() -> Any:
        found = client.get_model_repository_index(**options)
        return [each["state"] for each in (found["models"] if KIND == "grpc" else found)]

    def statistics() -> bool:
        of_model = client.get_inference_statistics("lenet5", **options)["model_stats"][0]
        return int(of_model["inference_stats"]["success"]["count"]) > 0

    note("config", config)
    note("index", index)
    note("statistics", statistics)
    note("load", lambda: client.load_model("lenet5"))


def inferences(client: Any) -> None:
    note("default", lambda: is_exact(client.infer("lenet5", [tensor(IMAGES)])))
    all_options = {"request_id": "42", "model_version": "1", "timeout": 5_000_000, "priority": 1}

    def with_options() -> Any:
        asked = [output("probabilities"), output("logits")]
        result = client.infer("lenet5", [tensor(IMAGES)], outputs=asked, **all_options)
        response = result.get_response()
        return [is_exact(result), response.id if KIND == "grpc" else response["id"]]

    def classes() -> Any:
        result = client.infer("lenet5", [tensor(IMAGES[:2])], outputs=[output("probabilities", class_count=2)])
        best = EXPECTED[:2].argmax(1)
        found = result.as_numpy("probabilities")
        return [list(found.shape), [int(one.split(b":")[1]) for one in found[:, 0]] == best.tolist()]

    def together() -> bool:
        async def ask() -> bool:
            async with tritons_aio.InferenceServerClient(TARGET) as asynchronous:
                calls = (asynchronous.infer("lenet5", [tensor(IMAGES[i : i + 1])]) for i in range(len(IMAGES)))
                rows = [result.as_numpy("probabilities") for result in await asyncio.gather(*calls)]
                return np.concatenate(rows).tobytes() == EXPECTED.tobytes()

        return asyncio.run(ask())

    note("options", with_options)
    note("classes", classes)
    note("aio, all at once", together)
    if KIND == "grpc":
        note("asynchronous", lambda: asked_by_callback(client))
        note("gzip", lambda: is_exact(client.infer("lenet5", [tensor(IMAGES)], compression_algorithm="gzip")))
        return
    note("asynchronous", lambda: is_exact(client.async_infer("lenet5", [tensor(IMAGES)]).get_result()))
    in_json = [output("probabilities", binary_data=False)]
    note("JSON", lambda: is_exact(client.infer("lenet5", [tensor(IMAGES, binary_data=False)], outputs=in_json)))
    for encoding in ("gzip", "deflate"):
        options = {"request_compression_algorithm": encoding, "response_compression_algorithm": encoding}
        note(encoding, lambda options=options: is_exact(client.infer("lenet5", [tensor(IMAGES)], **options)))


def asked_by_callback(client: Any) -> bool:
    is_there, came = threading.Event(), []

    def take(result: Any, error: Any) -> None:
        came.append((result, error))
        is_there.set()

    client.async_infer("lenet5", [tensor(IMAGES)], take, client_timeout=10)
    is_there.wait(10)
    return is_exact(came[0][0])


def refusals(client: Any) -> None:
    one = IMAGES[:1]
    wrong: dict[str, Callable[[], Any]] = {
        "wrong name": lambda: client.infer("lenet5", [tensor(one, "image")]),
        "wrong type": lambda: client.infer("lenet5", [tensor(one.astype(np.float32), datatype="FP32")]),
        "wrong shape": lambda: client.infer("lenet5", [tensor(np.ascontiguousarray(one[:, :, :27]))]),
        "wrong output": lambda: client.infer("lenet5", [tensor(one)], outputs=[output("probs")]),
        "two inputs": lambda: client.infer("lenet5", [tensor(one), tensor(one)]),
        "wrong model": lambda: client.infer("resnet", [tensor(one)]),
        "wrong version": lambda: client.infer("lenet5", [tensor(one)], model_version="7"),
    }
    for name, call in wrong.items():
        note(name, call)


with triton.InferenceServerClient(TARGET) as the_client:
    about(the_client)
    inferences(the_client)
    refusals(the_client)
