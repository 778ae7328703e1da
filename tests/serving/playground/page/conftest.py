"""The page in a real browser: Debian's Chromium, driven by Playwright, which is installed once, in .cache/playwright.

Without either the tests are skipped and say so, unless ATELIER_REQUIRE_BROWSER is set.
"""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from atelier.errors import ResourceUnavailableError
from examples.browser import chromium
from loadtest.server_process import server_process
from tests.conftest import made_once
from tests.idx_files import write_idx_files
from tests.training.conftest import call_trainer

ROOT = Path(__file__).parents[4]
PAGE_DIR = ROOT / "serving" / "playground" / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
OpenPage = Callable[..., Any]
Served = Callable[..., str]


def browser_or_skip(*, has_windows: bool = False) -> Iterator[Any]:
    """For a module: while Playwright runs, so does an event loop, and other tests start one of their own."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(chromium(has_windows=has_windows))
        except ResourceUnavailableError as error:
            if "ATELIER_REQUIRE_BROWSER" in os.environ:
                raise
            pytest.skip(str(error))
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from browser_or_skip()


@pytest.fixture(scope="session")
def served(
    small_repository: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Served]:
    """Returns the page's address, of a server of the tutorial's network (with seeded weights), or of another's.

    "trained" is what an epoch on all images makes of it, which takes a minute: only slow tests ask for it.

    The tutorial's has a second version, which is not served; "played back" is one with its epochs,
    "fp16" one in that precision.
    All are started when they are first asked for.
    """
    with ExitStack() as servers:

        def make(architecture: str, root: Path) -> None:
            repository = root / "models"
            if architecture == "trained":
                shutil.copytree(request.getfixturevalue("job").repository, repository)
                return
            if architecture == "tutorial":
                shutil.copytree(small_repository, repository)
            if architecture == "played back":
                publish_with_epochs(repository)
            elif architecture == "fp16":
                publish_seeded("tutorial", repository, "fp16")
            else:
                publish_seeded(architecture, repository)

        @functools.cache
        def address_of(architecture: str = "tutorial") -> str:
            name = f"page-{architecture.replace(' ', '-')}"
            repository = made_once(tmp_path_factory, name, functools.partial(make, architecture)) / "models"
            settings = ["--port", "0", "--metrics-port", "0", "--front-end", "grpcio", "--model-version", "1"]
            server = servers.enter_context(server_process("serving", "--repository", str(repository), *settings))
            return str(server.ready["playground"][0])

        yield address_of


def publish_seeded(architecture: str, repository: Path, precision: str = "fp32") -> None:
    from export.parity import truth_of  # these import torch
    from export.repository import publish
    from tests.export.small_model import probes_of
    from tests.serving.playground.versions import exported, manifest_of, seeded

    files = exported(architecture, precision)
    manifest = manifest_of(files, architecture, precision)
    publish(repository / "lenet5", files, replace(manifest, probes=probes_of(truth_of(seeded(architecture)))))


def publish_with_epochs(repository: Path) -> None:
    from export.parity import truth_of
    from export.repository import publish
    from tests.export.small_model import probes_of
    from tests.serving.playground.test_epochs import files_from
    from tests.serving.playground.versions import manifest_of
    from training.checkpoint import load_model

    data_dir, checkpoint_dir = repository.parent / "data", repository.parent / "checkpoint"
    data_dir.mkdir()
    write_idx_files(data_dir)
    assert call_trainer(data_dir, checkpoint_dir, "--keep-epochs", "--set", "num_validation_images=100") == 0
    files = files_from(checkpoint_dir, "fp32")
    probes = probes_of(truth_of(load_model(checkpoint_dir)[0]))
    publish(repository / "lenet5", files, replace(manifest_of(files, "tutorial", "fp32"), probes=probes))


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens an address in a fresh browser; at the end no other host was asked, and nothing complained of."""
    elsewhere: list[str] = []
    complaints: list[str] = []
    contexts: dict[str, Any] = {}

    def opened(address: str, *, width: int = 1440, height: int = 900, **options: Any) -> Any:
        options["viewport"] = {"width": width, "height": height}
        # As one person's windows share connections: each context has its own, and the server has 16 in all.
        context = contexts.get(repr(options)) or browser.new_context(**options)
        contexts[repr(options)] = context
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.set_default_navigation_timeout(
            60_000
        )  # the first has the page's process start, which is nice to all others
        page.route(lambda url: not is_same_origin(url, address), lambda route: elsewhere.append(route.request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts.values():
        context.close()
    assert (elsewhere, complaints) == ([], [])


def is_same_origin(url: str, address: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(address)[:2] or url.startswith(("blob:", "data:"))


@pytest.fixture(scope="module")
def modules(browser: Any) -> Iterator[Any]:
    with modules_in(browser) as page:
        yield page


@contextmanager
def modules_in(browser: Any) -> Iterator[Any]:
    """An empty page whose address has the page's modules, without a server behind them."""
    page = browser.new_page()
    page.route("**/*", lambda route: answer_with_file(route, urlsplit(route.request.url).path))
    page.goto("http://modules.test/")
    yield page
    page.close()


def answer_with_file(route: Any, path: str) -> None:
    if path == "/":
        route.fulfill(body="<!doctype html><title>modules</title>", content_type="text/html")
    else:
        file = PAGE_DIR / path[1:]
        route.fulfill(path=file, content_type=TYPES[file.suffix])
