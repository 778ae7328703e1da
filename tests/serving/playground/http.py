"""Speaks HTTP to the page by hand: what no browser and no library would send."""

import contextlib
import http.client
import io
import json
import socket
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.playground.guard import SECURITY_HEADERS

IMAGE = np.random.default_rng(5).integers(0, 256, (28, 28), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, whole."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def frame(self) -> tuple[dict[str, Any], NDArray[np.float32]]:
        """The header and the values of a look."""
        end = 4 + int.from_bytes(self.body[:4], "little")
        assert end % 4 == 0
        return json.loads(self.body[4:end]), np.frombuffer(self.body[end:], "<f4")


class _Received:
    """What `http.client` reads from, in a socket's place."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def parsed(data: bytes, method: str = "GET") -> Reply:
    response = http.client.HTTPResponse(_Received(data), method=method)  # type: ignore[arg-type]
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    for name, value in SECURITY_HEADERS:
        assert headers.get(name) == value, (response.status, name)  # whatever the answer
    return Reply(status=response.status, headers=headers, body=response.read())


def request(
    method: str, path: str, body: bytes = b"", *, host: str = "localhost", close: bool = True, **headers: str
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    if method == "POST":
        headers = {"Content_Type": "application/octet-stream", **headers}
    if body and "Content_Length" not in headers:
        headers["Content_Length"] = str(len(body))
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value]
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(port: int, sent: bytes, timeout_s: float = 30.0) -> Reply:
    """Sends the bytes, and reads until the other side ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
            connection.sendall(sent)
        return parsed(received(connection))


def received(connection: socket.socket) -> bytes:
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def ask(port: int, method: str, path: str, body: bytes = b"", host: str = "localhost", **headers: str) -> Reply:
    return exchange(port, request(method, path, body, host=host, close=True, **headers))
