"""Asks the application on two real nodes of Ray's: answers, statuses, speed, and what a killed replica costs."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster

from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import server_process
from serving.config import ServerConfig
from serving.models import load_model

SETTINGS = yaml.safe_load(Path(__file__).with_name("serve.yaml").read_bytes())
PORT = SETTINGS["grpc_options"]["port"]
NUM_CALLERS = 64
SECONDS = 10.0
NUM_KILLS = 3


def main(arguments: list[str]) -> int:
    """Takes the model repository; returns 1 if an answer or a status is not as it should be."""
    repository = Path(arguments[0] if arguments else "artifacts/models").absolute()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        start(repository)
        return asyncio.run(check(repository))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def start(repository: Path) -> None:
    """Deploys what serve.yaml says, with one replica on each node."""
    from deploy.ray.application import application

    serve.start(proxy_location=SETTINGS["proxy_location"], grpc_options=SETTINGS["grpc_options"])
    (described,) = SETTINGS["applications"]
    options = {
        name: value for name, value in described["deployments"][0].items() if name not in ("name", "autoscaling_config")
    }
    bound = application(described["args"] | {"repository": str(repository)})
    bound._bound_deployment = bound._bound_deployment.options(**options, num_replicas=2)
    serve.run(bound, name=described["name"])


def known_labels(repository: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and what the model itself says of them."""
    images = np.random.default_rng(0).integers(0, 256, (256, 1, 28, 28), np.uint8)
    backend = load_model(ServerConfig(repository=repository, device="cpu")).backend
    rows = [backend.infer(images[at : at + 64]).copy() for at in range(0, 256, 64)]
    return images, np.concatenate(rows).argmax(1)


async def check(repository: Path) -> int:
    """Prints what came of it: Ray with and without kills, and beside it our server with the same service alone."""
    known = known_labels(repository)
    async with connected(f"127.0.0.1:{PORT}") as channel:
        faults = await faulty_statuses(channel)
        told("two replicas", quiet := await load(channel, known, SECONDS))
        told(f"{NUM_KILLS} kills", killed := await load(channel, known, SECONDS * NUM_KILLS, num_kills=NUM_KILLS))
    settings = ("--repository", str(repository), "--port", "0", "--metrics-port", "0", "--front-end", "grpcio")
    with server_process("serving", *settings) as server:
        async with connected(server.target) as channel:
            told("without Ray, grpcio", direct := await load(channel, known, SECONDS))
    print("\n".join(faults) or "statuses are ours, and no traceback is in them")
    wrong = quiet["ended"].keys() | direct["ended"].keys() != {"right"}
    wrong = wrong or not killed["ended"].keys() <= {"right", "UNAVAILABLE REPLICA_LOST"}
    return int(wrong or bool(faults))


def connected(target: str) -> Any:
    """A channel that no proxy of the environment is in the way of."""
    return grpc.aio.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])


def told(name: str, found: dict[str, Any]) -> None:
    """Prints a line on a load."""
    latency = f"p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms"
    print(f"{name}: {found['per_s']:,.0f} calls/s, {latency}, {found['ended']}", flush=True)


async def faulty_statuses(channel: Any) -> list[str]:
    """Asks for what cannot be, and says which answers are not those of the other front ends."""
    classify, faults = channel.unary_unary(f"/{SERVICE}/Classify"), []
    for message, status, word in (
        (pb.ClassifyRequest(images=b"short").SerializeToString(), "INVALID_ARGUMENT", "BAD_IMAGE_SIZE"),
        (pb.ClassifyRequest(images=bytes(784), top_k=11).SerializeToString(), "INVALID_ARGUMENT", "BAD_TOP_K"),
        (pb.ClassifyRequest(images=bytes(784), model_version="9").SerializeToString(), "NOT_FOUND", "UNKNOWN_VERSION"),
        (b"\xff\xff", "INVALID_ARGUMENT", "MALFORMED"),
        (pb.ClassifyRequest(pictures=[b"no picture"]).SerializeToString(), "INVALID_ARGUMENT", ""),
    ):
        try:
            await classify(message, timeout=10)
            faults.append(f"{word}: the call was answered")
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            if error.code().name != status or not details.startswith(word) or "Traceback" in details:
                faults.append(f"expected {status} {word}, and got {error.code().name}: {details}")
    return faults


async def load(
    channel: Any, known: tuple[np.ndarray, np.ndarray], seconds: float, *, num_kills: int = 0
) -> dict[str, Any]:
    """Calls in a closed loop, and kills replicas with SIGKILL meanwhile, if told to."""
    (images, labels), classify = known, channel.unary_unary(f"/{SERVICE}/Classify")
    messages = [pb.ClassifyRequest(images=image.tobytes()).SerializeToString() for image in images]
    ended: Counter[str] = Counter()
    took_s: list[float] = []
    until_s = time.monotonic() + seconds

    async def call(at: int) -> None:
        while time.monotonic() < until_s:
            at, began_s = (at + NUM_CALLERS) % len(messages), time.monotonic()
            try:
                answer = pb.ClassifyResponse.FromString(await classify(messages[at], timeout=30))
                label = answer.classifications[0].predictions[0].label
                ended["right" if label == labels[at] else "WRONG"] += 1
            except grpc.aio.AioRpcError as error:
                word = (error.details() or "").partition(":")[0]
                ended[f"{error.code().name} {word}"] += 1
                await asyncio.sleep(0.01)
            took_s.append(time.monotonic() - began_s)

    async def killer() -> None:
        for _ in range(num_kills):
            await asyncio.sleep(seconds / (num_kills + 1))
            os.kill(replica(), signal.SIGKILL)

    await asyncio.gather(killer(), *(call(at) for at in range(NUM_CALLERS)))
    p50_s, p99_s = np.quantile(took_s, [0.5, 0.99])
    return {"per_s": ended["right"] / seconds, "p50_ms": p50_s * 1e3, "p99_ms": p99_s * 1e3, "ended": dict(ended)}


def replica() -> int:
    """Returns the process of one of them."""
    return next(each.pid for each in psutil.process_iter(["name"]) if "ServeReplica" in each.info["name"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
