"""A peer as small as can be: python http_peer.py right|wrong MODEL PORT. Answers any POST of 784 bytes with logits."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np

from loadtest.bench.peers.open_model import open_model


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        images = np.frombuffer(self.rfile.read(int(self.headers["content-length"])), np.uint8)
        logits = logits_of(images.reshape(-1, 1, 28, 28))
        body = (logits if sys.argv[1] == "right" else logits[:, ::-1]).tobytes()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    logits_of = open_model(sys.argv[2])
    HTTPServer(("127.0.0.1", int(sys.argv[3])), Handler).serve_forever()
