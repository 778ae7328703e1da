"""Echo server, the least that a grpc.aio server can do: takes a message, answers with one of a given size.

python -m loadtest.echo_server 60
"""

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

import grpc
import uvloop

from atelier.files import write_atomically


class EchoHandler(grpc.GenericRpcHandler):
    """Answers every method with the same bytes, unparsed and unserialised."""

    def __init__(self, reply: bytes) -> None:
        async def handle(_request: bytes, _context: object) -> bytes:
            return reply

        self._handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(handle)

    def service(self, _call: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Returns the one handler, whatever is called."""
        return self._handler


def write_ready_file(path: Path, port: int) -> None:
    """Says where this process serves, as `python -m serving` does."""
    about = {"targets": [f"127.0.0.1:{port}"], "metrics": [], "pid": os.getpid()}
    write_atomically(path, json.dumps(about).encode())


async def serve(reply_bytes: int, ready_file: Path | None) -> None:
    """Runs until SIGTERM or SIGINT."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((EchoHandler(b"x" * reply_bytes),))
    port = server.add_insecure_port("127.0.0.1:0")
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await server.start()
    print(f"echo: {reply_bytes} bytes a reply, on 127.0.0.1:{port}", flush=True)
    if ready_file:
        write_ready_file(ready_file, port)
    await stopped.wait()
    await server.stop(1.0)


def main() -> None:
    """Runs `python -m loadtest.echo_server`, on a port that the system chooses."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.echo_server", description=__doc__.partition("\n")[0])
    parser.add_argument("reply_bytes", type=int, help="size of the answer; 60 is about a label's")
    parser.add_argument("--ready-file", type=Path, help="written once it serves, as by python -m serving")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.reply_bytes, arguments.ready_file))


if __name__ == "__main__":
    main()
