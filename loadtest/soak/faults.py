"""The faults of a soak, by name: each is done to the site, and returns once it has shown its effect."""

import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable
from random import Random

import psutil

from atelier.client import ClassifyError, Client
from atelier.errors import ProgramError
from loadtest.processes import is_running, serving_process
from loadtest.restarts.bad_versions import BAD_KINDS
from loadtest.soak import hostile
from loadtest.soak.site import HOST, LIMIT_S, Site, put, wait_until
from serving.manifest import MODEL_NAME, list_versions

STOPPED_S = 0.5
TRIED_S = 1.0  # for a connection whose certificate is looked at
KEPT = "what was read before stays"

# Does it, and says what was done.
Fault = Callable[[Site, Random], str]


def kill(site: Site, _random: Random) -> str:
    """Kills the process that serves: another serves, and of its own processes none is left.

    Certificate, key and tokens are not touched meanwhile: a process cannot start while these files are broken, and one
    that runs keeps what it has read. This combination is left out.
    """
    with site.of_process, site.of_certificate, site.of_tokens:
        victim = serving_process(site.server.process.pid, LIMIT_S)
        decoders = victim.children()
        began_s = time.monotonic()
        victim.kill()
        with contextlib.suppress(psutil.Error):
            victim.wait(5)
        site.kills.append((began_s, time.monotonic()))
        wait_until(lambda: _presented(site) != b"", "no other process serves")
    wait_until(lambda: not any(map(is_running, decoders)), f"the decoders of process {victim.pid} go on")
    return f"process {victim.pid}"


def kill_decoders(site: Site, random: Random) -> str:
    """Kills the processes that decode pictures, once there are any: the next picture has another."""
    hostile.bad_pictures(site, random)
    decoders = serving_process(site.server.process.pid, LIMIT_S).children()
    if not decoders:
        raise ChildProcessError("no process decodes pictures")  # or the one that serves was killed: once more
    for decoder in decoders:
        with contextlib.suppress(psutil.NoSuchProcess):
            decoder.kill()
    hostile.bad_pictures(site, random)
    return f"{len(decoders)} processes"


def stop_for_a_while(site: Site, _random: Random) -> str:
    """Stops the process that serves for half a second, as a machine that is out of breath does."""
    victim = serving_process(site.server.process.pid, LIMIT_S)
    with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
        victim.suspend()
        time.sleep(STOPPED_S)
        victim.resume()
    return f"process {victim.pid}"


def new_version(site: Site, _random: Random) -> str:
    """Publishes a version, and has it served."""
    with site.of_shelf:
        number = _newest(site) + 1
        site.shelf.publish(number)
        _ask_for(site, rf"serving {MODEL_NAME} version {number};", number)
    return f"version {number}"


def bad_version(site: Site, random: Random) -> str:
    """Publishes a version that must be refused, in one of many ways."""
    with site.of_shelf:
        number, kind = _newest(site) + 1, random.choice(list(BAD_KINDS))
        word = site.shelf.publish_bad(number, kind, random)
        _ask_for(site, rf"version {number} is refused: {word}", number)
        site.shelf.withdraw(number)
    return kind


def _newest(site: Site) -> int:
    return max(list_versions(site.shelf.repository / MODEL_NAME))


def _ask_for(site: Site, answer: str, number: int) -> None:
    """Sends SIGHUP until the server answers. A process that is killed while it loads a version refuses it: once more.

    Raises ProgramError NO_EFFECT if it says something else, or nothing.
    """
    until_s = time.monotonic() + LIMIT_S
    while time.monotonic() < until_s:
        start = len(site.server.lines)
        site.server.process.send_signal(signal.SIGHUP)
        about = rf"serving {MODEL_NAME} version {number};|version {number} is refused"
        said = _line_since(site, start, about)
        if re.search(answer, said):
            return
        if "LOAD_CRASHED" not in said:
            raise ProgramError("NO_EFFECT", f"the server says {said!r} instead of {answer!r}")
    raise ProgramError("NO_EFFECT", f"version {number} was not loaded to its end, for {LIMIT_S:g} s")


def _line_since(site: Site, start: int, pattern: str, look: Callable[[], object] = lambda: None) -> str:
    """Returns the server's first line that has it. Raises ProgramError NO_EFFECT if none comes."""

    def found() -> list[str]:
        look()
        return [line for line in site.server.lines[start:] if re.search(pattern, line)]

    wait_until(lambda: bool(found()), f"the server says nothing like {pattern!r}")
    return found()[0].strip()


# --- TLS and tokens --------------------------------------------------------------------------------------------------


def new_certificate(site: Site, _random: Random) -> str:
    """Writes another certificate and its key; new connections get it."""
    with site.of_certificate:
        certificate = site.credentials.renew_certificate()
        wait_until(lambda: _presented(site) == certificate, "the new certificate is not used")
    return ""


def mismatched_key(site: Site, _random: Random) -> str:
    """Writes a key that is not the certificate's: the pair before is kept."""
    path = site.credentials.key
    with site.of_certificate:
        certificate, key, start = _presented(site), path.read_bytes(), len(site.server.lines)
        put(path, site.credentials.mismatched_key())
        try:
            said = _line_since(site, start, f"BAD_TLS.*{KEPT}", look=lambda: _presented(site))
            if _presented(site) not in (certificate, b""):
                raise ProgramError("NO_EFFECT", "another certificate came with the mismatched key")
        finally:
            put(path, key)
        wait_until(lambda: _presented(site) == certificate, "the pair before is not used")
    return said


def new_tokens(site: Site, _random: Random) -> str:
    """Writes another token in the place of one of two: it is taken, and the one before is not."""
    with site.of_tokens:
        before, after = site.credentials.changing_token, site.credentials.renew_tokens()
        wait_until(lambda: _is_known(site, after), "the new token is not taken")
        if _is_known(site, before):
            raise ProgramError("NO_EFFECT", "the withdrawn token is still taken")
    return ""


def broken_tokens(site: Site, random: Random) -> str:
    """Writes a file that holds no digests: those before are kept."""
    path = site.credentials.tokens
    with site.of_tokens:
        whole, start = path.read_bytes(), len(site.server.lines)
        put(path, random.choice([b"", b"nonsense\n", whole[:40]]))
        try:
            said = _line_since(site, start, f"BAD_TOKENS.*{KEPT}")  # the load's calls make the server look
        finally:
            put(path, whole)
        wait_until(lambda: _is_known(site, site.credentials.changing_token), "the tokens before are not taken")
    return said


def _presented(site: Site) -> bytes:
    """Returns the certificate that a new connection gets; empty if none comes about."""
    try:
        with (
            socket.create_connection(site.server.address, TRIED_S) as opened,
            site.credentials.context.wrap_socket(opened, server_hostname=HOST) as encrypted,
        ):
            return encrypted.getpeercert(binary_form=True) or b""
    except OSError:  # ssl's errors among them
        return b""


def _is_known(site: Site, token: str) -> bool:
    """Returns whether the server takes a token. Raises ClassifyError if a call fails for another reason."""
    with Client(site.server.target, tls=site.credentials.authority, token=token) as client:
        try:
            client.model(timeout_s=LIMIT_S / 2)
        except ClassifyError as error:
            if error.word != "BAD_TOKEN":
                raise
            return False
    return True


FAULTS: dict[str, Fault] = {
    "kill -9": kill,
    "kill -9 of decoders": kill_decoders,
    "SIGSTOP": stop_for_a_while,
    "new version": new_version,
    "bad version": bad_version,
    "new certificate": new_certificate,
    "mismatched key": mismatched_key,
    "new tokens": new_tokens,
    "broken tokens": broken_tokens,
    "cancelled calls": hostile.cancelled_calls,
    "malformed messages": hostile.malformed_messages,
    "picture bombs": hostile.picture_bombs,
    "slow readers": hostile.slow_readers,
    "slow senders": hostile.slow_senders,
    "churn": hostile.churn,
    "garbage": hostile.garbage,
    "stalled scrapers": hostile.stalled_scrapers,
}
