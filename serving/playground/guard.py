"""Refuses requests that other sites make through a visitor's browser, and those that are not made as ours are.

On this machine the page has no password: what protects it is that it is reached from here only, and by its own page
only. Elsewhere a visitor gives one of the server's tokens as the password (RFC 7617, HTTP's Basic authentication).
"""

import base64
import ipaddress
import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.access import Tokens
from serving.errors import UnauthenticatedError
from serving.playground.errors import PageError, described

MAX_HEADER_BYTES = 8 << 10
# Of every answer, errors too. Nothing is loaded from elsewhere, nothing is inline, and no other site may embed it.
SECURITY_HEADERS = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(self)"),
    ("cache-control", "no-cache"),
]


class Guard:
    """Wraps an ASGI application: what is refused does not reach it."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], tokens: Tokens | None = None) -> None:
        """`hosts` are names that are ours, beside `localhost` and all addresses; `tokens` are the passwords."""
        self._app, self._hosts, self._tokens = app, {host.lower() for host in hosts} | {"localhost"}, tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if refusal := self._refusal(Request(scope)):
            status, content = described(refusal)
            headers = {"www-authenticate": 'Basic realm="Atelier", charset="UTF-8"'} if status == 401 else None
            await JSONResponse(content, status, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> PageError | None:
        host = request.headers.get("host", "")
        if not self._is_ours(host):
            what = f"{host[:100]!r} is no name of this server: a page elsewhere may have led here (DNS rebinding)"
            return PageError(421, "WRONG_HOST", what, "open it by its address, as localhost, or as --playground-host")
        if sum(len(name) + len(value) for name, value in request.headers.raw) > MAX_HEADER_BYTES:
            return PageError(400, "BAD_REQUEST", f"the headers have more than {MAX_HEADER_BYTES} bytes", "send fewer")
        site = request.headers.get("sec-fetch-site", "same-origin")
        may_come_from = ("same-origin", "none") if request.method == "GET" else ("same-origin",)
        if request.scope["path"].startswith("/api/") and site not in may_come_from:
            return PageError(403, "CROSS_SITE", "another site asks", "only the page itself may: open it in the browser")
        if self._tokens and not _is_known(request.headers.get("authorization", ""), self._tokens):
            return PageError(401, "BAD_TOKEN", "the page wants a password", "give any name, and a token of this server")
        return None

    def _is_ours(self, host: str) -> bool:
        """Returns true for an address, which no DNS answer can have led here, and for our own names; at any port."""
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", host.lower())
        if match is None:
            return False
        name = match[1].strip("[]")
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def _is_known(authorization: str, tokens: Tokens) -> bool:
    """Returns whether the password, whatever the name before it, is one of the tokens."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        _, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        tokens.check([f"Bearer {password}"])
    except (ValueError, UnauthenticatedError):  # no Base64, or no UTF-8 in it
        return False
    return scheme.lower() == "basic"


def check_post(request: Request, media_type: str, max_bytes: int = MAX_HEADER_BYTES) -> int:
    """Returns the length that a POST announces; its media type begins with `media_type`.

    Raises PageError BAD_TYPE for another media type, which a form of another site could send without asking first;
    NO_LENGTH and TOO_LARGE.
    """
    found = request.headers.get("content-type", "").lower()
    if not found.startswith(media_type):
        raise PageError(415, "BAD_TYPE", f"the content type is {found[:100]!r}", f"send {media_type}")
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal()):
        raise PageError(400, "NO_LENGTH", "the request has no Content-Length", "send one")
    if len(length) > 12 or int(length) > max_bytes:
        raise PageError(413, "TOO_LARGE", f"{length[:20]} bytes are announced", f"{max_bytes} are the most")
    return int(length)
