"""Lets the page's process call `Classify`, also where the server wants TLS or tokens of everybody else.

Then the server listens on one more address: a Unix socket in a directory that is this user's alone, in plain text, for
calls with a token that is made at the start and is in memory only. A certificate for the page would have to be trusted
by name and, for mutual TLS, be signed by an authority whose key the server has not.
"""

import hashlib
import secrets
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from serving.config import ServerConfig
from serving.listening import Listening, host_from


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """Holds what both sides need: the page's process its target and token, the front end the rest."""

    target: str = ""
    token: str = field(default="", repr=False)
    listening: Listening | None = None  # beside the addresses that are everybody's

    @property
    def address(self) -> str:
        """The address to listen on besides, as gRPC's target; empty if there is none."""
        return self.target if self.listening else ""

    @property
    def token_sha256(self) -> str:
        """The token's digest, in hexadecimal; empty if there is none."""
        return hashlib.sha256(self.token.encode()).hexdigest() if self.token else ""


NO_ENTRANCE = Entrance()


def open_entrance(config: ServerConfig, target: str, stack: ExitStack, *, only_reserve: bool) -> Entrance:
    """Makes an entrance for as long as the stack is open. Raises OSError and ProgramError if there can be none.

    `target` is the server's own address, which is entrance enough if anybody on this machine may call.
    """
    if not config.has_tls and config.tokens is None:
        return Entrance(target=_reachable(target))
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-")))  # mode 0700
    address = host_from(directory / "page.sock")
    listening = stack.enter_context(Listening([address], 0, only_reserve=only_reserve))
    return Entrance(target=address, token=secrets.token_hex(32), listening=listening)


def _reachable(target: str) -> str:
    """Returns an address that can be called from here: one that listens on all is none."""
    for everywhere, here in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if target.startswith(everywhere):
            return here + target.removeprefix(everywhere)
    return target
