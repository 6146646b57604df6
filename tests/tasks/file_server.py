"""A server on loopback that gives one file, whole, in part, or not as it should."""

import contextlib
import http.server
import re
import threading
import time
from dataclasses import dataclass, field

SILENCE_SECONDS = 60.0  # far longer than those who ask wait


@dataclass
class Served:
    """The file, and what the server does to the next requests, one plan each; after the last it behaves.

    A plan is a status with headers, ``cut N`` (the connection ends after N bytes), ``stall N`` (nothing more comes
    after N bytes) or ``silent``.
    """

    data: bytes
    plans: list = field(default_factory=list)
    ranges: bool = True
    url: str = ""
    requests: list = field(default_factory=list)  # the Range header of each


@contextlib.contextmanager
def serve_file(data, *plans, ranges=True):
    """Serve ``data`` under ``/download``, which leads to ``/file``; gives the Served object."""
    served = Served(data, list(plans), ranges)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/download":
                self.send_response(302)
                self.send_header("Location", "/file")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            served.requests.append(self.headers.get("Range"))
            plan = served.plans.pop(0) if served.plans else None
            if isinstance(plan, tuple):
                self.answer(plan[0], b"", plan[1])
            elif plan == "silent":
                time.sleep(SILENCE_SECONDS)
            else:
                self.give(int(plan.split()[1]) if plan else None)
                if plan and plan.startswith("stall"):
                    self.wfile.flush()
                    time.sleep(SILENCE_SECONDS)

        def give(self, most):
            asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked and served.ranges else 0
            if asked and served.ranges and start >= len(served.data):
                self.answer(416, b"", {"Content-Range": f"bytes */{len(served.data)}"})
                return
            part = served.data[start:]
            headers = {"Content-Range": f"bytes {start}-{len(served.data) - 1}/{len(served.data)}"} if start else {}
            self.answer(206 if start else 200, part if most is None else part[:most], headers, len(part))

        def answer(self, status, body, headers, length=None):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        served.url = f"http://127.0.0.1:{server.server_port}/download"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield served
        server.shutdown()
