"""The page's port over raw sockets: what strangers and other sites send is refused, and nothing holds it up."""

import asyncio
import contextlib
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier.client import AsyncClient
from serving.config import ServerConfig
from serving.pictures.photographs import prepared
from serving.playground import serve as bounds
from serving.playground.app import make_app
from serving.playground.looks import Looks
from serving.playground.serve import server_for
from serving.playground.versions import Versions
from tests.serving.playground.http import IMAGE, ask, exchange, parsed, received, request
from tests.serving.playground.versions import version_in
from tests.serving.running import wait_for

NOWHERE = "127.0.0.1:1"  # no server answers there


@contextmanager
def page_in(directory: Path) -> Iterator[int]:
    """The page's server in a thread, as in its process; its port."""
    version = version_in(directory, "tutorial")
    listening = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    async def serve() -> None:
        async with AsyncClient(NOWHERE) as client:
            looks = Looks(client, Versions(ServerConfig(repository=directory), [version]))
            server = server_for(make_app(looks, ["page.example"]))
            running = asyncio.create_task(server._serve([listening]))
            while not stopping.is_set():
                await asyncio.sleep(0.02)
            server.should_exit = True
            await running

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        stopping.set()
        thread.join(30)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with page_in(tmp_path_factory.mktemp("page")) as port:
        yield port


def test_page_is_served_once_and_then_only_confirmed(port: int) -> None:
    first = ask(port, "GET", "/")
    assert first.status == 200 and first.headers["content-type"].startswith("text/html") and b"<html" in first.body
    again = ask(port, "GET", "/index.html", If_None_Match=first.headers["etag"])
    assert again.status == 304 and again.body == b""
    assert ask(port, "GET", "/index.html", If_None_Match="*").status == 304
    assert "server" not in first.headers


def test_files_are_sent_as_gzip_to_who_takes_it(port: int) -> None:
    plain, packed = (ask(port, "GET", "/app.js", Accept_Encoding=coding) for coding in ("", "br, gzip;q=0.5"))
    assert (plain.headers.get("content-encoding"), packed.headers["content-encoding"]) == (None, "gzip")
    assert gzip.decompress(packed.body) == plain.body and len(packed.body) < len(plain.body) / 2
    assert plain.headers["content-type"] == packed.headers["content-type"] == "text/javascript; charset=utf-8"
    for coding, reply, other in (("", plain, packed), ("gzip", packed, plain)):
        assert reply.headers["vary"] == "accept-encoding"
        again = ask(port, "GET", "/app.js", Accept_Encoding=coding, If_None_Match=f'"x", W/{reply.headers["etag"]}')
        assert (again.status, again.headers["vary"]) == (304, "accept-encoding")
        assert ask(port, "GET", "/app.js", Accept_Encoding=coding, If_None_Match=other.headers["etag"]).status == 200
    for coding in ("GZIP", "br;q=1, gzip ; q=0.001", "gzip;q=1.000", "gzip;q=1."):
        assert ask(port, "GET", "/app.js", Accept_Encoding=coding).headers["content-encoding"] == "gzip"
    refused = ("gzip;q=0", "gzip;q=0.000", "gzipped", "gzip;q=", "gzip;q=nan", f"gzip;q=.{'9' * 7000}")
    for name, coding in [("garments.png", "gzip"), *(("app.js", each) for each in refused)]:
        assert "content-encoding" not in ask(port, "GET", f"/{name}", Accept_Encoding=coding).headers


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9", "127.0.0.1:8003", "[::1]:8003", "page.example", "10.0.0.7"]
)
def test_our_own_names_are_taken_at_any_port(port: int, host: str) -> None:
    assert ask(port, "GET", "/api/network", host=host).status == 200


LOOK = "/api/look"
REFUSALS = {
    "another name, as by DNS rebinding": (request("GET", "/", host="evil.example"), 421, "WRONG_HOST"),
    "a name that only begins like ours": (request("GET", "/", host="localhost.evil.example:8003"), 421, "WRONG_HOST"),
    "a name with a user": (request("GET", "/", host="localhost@evil.example"), 421, "WRONG_HOST"),
    "no name": (b"GET / HTTP/1.0\r\n\r\n", 421, "WRONG_HOST"),
    "no name in HTTP/1.1": (b"GET / HTTP/1.1\r\n\r\n", 400, "BAD_REQUEST"),
    "another site": (request("POST", LOOK, bytes(784), Sec_Fetch_Site="cross-site"), 403, "CROSS_SITE"),
    "a neighbour": (request("POST", LOOK, bytes(784), Sec_Fetch_Site="same-site"), 403, "CROSS_SITE"),
    "another site's script": (request("GET", "/api/weights", Sec_Fetch_Site="cross-site"), 403, "CROSS_SITE"),
    "a form": (request("POST", LOOK, bytes(784), Content_Type="text/plain"), 415, "BAD_TYPE"),
    "no type": (request("POST", LOOK, bytes(784), Content_Type=""), 415, "BAD_TYPE"),
    "785 bytes": (request("POST", LOOK, bytes(785)), 400, "BAD_IMAGE"),
    "no bytes": (request("POST", LOOK, Content_Length="0"), 400, "BAD_IMAGE"),
    "more than any image": (request("POST", LOOK, Content_Length="100000000000"), 413, "TOO_LARGE"),
    "no length": (request("POST", LOOK, Transfer_Encoding="chunked") + b"0\r\n\r\n", 400, "NO_LENGTH"),
    "a length that is none": (request("POST", LOOK, Content_Length="-1"), 400, "BAD_REQUEST"),
    "headers of 9 KB": (request("GET", "/", X="x" * 9000), 400, "BAD_REQUEST"),
    "headers of 10 MB": (request("GET", "/", X="x" * 10_000_000), 400, "BAD_REQUEST"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "BAD_REQUEST"),
    "a path out of the folder": (request("GET", "/../app.py"), 404, "NOT_FOUND"),
    "an encoded path out": (request("GET", "/%2e%2e/app.py"), 404, "NOT_FOUND"),
    "encoded slashes": (request("GET", "/..%2f..%2fapp.py"), 404, "NOT_FOUND"),
    "an absolute path": (request("GET", "//etc/passwd"), 404, "NOT_FOUND"),
    "nothing there": (request("GET", "/api/nothing"), 404, "NOT_FOUND"),
    "a slash too many": (request("GET", "/api/network/"), 404, "NOT_FOUND"),
    "a look by GET": (request("GET", LOOK), 405, "BAD_METHOD"),
    "a file by POST": (request("POST", "/index.html"), 405, "BAD_METHOD"),
    "a preflight": (request("OPTIONS", LOOK, Origin="https://evil.example"), 405, "BAD_METHOD"),
    "no such layer": (request("POST", f"{LOOK}?off=conv9:1", bytes(784)), 400, "BAD_MAP"),
    "no such map": (request("POST", f"{LOOK}?off=conv2:16", bytes(784)), 400, "BAD_MAP"),
    "no map": (request("POST", f"{LOOK}?off=conv2", bytes(784)), 400, "BAD_MAP"),
    "no number": (request("GET", "/api/network?version=newest"), 400, "BAD_NUMBER"),
    "no such version": (request("GET", "/api/network?version=77"), 404, "NO_MODEL"),
    "no square": (request("POST", "/api/occlusion?size=0", bytes(784)), 400, "BAD_SQUARE"),
    "too many squares": (request("POST", "/api/occlusion?size=29&stride=1", bytes(784)), 400, "BAD_SQUARE"),
    "no picture": (request("POST", "/api/photograph", b"GIF89a", Content_Type="image/gif"), 400, "BAD_PICTURE"),
    "a picture by a form": (request("POST", "/api/photograph", b"x", Content_Type="text/plain"), 415, "BAD_TYPE"),
    "a huge picture": (
        request("POST", "/api/photograph", Content_Length=str((16 << 20) + 1), Content_Type="image/png"),
        413,
        "TOO_LARGE",
    ),
    "nobody to answer": (request("POST", "/api/occlusion", bytes(784)), 503, "NO_SERVER"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_says_why_in_json(port: int, name: str) -> None:
    sent, status, reason = REFUSALS[name]
    reply = exchange(port, sent)
    assert (reply.status, reply.json["reason"]) == (status, reason), reply.body
    assert reply.json["message"].startswith(f"{reason}: ") and reply.json["cure"]
    assert reply.headers["content-type"] == "application/json"
    assert "access-control-allow-origin" not in reply.headers


def test_maps_are_shown_while_nobody_answers(port: int) -> None:
    header, values = ask(port, "POST", LOOK, IMAGE.tobytes()).frame
    assert header["answer"] is None and header["refusal"]["reason"] == "NO_SERVER" and header["refusal"]["message"]
    assert header["refusal"]["retry_after_ms"] == 700 and header["version"] == 1
    assert np.array_equal(values[:784], (IMAGE / np.float32(255)).ravel())
    header, _ = ask(port, "POST", f"{LOOK}?answer=0", IMAGE.tobytes()).frame
    assert header["answer"] is header["refusal"] is None


def test_photograph_is_prepared_as_classify_does(port: int) -> None:
    pixels = np.full((120, 90), 250, np.uint8)
    pixels[20:80, 30:60] = 60
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    reply = ask(port, "POST", "/api/photograph", encoded.getvalue(), Content_Type="image/png")
    wanted, facts = prepared(encoded.getvalue())
    end = 4 + int.from_bytes(reply.body[:4], "little")
    assert json.loads(reply.body[4:end]) == {"inverted": True, "box": list(facts.box)}
    assert reply.body[end:] == wanted.tobytes() and len(reply.body) == end + 784


def test_17th_connection_is_refused_until_another_ends(tmp_path: Path) -> None:
    with page_in(tmp_path) as port, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(16)]
        for each in opened:
            each.sendall(request("GET", "/", close=False))
            assert each.recv(1 << 16).startswith(b"HTTP/1.1 200")
        refused = exchange(port, request("GET", "/"))
        assert (refused.status, refused.json["reason"]) == (503, "TOO_MANY_CONNECTIONS")
        opened[3].close()
        wait_for(lambda: ask(port, "GET", "/").status == 200)


def test_more_looks_a_second_than_the_page_makes_are_refused(tmp_path: Path) -> None:
    with page_in(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 30) as connection:
        one = request("POST", f"{LOOK}?answer=0", bytes(784), close=False)
        last = request("GET", "/api/nothing")
        connection.sendall(one * 200 + last)
        data = received(connection)
    num_answers, num_refused = data.count(b"HTTP/1.1 200"), data.count(b"HTTP/1.1 429")
    assert num_answers + num_refused == 200 and num_answers >= 60 and num_refused > 0
    assert b'"reason":"TOO_FAST"' in data


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-", request("POST", LOOK, Content_Length="784")],
    ids=["nothing", "headers", "body"],
)
def test_who_falls_silent_loses_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(bounds, "MAX_SILENCE_S", 0.3)
    monkeypatch.setattr("serving.playground.app.MAX_BODY_S", 0.3)
    with page_in(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(sent)
        data = received(connection)
    if sent:
        reply = parsed(data)
        assert (reply.status, reply.json["reason"]) == (408, "TOO_SLOW")
    else:
        assert data == b""


@pytest.mark.slow
def test_headers_that_come_byte_by_byte_have_no_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_SILENCE_S", 0.5)
    with page_in(tmp_path) as port, socket.create_connection(("127.0.0.1", port), 20) as connection:
        began_s = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in request("GET", "/", X="x" * 1000):
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began_s < 10  # all of them would take 20 s


@pytest.mark.slow
def test_who_does_not_read_the_answers_loses_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_REQUEST_S", 0.5)
    with page_in(tmp_path) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(("127.0.0.1", port))
        connection.sendall(request("GET", "/api/weights", close=False) * 100)  # 25 MB of answers
        time.sleep(1.5)
        assert len(received(connection)) < 20e6
        assert ask(port, "GET", "/").status == 200


@pytest.mark.timing
def test_answers_do_not_wait_to_be_acknowledged(port: int) -> None:
    """An answer is written in several pieces: without TCP_NODELAY each look takes 40 ms more than its work."""
    took_s = []
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        for _ in range(20):
            began_s = time.monotonic()
            connection.sendall(request("GET", "/icon.svg", close=False))
            data = connection.recv(1 << 16)
            while b"</svg>" not in data:
                data += connection.recv(1 << 16)
            took_s.append(time.monotonic() - began_s)
    assert sorted(took_s)[10] < 0.03
