"""Servers that tests start on loopback, as programs of their own."""

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time

import requests

from tests.postgres import free_port

STARTING_SECONDS = 120


@contextlib.contextmanager
def serve(app, ready, log, port=None, **environment):
    """An ASGI app (module:name) under uvicorn; gives its address once the path ``ready`` answers."""
    port = port or free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | environment)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + STARTING_SECONDS
            while True:
                with contextlib.suppress(requests.ConnectionError):
                    if requests.get(url + ready, timeout=30).ok:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def scripted(*answers):
    """A server that gives one answer after another: (status, body, headers), or seconds of silence.

    Gives its address and the list of requests it has seen, each with its ``path`` and ``headers``. A body that is no
    text is sent as JSON; "URL" in a text or header stands for the server's own address.
    """
    waiting, seen = list(answers), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self)
            answer = waiting.pop(0) if waiting else (404, {}, {})
            if isinstance(answer, int | float):
                time.sleep(answer)
                return
            status, body, headers = answer
            text = body if isinstance(body, str) else json.dumps(body)
            data = text.replace("URL", url).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value.replace("URL", url))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield url, seen
        server.shutdown()


@contextlib.contextmanager
def hook(status=200):
    """A server that takes webhooks and answers with a status: its address and the JSON that was posted."""
    posted = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")  # Slack's answer, which its block looks for

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook", posted
        server.shutdown()
