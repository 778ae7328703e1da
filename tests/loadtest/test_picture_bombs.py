"""What a stranger's pictures may cost the native front end, and those who ask beside them."""

import statistics
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from loadtest.attack import run
from loadtest.attack.bombs import CROWD, ask, blank_png, blank_webp
from loadtest.attack.field import Attack, Counts, Field
from loadtest.attack.http2 import ONE_IMAGE
from loadtest.attack.trial import Attacked, AttackOutcome, Limits, Timing, measure
from loadtest.server_process import ServerProcess
from tests.loadtest.picture_costs import picture_cost
from tests.reliability.goals import is_release
from tests.reliability.plugin import Figure
from tests.serving.conftest import needs_native
from tests.serving.pictures import COLOUR_ALPHA, encoded, garment, png_chunk
from tests.serving.pictures import blank_png as png_of

pytestmark = [needs_native, pytest.mark.timing]

MEBIBYTE = 1 << 20
FLOOR_MS = 20.0  # of the gate's fewer calls, on a busy machine
SMALL = encoded(Image.fromarray(garment()))


def ordinary_crowd(field: Field) -> Counts:
    """Asks for one image, as anybody may, 100 requests at a time: what as many bombs are compared with."""
    return ask(field, [ONE_IMAGE], connections=CROWD)


ORDINARY = Attack("crowd", ordinary_crowd, "messages", 2_000, 100)


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
def site(server: ServerProcess) -> Iterator[Attacked]:
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
    cpu_ms = {name: statistics.median(cost.cpu_ms for cost in each) for name, each in costs.items()}
    grown_mb = {name: statistics.median(cost.grown_mb for cost in each) for name, each in costs.items()}
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
        cpu_ms = statistics.median(cost.cpu_ms for cost in costs)
        grown_mb = statistics.median(cost.grown_mb for cost in costs)
        figure(f"answered: {name}, {cpu_ms:.0f} ms of CPU and {grown_mb:.0f} MB")
        assert cpu_ms < 600, name
        assert grown_mb < 256, name


@pytest.mark.fault("S8")
@pytest.mark.goal("G12", of="requests with bombs, 100 at a time", ci=100, release=2_000)
def test_hundred_bombs_at_once_leave_the_p99_within_twice(site: Attacked, size: int, figure: Figure) -> None:
    outcome = beside("picture-bombs", site, size, figure)
    assert outcome.faults == [] or (outcome.is_only_slow and not is_release())
    # On the gate's busy machine a hundred callers who ask for nothing of the kind are felt too.
    assert is_release() or outcome.p99_ms <= max(FLOOR_MS, 2 * crowd_p99_ms(site, size, figure))


@pytest.mark.fault("S8")
def test_hundred_requests_of_the_dearest_pictures_cost_others_what_as_many_callers_do(
    site: Attacked, figure: Figure
) -> None:
    outcome = beside("picture-heaps", site, 100, figure)
    assert outcome.faults == [] or outcome.is_only_slow
    assert outcome.p99_ms <= max(FLOOR_MS, 2 * max(outcome.quiet_p99_ms, crowd_p99_ms(site, 100, figure)))


def beside(name: str, site: Attacked, size: int, figure: Figure) -> AttackOutcome:
    """An honest client's outcome beside an attack."""
    [attack] = [each for each in (*run.ATTACKS, ORDINARY) if each.name == name]
    timing = Timing() if is_release() else Timing(quiet_s=0.5, least_s=0.5, most_s=10.0)
    outcome = measure(attack, size, site, timing, Limits() if is_release() else Limits(floor_ms=FLOOR_MS))
    calls = f"{outcome.num_failed} of {outcome.num_calls} failed"
    figure(f"{name}: p99 {outcome.p99_ms:.1f} ms, {outcome.quiet_p99_ms:.1f} quiet; {calls}")
    return outcome


def crowd_p99_ms(site: Attacked, size: int, figure: Figure) -> float:
    """The p99 beside as many ordinary callers."""
    return beside(ORDINARY.name, site, size, figure).p99_ms
