"""Servers on loopback that accept and say nothing of use, as a wrong address leads to."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serve(first: bytes = b"") -> Iterator[str]:
    """Yields "127.0.0.1:port" of a server that sends `first`, then nothing, and keeps every connection open."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                kept.append(connection)
                connection.sendall(first)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)
            for connection in kept:
                connection.close()
