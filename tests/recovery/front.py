"""The door of an object store, as a process that can be killed: it passes bytes on to the store behind it.

python tests/recovery/front.py LISTEN_PORT STORE_PORT
"""

import contextlib
import socket
import sys
import threading


def pass_on(source, target):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def main(port, store):
    with socket.create_server(("127.0.0.1", port)) as door:
        while True:
            client, _ = door.accept()
            behind = socket.create_connection(("127.0.0.1", store))
            for pair in ((client, behind), (behind, client)):
                threading.Thread(target=pass_on, args=pair, daemon=True).start()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
