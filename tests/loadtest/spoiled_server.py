"""A server that is sound until one request spoils it: so a test knows when its faults begin.

The request is an image that begins with TRIGGER. Until then it is null_server.py.
"""

import argparse
import asyncio
import os
from typing import Any

import grpc
import uvloop

from atelier.wire import classifier_pb2 as pb
from tests.loadtest.null_server import NullServer, argument_parser, serve

TRIGGER = 255
FAULTS = ("slow", "refuse", "swap", "grow", "die", "none")


class SpoiledServer(NullServer):
    """Classify, with the fault that was asked for once it is spoiled."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._spoils_with = options.spoils_with
        self._is_spoiled = False
        self._ballast = b""

    async def _classify(self, message: bytes, context: Any) -> bytes:
        if pb.ClassifyRequest.FromString(message).images[0] == TRIGGER:
            self._is_spoiled = True
            if self._spoils_with == "grow":
                self._ballast = os.urandom(100 << 20)
            if self._spoils_with == "die":
                os._exit(1)
            return b""
        fault = self._spoils_with if self._is_spoiled else "none"
        if fault == "slow":
            await asyncio.sleep(0.2)
        if fault == "refuse":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL: on demand")
        if fault == "swap":
            request = pb.ClassifyRequest.FromString(message)
            request.images = bytes([(request.images[0] + 1) % TRIGGER % 200]) + request.images[1:]
            message = request.SerializeToString()
        return await super()._classify(message, context)


if __name__ == "__main__":
    parser = argument_parser()
    parser.add_argument("spoils_with", choices=FAULTS)
    uvloop.run(serve(SpoiledServer(parser.parse_args())))
