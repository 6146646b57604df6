"""A proxy before an S3 server that fails as networks do: answers of 500 and 503, slow ones, ones that are cut short,
connections that end.
"""

import contextlib
import http.client
import http.server
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = ("500", "503", "reset", "cut", "slow")
SLOW_SECONDS = 1.0
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Faults:
    """What happens to the next requests whose path holds a text: one of KINDS, as often as is said.

    Each ``every``-th request fails, too, by one of the KINDS after the other.
    """

    url: str = ""
    plans: list = field(default_factory=list)  # [text, what, how often]
    seen: list = field(default_factory=list)  # what happened, and to which path
    every: int = 0
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)  # each request has a thread of its own

    def add(self, text, what, often):
        self.plans.append([text, what, often])

    def next(self, path):
        with self.lock:
            for plan in self.plans:
                if plan[0] in path and plan[2] > 0:
                    plan[2] -= 1
                    self.seen.append((plan[1], path))
                    return plan[1]
            self.asked += 1
            if self.every and self.asked % self.every == 0:
                self.seen.append((KINDS[self.asked // self.every % len(KINDS)], path))
                return self.seen[-1][0]
            return None


@contextlib.contextmanager
def faulty(endpoint):
    """A proxy before the server at ``endpoint``; gives its Faults, whose ``url`` clients ask."""
    faults = Faults()
    target = urlsplit(endpoint).netloc

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = faults.next(self.path)
            if fault == "reset":
                self.close_connection = True
                self.connection.close()
                return
            if fault in ("500", "503"):
                self.give(int(fault), {}, SLOW_DOWN if fault == "503" else INTERNAL)
                return
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            server = http.client.HTTPConnection(target, timeout=30)
            server.request(self.command, self.path, body, dict(self.headers))
            response = server.getresponse()
            self.give(response.status, dict(response.getheaders()), response.read(), fault == "cut")
            server.close()

        def give(self, status, headers, data, cut=False):
            self.send_response(status)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True
                self.connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - as http.server calls them

        def log_message(self, *_):
            pass

        def handle(self):
            with contextlib.suppress(OSError, ValueError):
                super().handle()

        def finish(self):
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None
        faults.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield faults
        server.shutdown()
