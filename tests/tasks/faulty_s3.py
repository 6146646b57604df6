"""A proxy before an S3 server that fails as networks do: answers of 503, connections that end."""

import contextlib
import http.client
import http.server
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@dataclass
class Faults:
    """What happens to the next requests whose path holds a text: ``503`` or ``reset``, as often as is said."""

    url: str = ""
    plans: list = field(default_factory=list)  # [text, what, how often]
    seen: list = field(default_factory=list)  # what happened, and to which path

    def add(self, text, what, often):
        self.plans.append([text, what, often])

    def next(self, path):
        for plan in self.plans:
            if plan[0] in path and plan[2] > 0:
                plan[2] -= 1
                self.seen.append((plan[1], path))
                return plan[1]
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
            if fault == "503":
                self.give(503, {}, SLOW_DOWN)
                return
            server = http.client.HTTPConnection(target, timeout=30)
            server.request(self.command, self.path, body, dict(self.headers))
            response = server.getresponse()
            self.give(response.status, dict(response.getheaders()), response.read())
            server.close()

        def give(self, status, headers, data):
            self.send_response(status)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = answer  # noqa: N815 - as http.server calls them

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
