"""A server and its client in a network of their own, which has the loopback alone: `unshare --net`.

python -m tests.serving.cut_off CASE FRONT_END [--host HOST]

What is cut off is CASE: `names` (there is no name server anyway), `ipv6` or `ipv4`. Prints the server's output and the
labels that each address gave.
"""

import json
import subprocess
import sys
from pathlib import Path

from atelier.client import ClassifyError, Client
from loadtest.server_process import server_process
from tests.serving.fake_backend import image


def cut_off(case: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if case == "ipv6":
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    if case == "ipv4":
        subprocess.run(["ip", "address", "delete", "127.0.0.1/8", "dev", "lo"], check=True)


def labels_at(target: str) -> list[int] | str:
    try:
        with Client(target) as client:
            labels: list[int] = client.classify(image(7), timeout_s=1).labels.tolist()
            return labels
    except ClassifyError as error:
        return str(error).split(": ")[1]


def main(case: str, front_end: str, *arguments: str) -> None:
    cut_off(case)
    settings = ("--port", "0", "--metrics-port", "0", "--playground-port", "0", "--front-end", front_end, *arguments)
    with server_process("tests.serving.breaking_server", *settings, ready_timeout_s=20) as server:
        reached = {host: labels_at(f"{host}:{server.port}") for host in ("127.0.0.1", "[::1]")}
        print(json.dumps({"output": server.output, "reached": reached, "exit": server.stop()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
