"""Writes the server's log: lines for people, or one JSON object a line for collectors."""

import json
import logging
import time
from typing import Any

from atelier.program import NonBlockingHandler, say_in

FORMATS = ("text", "json")
FIELDS = "fields"  # of a log record: what JSON shows beside the message


def set_up_logging(log_format: str, *, is_debugging: bool) -> None:
    """Sends log records and `say`'s lines out in one format; what nobody reads is dropped."""
    level = logging.INFO if is_debugging else logging.WARNING
    handler = NonBlockingHandler()
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if log_format == "json":
        handler.setFormatter(JsonFormatter())
        say_in(json_line)
    if not is_debugging:  # what strangers send must not fill the log
        for name in ("grpc", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns time (ISO 8601, UTC), level, logger, message, fields, and the traceback if there is one."""
        fields = {"logger": record.name, **getattr(record, FIELDS, {})}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json_line(record.levelname.lower(), record.getMessage(), at_s=record.created, **fields)


def json_line(level: str, message: str, *, at_s: float | None = None, **fields: Any) -> str:
    """Returns one line of JSON; its time is now, unless `at_s`, in Unix time, is given."""
    now_s = time.time() if at_s is None else at_s
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1e3):03d}Z"
    return json.dumps({"time": at, "level": level, "message": message, **fields})
