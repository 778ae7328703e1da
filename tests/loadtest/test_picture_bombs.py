"""What a stranger's pictures may cost the native front end, and those who ask beside them."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from loadtest.attack import run
from loadtest.attack.attacks import ATTACKS, CROWD
from loadtest.attack.bombs import blank_png, blank_webp
from loadtest.attack.trial import Limits, Site, Timing, measure
from loadtest.server_process import ServerProcess
from tests.loadtest.picture_costs import picture_cost
from tests.reliability.goals import is_release
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from tests.serving.pictures import COLOUR_ALPHA, encoded, garment, png_chunk
from tests.serving.pictures import blank_png as png_of

pytestmark = [needs_native, pytest.mark.timing]

MEBIBYTE = 1 << 20
SMALL = encoded(Image.fromarray(garment()))


def behind_header(chunks: bytes) -> bytes:
    return SMALL[:33] + chunks + SMALL[33:]


def in_scans(num_scans: int) -> bytes:
    picture = encoded(Image.new("RGB", (1024, 1024)), "JPEG", progressive=True)
    return picture[:-2] + picture[picture.rindex(b"\xff\xda") : -2] * num_scans + picture[-2:]


def refused_requests() -> dict[str, list[bytes]]:
    """Requests of at most a mebibyte, each refused from headers."""
    large_webp = encoded(Image.new("RGBA", (4096, 4096)), "WEBP", lossless=True)
    return {
        "PNG of 268 megapixels": [blank_png(16383)],
        "PNG of 2 ** 62 pixels": [SMALL[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + SMALL[24:]],
        "PNG of 100,000 frames": [behind_header(png_chunk(b"acTL", struct.pack(">II", 100_000, 0)))],
        "PNG of 40,000 chunks": [behind_header(png_chunk(b"tEXt", b"a\0b") * 40_000)],
        "702 bytes of WebP": [large_webp],
        "1,024 of them": [large_webp] * 1024,
        "28 bytes of WebP": [blank_webp(16383)],
        "WebP of 30,000 chunks": [encoded(Image.new("L", (28, 28)), "WEBP") + b"JUNK\0\0\0\0" * 30_000],
        "JPEG in 5,000 scans": [in_scans(5000)],
        "JPEG of 250,000 segments": [b"\xff\xd8" + b"\xff\xfe\0\2" * 250_000],
        "many PNGs as large as may be": [blank_png(4096)] * 400,
        "many WebPs as large as may be": [blank_webp(2896)] * 1024,
    }


def dearest_requests() -> dict[str, list[bytes]]:
    """What is as dear as it may be, and answered."""
    return {
        "PNG of 16 megapixels": [png_of(4096, 4096, 8, COLOUR_ALPHA)],
        "PNG of 4 megapixels of 16 bits": [png_of(2048, 2048, 16, COLOUR_ALPHA)],
        "WebP of 8 megapixels": [encoded(Image.new("RGBA", (2896, 2896)), "WEBP")],
    }


@pytest.fixture(scope="module")
def server(small_repository: Path) -> Iterator[ServerProcess]:
    with run.started_server(small_repository, "native") as server:
        yield server


@pytest.fixture(scope="module")
def site(server: ServerProcess) -> Iterator[Site]:
    with run.site_of(server) as site:
        yield site


@pytest.mark.fault("S8")
@pytest.mark.goal("G12", of="requests of at most 1 MiB, each kind of bomb", ci=1, release=20)
def test_bomb_is_refused_for_little(server: ServerProcess, size: int, figure: Figure) -> None:
    pid = server.process.pid
    picture_cost(server.target, pid, [SMALL])  # starts the decoder
    costs = {}
    for name, pictures in refused_requests().items():
        assert sum(map(len, pictures)) <= MEBIBYTE, name
        costs[name] = [picture_cost(server.target, pid, pictures) for _ in range(size)]
        assert {cost.status.partition(" ")[0] for cost in costs[name]} == {"INVALID_ARGUMENT"}, (name, costs[name])
    cpu_ms = {name: min(cost.cpu_ms for cost in each) for name, each in costs.items()}
    grown_mb = {name: min(cost.grown_mb for cost in each) for name, each in costs.items()}
    dearest, largest = max(cpu_ms, key=cpu_ms.__getitem__), max(grown_mb, key=grown_mb.__getitem__)
    figure(
        f"refused for at most {cpu_ms[dearest]:.0f} ms of CPU ({dearest}) and {grown_mb[largest]:.1f} MB ({largest})"
    )
    assert cpu_ms[dearest] <= 50, cpu_ms
    assert grown_mb[largest] <= 8, grown_mb


@pytest.mark.goal("G12", of="requests of the dearest pictures allowed", ci=1, release=20)
def test_dearest_pictures_cost_a_fraction_of_a_second(server: ServerProcess, size: int, figure: Figure) -> None:
    for name, pictures in dearest_requests().items():
        costs = [picture_cost(server.target, server.process.pid, pictures) for _ in range(size)]
        assert {cost.status for cost in costs} == {"OK"}, name
        cpu_ms, grown_mb = min(cost.cpu_ms for cost in costs), min(cost.grown_mb for cost in costs)
        figure(f"answered: {name}, {cpu_ms:.0f} ms of CPU and {grown_mb:.0f} MB")
        assert cpu_ms < 600, name
        assert grown_mb < 256, name


@pytest.mark.fault("S8")
@pytest.mark.goal("G12", of="requests with bombs, 100 at a time", ci=100, release=2_000)
def test_hundred_bombs_at_once_slow_others_no_more_than_twice(site: Site, size: int, figure: Figure) -> None:
    timing = Timing() if is_release() else Timing(quiet_s=0.5, least_s=0.5, most_s=10.0)
    limits = Limits() if is_release() else Limits(floor_ms=20.0)  # of fewer calls, on a busy machine
    ordinary = measure(CROWD, size, site, timing, limits)
    for attack in ATTACKS:
        if attack.name not in ("picture-bombs", "picture-heaps"):
            continue
        outcome = measure(attack, size, site, timing, limits)
        beside = f"{ordinary.p99_ms:.1f} beside as many ordinary ones, {outcome.quiet_p99_ms:.1f} quiet"
        figure(
            f"{attack.name}: p99 {outcome.p99_ms:.1f} ms; {beside}; {outcome.num_failed} of {outcome.num_calls} failed"
        )
        assert outcome.faults == [] or outcome.is_only_slow
        assert outcome.p99_ms <= max(limits.floor_ms, 2 * max(ordinary.p99_ms, outcome.quiet_p99_ms))
