"""Drives Debian's Chromium by Playwright, fetched into .cache/playwright: for the page's pictures and its tests."""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atelier.environments import python_with
from atelier.errors import ResourceUnavailableError

PACKAGES = ("playwright==1.65.0", "axe-playwright-python==0.1.8")
ENVIRONMENT = Path(".cache/playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome")
WITHOUT_WINDOWS = "chromium-headless-shell"  # Debian's too: the page's tests take 0.6 of the processor time in it
WITHOUT_GPU = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu-rasterization"]
WITHOUT_CAMERA = ["--use-fake-device-for-media-stream"]  # one that shows a moving figure; pages still need permission


@contextmanager
def chromium(*, has_windows: bool = False) -> Iterator[Any]:
    """Runs the browser, which draws in software; the one without windows, where it is there and does.

    Raises ResourceUnavailableError NO_BROWSER or NO_ENVIRONMENT.
    """
    names = NAMES if has_windows else (WITHOUT_WINDOWS, *NAMES)
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        raise ResourceUnavailableError("NO_BROWSER", "chromium is not installed", "apt-get install chromium")
    use_playwright()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=WITHOUT_GPU + WITHOUT_CAMERA)
        yield browser
        browser.close()


def use_playwright() -> None:
    """Installs it unless it is there, and lets this process import it, behind its own packages."""
    python = python_with(PACKAGES, ENVIRONMENT)
    packages = sysconfig.get_path("purelib", vars={"base": str(python.parents[1])})
    if packages not in sys.path:
        sys.path.append(packages)
