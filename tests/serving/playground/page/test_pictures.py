"""The pictures of docs/playground.md are of the page as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples import playground_pictures
from tests.conftest import Job, command
from tests.serving.playground.page.conftest import ROOT

pytestmark = pytest.mark.slow

MAX_BYTES = 300_000


def test_pictures_are_taken_and_show_the_maps(browser: Any, job: Job, tmp_path: Path) -> None:
    done = command("examples.playground_pictures", tmp_path, "--repository", job.repository)
    assert done.returncode == 0, done.stderr
    for name, (_, context) in playground_pictures.PICTURES.items():
        assert (tmp_path / name).stat().st_size < MAX_BYTES
        with Image.open(tmp_path / name) as picture:
            assert picture.size == tuple(context["viewport"].values())
            colors = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colors) > 100  # maps, and not a message


def test_pictures_of_the_docs_are_these() -> None:
    text = (ROOT / "docs" / "playground.md").read_text()
    for name in playground_pictures.PICTURES:
        assert name in text
        assert (ROOT / "docs" / name).stat().st_size < MAX_BYTES
