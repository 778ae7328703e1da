"""Routes the page's requests and bounds what they may be; every refusal is JSON with reason, message and cure."""

import asyncio
import time
from typing import overload

import numpy as np
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atelier.contract import Images
from atelier.errors import AtelierError
from serving.access import Tokens
from serving.playground.errors import PageError, described
from serving.playground.files import page_file
from serving.playground.guard import Guard, check_post
from serving.playground.looks import Looks, Question, photograph

IMAGE_BYTES = 784
MAX_LOOKS_PER_S = 60
MAX_BODY_S = 10.0
OCCLUSION_COST = 10  # looks that one is worth: 170 images
PHOTOGRAPH_COST = 6
MAX_PICTURE_BYTES = 16 << 20


def make_app(looks: Looks, hosts: list[str], tokens: Tokens | None = None) -> Guard:
    """Returns the ASGI application.

    `hosts` are the names by which it may be called, beside this machine's own; `tokens` are its passwords.
    """
    endpoints = Endpoints(looks)
    routes = [  # most asked first
        Route("/api/look", endpoints.look, methods=["POST"]),
        Route("/api/network", endpoints.network, methods=["GET"]),
        Route("/api/weights", endpoints.weights, methods=["GET"]),
        Route("/api/photograph", endpoints.photograph, methods=["POST"]),
        Route("/api/occlusion", endpoints.occlusion, methods=["POST"]),
        Route("/", page_file, methods=["GET"]),
        Route("/{name}", page_file, methods=["GET"]),
    ]
    handlers = {
        AtelierError: _on_error,
        HTTPException: _on_http_exception,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]
    app.router.redirect_slashes = False
    return Guard(app, hosts, tokens)


class Endpoints:
    """Reads requests, and asks `Looks`."""

    def __init__(self, looks: Looks) -> None:
        self._looks, self._rate = looks, Rate(MAX_LOOKS_PER_S)

    async def network(self, request: Request) -> Response:
        """Describes the network: layers, weights, versions."""
        return JSONResponse(await self._looks.network(_number(request, "version")))

    async def weights(self, request: Request) -> Response:
        """Returns all weights, float32."""
        return _bytes(self._looks.weights(_number(request, "version"), _number(request, "epoch")))

    async def look(self, request: Request) -> Response:
        """Returns the values between the layers for one image, and the served answer."""
        self._rate.take(1)
        question = Question(
            version=_number(request, "version"),
            epoch=_number(request, "epoch"),
            off=_maps(request.query_params.get("off", "")),
            wants_answer=request.query_params.get("answer") != "0",
        )
        return _bytes(await self._looks.look(await _image(request), question))

    async def photograph(self, request: Request) -> Response:
        """Returns a photograph as the network wants it."""
        self._rate.take(PHOTOGRAPH_COST)
        check_post(request, "image/", MAX_PICTURE_BYTES)
        picture = await _body(request)
        return _bytes(await to_thread.run_sync(photograph, picture))

    async def occlusion(self, request: Request) -> Response:
        """Returns how much each covered square costs the best class."""
        self._rate.take(OCCLUSION_COST)
        size, stride = _number(request, "size", 5), _number(request, "stride", 2)
        return _bytes(await self._looks.occlusion(await _image(request), size, stride))


class Rate:
    """Allows so many looks a second, of all pages together."""

    def __init__(self, per_s: int) -> None:
        self._per_s, self._left, self._at_s = per_s, float(per_s), time.monotonic()

    def take(self, cost: int) -> None:
        """Raises PageError TOO_FAST if that many are not left."""
        now_s = time.monotonic()
        self._left = min(self._per_s, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < cost:
            what = f"more than {self._per_s} looks a second were asked for"
            raise PageError(429, "TOO_FAST", what, "ask again in a moment")
        self._left -= cost


async def _image(request: Request) -> Images:
    """Reads (1, 1, 28, 28) uint8. Raises PageError BAD_IMAGE."""
    length = check_post(request, "application/octet-stream")
    if length != IMAGE_BYTES:
        what = f"an image has {IMAGE_BYTES} bytes, and {length} were sent"
        raise PageError(400, "BAD_IMAGE", what, "send 28 x 28 bytes, row by row, 0 for background")
    return np.frombuffer(await _body(request), np.uint8).reshape(1, 1, 28, 28)


async def _body(request: Request) -> bytes:
    try:
        async with asyncio.timeout(MAX_BODY_S):
            return await request.body()
    except TimeoutError:
        what = f"the body was not there after {MAX_BODY_S:g} s"
        raise PageError(408, "TOO_SLOW", what, "send it at once") from None


@overload
def _number(request: Request, name: str) -> int | None: ...
@overload
def _number(request: Request, name: str, default: int) -> int: ...
def _number(request: Request, name: str, default: int | None = None) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise PageError(400, "BAD_NUMBER", f"{name} is {text[:40]!r}", "it must be a whole number")
    return int(text)


def _maps(text: str) -> dict[str, set[int]]:
    """Reads `conv2:5,conv1:0`: maps by layer. Raises PageError BAD_MAP."""
    maps: dict[str, set[int]] = {}
    for each in filter(None, text.split(",")):
        name, _, number = each.partition(":")
        if not (number.isascii() and number.isdecimal() and len(number) < 6):
            raise PageError(400, "BAD_MAP", f"off has {each[:40]!r}", "write layer:map, such as conv2:5,conv1:0")
        maps.setdefault(name, set()).add(int(number))
    return maps


def _bytes(content: bytes) -> Response:
    return Response(content, media_type="application/octet-stream")


async def _on_error(_request: Request, error: AtelierError) -> Response:
    status, content = described(error)
    return JSONResponse(content, status)


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answers what Starlette refuses: paths that are nothing, and methods that they do not take."""
    word = {404: "NOT_FOUND", 405: "BAD_METHOD"}.get(error.status_code, "BAD_REQUEST")
    what = f"{request.method} {request.url.path[:100]}: {error.detail}"
    status, content = described(PageError(error.status_code, word, what, "docs/playground.md lists what there is"))
    return JSONResponse(content, status, headers=error.headers)


async def _on_bug(_request: Request, _error: Exception) -> Response:
    """Answers what nobody has foreseen; Starlette raises the error again, and it is logged."""
    status, content = described(PageError(500, "INTERNAL", "the page's process failed on this", "see the server's log"))
    return JSONResponse(content, status)


async def _on_disconnect(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it
