"""Changes `manifest.json` and `checkpoint.json` as somebody does who can write the digest too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from atelier.sealed import sealed, unsealed


def edit_sealed(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = unsealed(path.read_bytes())
    edit(document)
    path.write_bytes(sealed(document))
