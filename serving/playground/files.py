"""Serves the page's own files, each read and compressed once."""

import gzip
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

PAGE_DIR = Path(__file__).parent / "page"
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PICTURES = {".png": "image/png"}  # compressed already
QUALITY = re.compile(r"q=([01](?:\.\d{0,3})?)")


async def page_file(request: Request) -> Response:
    """Answers with a file, or that the browser's is still the same; as gzip where that is taken."""
    name = request.path_params.get("name", "index.html")
    if name not in _names():
        raise HTTPException(404)
    is_text = Path(name).suffix in MEDIA_TYPES
    is_gzipped = is_text and _takes_gzip(request.headers.get("accept-encoding", ""))
    content, tag = _content(name, is_gzipped)
    headers = {"etag": tag} | ({"vary": "accept-encoding"} if is_text else {})
    known = request.headers.get("if-none-match", "")
    if known.strip() == "*" or tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    headers |= {"content-encoding": "gzip"} if is_gzipped else {}
    return Response(content, headers=headers, media_type=(MEDIA_TYPES | PICTURES)[Path(name).suffix])


def _takes_gzip(accepted: str) -> bool:
    """Returns true if a list of codings has gzip, and not as one that is refused (`q=0`)."""
    for each in accepted.lower().split(","):
        coding, _, quality = (part.strip() for part in each.partition(";"))
        if coding == "gzip":
            given = QUALITY.fullmatch(quality or "q=1")
            return given is not None and float(given[1]) > 0
    return False


@cache
def _names() -> frozenset[str]:
    return frozenset(path.name for path in PAGE_DIR.iterdir() if path.suffix in MEDIA_TYPES | PICTURES)


@cache
def _content(name: str, is_gzipped: bool) -> tuple[bytes, str]:
    """Returns the bytes and their ETag, which differs between the two encodings."""
    content = (PAGE_DIR / name).read_bytes()
    content = gzip.compress(content, mtime=0) if is_gzipped else content
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'
