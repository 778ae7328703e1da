"""Measures what the page that looks inside costs those who only ask: Classify beside it, closed and drawn on."""

import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from atelier.errors import ProgramError
from loadtest.backend_speed import random_images
from loadtest.bench.contenders import check_count, serving, target_of
from loadtest.bench.h2load import SINGLE, H2Load
from loadtest.bench.rows import ONE_IMAGE, Figures, Row

NO_PAGE, CLOSED, DRAWN = "no page", "the page closed", "the page drawn on"
LOOKS, LOOKS_PER_S = f"{DRAWN}, looks/s", 30  # as a hand that draws
CONTENT_LENGTH = re.compile(rb"\ncontent-length: *(\d+)", re.IGNORECASE)
LEAST = {CLOSED: 0.99, DRAWN: 0.95}  # of the rate without the page


def measure_page(repository: Path, repeats: int, scale: float) -> Figures:
    """Measures requests/s of three servers in turn: without the page, with it, and with one person who draws on it.

    A warm-up, which starts the page's process, does not count. Raises ProgramError LOST_ANSWERS if a server's count is
    not what was asked of it, and what a look fails by.
    """
    generator, figures, num_looks = H2Load(scale), defaultdict[str, list[float]](list), 0
    flags = {NO_PAGE: ("--playground-port", "0"), CLOSED: (), DRAWN: ()}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(repository, *each)) for name, each in flags.items()}
        (page,) = servers[DRAWN].ready["playground"]
        for number in tqdm(range(repeats + 1), desc="beside the page", unit="repeat", disable=None):
            for name, server in servers.items():
                hand: AbstractContextManager[list[float]] = drawn_on(page) if name == DRAWN else nullcontext([])
                with hand as looked_s:
                    began_s = time.monotonic()
                    rate = generator.offer(target_of(name, server), SINGLE).requests_per_s
                    taken_s = time.monotonic() - began_s
                    looks_per_s = sum(each >= began_s for each in looked_s) / taken_s
                num_looks += len(looked_s)
                if number > 0:
                    figures[name].append(rate)
                    figures[f"{name}, looks/s"].append(looks_per_s)
        for name, server in servers.items():
            check_count(server, generator.num_sent[name] + (num_looks if name == DRAWN else 0))
    return figures


def reply_bytes(found: bytes) -> int:
    """Returns how many bytes the whole reply has; more than are there while that is not known."""
    head, end, _ = found.partition(b"\r\n\r\n")
    length = CONTENT_LENGTH.search(head)
    return len(head) + len(end) + int(length[1]) if end and length else len(found) + 1


@contextmanager
def drawn_on(page: str) -> Iterator[list[float]]:
    """Asks for the maps of an image with the server's answer 30 times a second, from the first look on.

    Uses a bare socket: who draws has a machine of their own, so what an HTTP client costs here is not the page's price.
    Yields when it had each. Raises at the end what a look failed by.
    """
    looked_s, has_ended, address, image = list[float](), threading.Event(), urlsplit(page), random_images(1).tobytes()
    head = f"POST /api/look HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/octet-stream\r\n"
    request = f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image
    connection = socket.create_connection((address.hostname, address.port), timeout=60)

    def look() -> None:
        connection.sendall(request)
        found = b""
        while len(found) < reply_bytes(found) and (received := connection.recv(1 << 20)):
            found += received
        answered, _, body = found.partition(b"\r\n\r\n")
        is_whole, status = len(found) == reply_bytes(found), answered.partition(b"\r\n")[0]
        if not (is_whole and status.startswith(b"HTTP/1.1 200") and b'"answer": {' in body):
            said = f"{status.decode(errors='replace')!r} with {body[:300].decode(errors='replace')!r}"
            raise ProgramError("NO_LOOK", f"a look was answered {said}")
        looked_s.append(time.monotonic())

    def draw() -> None:
        due_s = time.monotonic()
        while not has_ended.wait(max(0.0, due_s - time.monotonic())):
            look()
            due_s = max(due_s + 1 / LOOKS_PER_S, time.monotonic())  # a hand waits for what it sees

    with closing(connection), ThreadPoolExecutor(1) as hand:
        look()
        drawing = hand.submit(draw)
        try:
            yield looked_s
        finally:
            has_ended.set()
        drawing.result()


def page_rows(figures: Figures) -> list[Row]:
    """Makes a row of each state of the page, and one of the looks that were had."""
    rows = [
        Row(
            name=f"{name}: {ONE_IMAGE}",
            unit="requests/s",
            ours=figures[name],
            yardstick=figures[NO_PAGE],
            yardstick_name=NO_PAGE,
            target=least,
        )
        for name, least in LEAST.items()
    ]
    return [*rows, Row(name=f"{DRAWN}: looks with an answer", unit="1/s", ours=figures[LOOKS])]
