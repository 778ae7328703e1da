"""The least that a grpc.aio server can do: take a message, answer with one of a given size. The yardstick of `bench`.

python -m loadtest.echo_server --reply-bytes 60
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
        """The one handler, whatever is called."""
        return self._handler


def write_ready_file(path: Path, port: int) -> None:
    """Says where this process serves, as `python -m serving` does."""
    about = {"targets": [f"127.0.0.1:{port}"], "metrics": [], "pid": os.getpid()}
    write_atomically(path, json.dumps(about).encode())


async def serve(port: int, reply_bytes: int, ready_file: Path | None = None) -> None:
    """Runs until SIGTERM or SIGINT."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((EchoHandler(b"x" * reply_bytes),))
    port = server.add_insecure_port(f"127.0.0.1:{port}")
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
    """`python -m loadtest.echo_server`."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.echo_server", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose (default)")
    parser.add_argument("--reply-bytes", type=int, default=60, help="size of the answer, 60 like a label (default)")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own loop")
    parser.add_argument("--ready-file", type=Path, help="written once it serves, as by python -m serving")
    arguments = parser.parse_args()
    run = uvloop.run if arguments.uvloop else asyncio.run
    run(serve(arguments.port, arguments.reply_bytes, arguments.ready_file))


if __name__ == "__main__":
    main()
