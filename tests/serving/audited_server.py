"""The server as it is, with an audit hook that says `EXECUTES` when something could run code from what was given.

python -m tests.serving.audited_server [the server's settings]

PEP 578 names the events. Libraries make classes of text when they are imported, so that is heard only once it serves.
"""

import runpy
import sys
from pathlib import Path

ALWAYS = {"pickle.find_class", "os.system", "os.exec", "os.spawn", "pty.spawn", "webbrowser.open"}


def listen(ready_file: str) -> None:
    """Reports on stderr from now on; source code that is no file's from when `ready_file` is there."""

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        is_code = event == "compile" and str(arguments[1]).startswith("<") and Path(ready_file).exists()
        if event in ALWAYS or is_code:
            print(f"EXECUTES: {event} {arguments!r:.200}", file=sys.stderr, flush=True)

    sys.addaudithook(hear)


if __name__ == "__main__":
    listen(sys.argv[sys.argv.index("--ready-file") + 1])
    runpy.run_module("serving", run_name="__main__", alter_sys=True)
