"""A web server on loopback, for what is fetched: each path has its own answer, also bad ones."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

Answer = Callable[[socket.socket], None]


class Server:
    """Answers each connection by the function of its path; `requests` are the first lines and headers."""

    def __init__(self, certificate: Path | None = None) -> None:
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.answers: dict[str, Answer | bytes] = {}
        self.requests: list[str] = []
        self.stop = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def add(
        self, path: str, body: bytes = b"", *, status: str = "200 OK", **headers: str | int | None
    ) -> str:
        """Answer `path` with a body; headers are written with underscores, None leaves one out."""
        lines = {"Content-Type": "image/png", "Content-Length": len(body), "Connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        self.answers[path] = f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
        return self.url(path)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.enter_context(connection)
            connection.settimeout(10)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            request = b""
            while b"\r\n\r\n" not in request:
                part = connection.recv(4096)
                if not part:
                    return
                request += part
                if request[:1] == b"\x16":  # the beginning of TLS
                    request = b"GET tls \r\n\r\n"
            text = request.decode("latin-1")
            self.requests.append(text)
            path = text.split(" ", 2)[1]
            answer = self.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            if isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(connection)

    def close(self) -> None:
        self.stop.set()
        with contextlib.suppress(OSError):  # closed before
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def serving(certificate: Path | None = None) -> Iterator[Server]:
    """A server that is closed at the end, with all its threads; one that speaks TLS with a certificate."""
    server = Server(certificate)
    try:
        yield server
    finally:
        server.close()
