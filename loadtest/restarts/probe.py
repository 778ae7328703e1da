"""Finds out when service is back: asks on new connections, one after the other, until one is answered rightly."""

import time

from loadtest.attack.http2 import DATA, END_STREAM, Connection, frame, message, opening
from loadtest.load.protocols import ServerProtocol

ATTEMPT_S = 1.0  # for one connection
PAUSE_S = 0.002
MESSAGE_PREFIX = 5


def seconds_until_answered(address: tuple[str, int], protocol: ServerProtocol, limit_s: float) -> float:
    """Returns how long it took until an answer came, right or not; `limit_s` if none did."""
    began_s = time.monotonic()
    while (elapsed_s := time.monotonic() - began_s) < limit_s:
        if _is_answered(address, protocol):
            return time.monotonic() - began_s
        time.sleep(PAUSE_S)
    return elapsed_s


def _is_answered(address: tuple[str, int], protocol: ServerProtocol) -> bool:
    try:
        with Connection(address) as connection:
            stream = connection.next_stream()
            request = message(protocol.request([0]))
            connection.send(opening(stream) + frame(DATA, END_STREAM, stream, request))
            connection.wait_for(stream, time.monotonic() + ATTEMPT_S)
            reply = connection.answered[MESSAGE_PREFIX:]
            return bool(reply) and not protocol.check(reply, [0]).fault
    except OSError:
        return False
