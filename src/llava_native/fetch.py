"""Fetch an image by its URL: bounded in time, size and redirects, and kept out of private networks.

The host is resolved once, every address is checked, and the connection goes to a checked address, so that
a second answer of the name server changes nothing. Proxies of the environment are not used: what is behind
one cannot be checked.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar, cast
from urllib.parse import SplitResult, quote, urljoin

from llava_native.data_url import MAX_BYTES, decode_data_url
from llava_native.errors import (
    CancelledError,
    DownloadError,
    ImageDecodeError,
    ImageTooLargeError,
    InvalidInputError,
)
from llava_native.urls import PORTS, is_data_url, shown, split_url

__all__ = ["MAX_BYTES", "TIMEOUT", "load_url"]

TIMEOUT: Final = 30.0
MAX_REDIRECTS: Final = 5
MAX_STALL: Final = 10.0  # seconds without a byte
_LOOK_S: Final = 0.25  # how often it is asked whether anybody still wants it
_CHUNK: Final = 1 << 16
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC: Final = tuple(  # that Python 3.11 takes for public: documentation, and the relays of 6to4
    map(ipaddress.ip_network, ("3fff::/20", "192.88.99.0/24"))
)
_PAGE: Final = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_T = TypeVar("_T")


def load_url(
    url: str,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
    is_wanted: Callable[[], bool] = lambda: True,
) -> bytes:
    """Return the bytes behind an ``http:``, ``https:`` or ``data:`` URL.

    Parameters
    ----------
    url : str
        A ``data:`` URL is decoded, without any network.
    allow_private : bool, default False
        Whether the host may be on a private, loopback or link-local address.
    max_bytes : int
        Refuse a longer answer. Default 32 MiB.
    timeout : float
        Seconds for everything, redirects included. Default 30; without a byte for 10 seconds it ends too.
    is_wanted : callable
        False ends it, where it waits for the server's bytes within a quarter of a second.

    Returns
    -------
    bytes
        Not empty, and no web page; whether it is an image shows when it is decoded.

    Raises
    ------
    InvalidInputError
        It is not such a URL.
    DownloadError
        The address is refused, the connection failed, the server said no, or it took too long.
    ImageTooLargeError
        More than `max_bytes`.
    ImageDecodeError
        Nothing, a web page, or a damaged ``data:`` URL.
    CancelledError
        It is not wanted any more.

    Notes
    -----
    Threads: any number at once. A name server that does not answer leaves a thread behind until the
    system's resolver gives up.
    """
    if not isinstance(url, str):
        raise InvalidInputError(f"a URL must be a str, not {type(url).__name__}")
    if is_data_url(url):
        return decode_data_url(url, max_bytes)
    limit = _Limit(timeout, is_wanted)
    here = url.strip()
    for _ in range(MAX_REDIRECTS + 1):
        parts = split_url(here)
        with _reported(here, timeout):
            answer = _get(parts, allow_private, max_bytes, limit)
            if isinstance(answer, bytes):
                return answer
            before, here = here, urljoin(here, answer)
            split_url(here)
        if before.lower().startswith("https:") and not here.lower().startswith("https:"):
            raise DownloadError(f"{shown(before)} redirects to {shown(here)}, which is not encrypted")
    raise DownloadError(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")


def _get(parts: SplitResult, allow_private: bool, max_bytes: int, limit: _Limit) -> bytes | str:
    """Return what one address answers: its data, or where it redirects to."""
    host, port = cast(str, parts.hostname), parts.port or PORTS[parts.scheme]
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    headers = {"User-Agent": "llava-native", "Accept": "image/*, */*;q=0.1", "Connection": "close"}
    connection = http.client.HTTPConnection(host, port)
    with _connect(host, port, parts.scheme == "https", allow_private, limit) as sock:
        connection.sock = cast(socket.socket, _Timed(sock, limit))
        connection.request("GET", target, headers=headers)  # asks for no content encoding
        with connection.getresponse() as response:
            if response.status not in _REDIRECTS:
                return _body(response, parts.geturl(), max_bytes)
            location = response.headers.get("Location")
            if not location:
                raise DownloadError(f"{shown(parts.geturl())} redirects to nowhere")
            return location


def _body(response: http.client.HTTPResponse, url: str, max_bytes: int) -> bytes:
    if response.status != 200:
        raise DownloadError(f"{shown(url)}: the server says {response.status} {response.reason}".rstrip())
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise DownloadError(f"{shown(url)}: the server sends {encoding} data, which was not asked for")
    too_large = f"{shown(url)} has more than the {max_bytes} bytes that are allowed"
    if response.length is not None and response.length > max_bytes:
        raise ImageTooLargeError(too_large)
    data = bytearray()
    while chunk := response.read(min(_CHUNK, max_bytes + 1 - len(data))):
        data += chunk
        if len(data) > max_bytes:
            raise ImageTooLargeError(too_large)
    if response.length:  # what Content-Length promised and did not come
        raise DownloadError(f"{shown(url)} was cut short: {response.length} bytes are missing")
    kind = response.headers.get_content_type() if "Content-Type" in response.headers else ""
    if kind in ("text/html", "application/xhtml+xml") or _is_page(data):
        raise ImageDecodeError(f"{shown(url)} is a web page, not an image: use the image's own address")
    if not data:
        raise ImageDecodeError(f"{shown(url)} is empty")
    return bytes(data)


def _is_page(data: bytes | bytearray) -> bool:
    """Tell whether data is HTML, whatever its server calls it."""
    start = bytes(data[:4096]).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    while start.startswith((b"<!--", b"<?xml")):
        start = start.partition(b"-->" if start.startswith(b"<!--") else b"?>")[2].lstrip()
    return b" ".join(start[:64].split()).startswith(_PAGE)


# -- connections --------------------------------------------------------------------------------


def _connect(host: str, port: int, encrypted: bool, allow_private: bool, limit: _Limit) -> socket.socket:
    addresses = _resolve(host, port, limit)
    for address in addresses:
        if not allow_private and not _is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise DownloadError(
                f"{host} is at {address}, which is not a public address; others are not fetched from"
            )
    failure: OSError | None = None
    for address in addresses:
        try:
            sock = socket.create_connection((address, port), limit.left())
        except OSError as exc:
            failure = exc
            continue
        try:
            sock.settimeout(limit.left())
            return ssl.create_default_context().wrap_socket(sock, server_hostname=host) if encrypted else sock
        except BaseException:
            sock.close()
            raise
    raise failure or OSError("the host has no address")


def _resolve(host: str, port: int, limit: _Limit) -> list[str]:
    """Return the addresses of a host; the system's resolver knows no time-out, so a thread asks it."""
    answers: queue.SimpleQueue[list[str] | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put(list(dict.fromkeys(str(address[0]) for *_, address in found)))
        except BaseException as exc:  # raised again by the one who waits
            answers.put(exc)

    threading.Thread(target=ask, name="llava_native-resolve", daemon=True).start()
    try:
        answer = limit.wait(lambda seconds: answers.get(timeout=seconds))
    except queue.Empty:
        raise TimeoutError("the name server does not answer") from None
    if isinstance(answer, UnicodeError):
        raise InvalidInputError(f"{host!r} is not a valid host name") from answer
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _is_public(address: _Address) -> bool:
    """Tell whether an address, or the one that it carries inside, is on the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return _is_public(carried)
        if address.is_site_local:
            return False
    if any(address.version == net.version and address in net for net in _NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Limit:
    """How long everything may take, and whether anybody still wants it."""

    def __init__(self, timeout: float, is_wanted: Callable[[], bool]) -> None:
        self._deadline = time.monotonic() + timeout
        self._is_wanted = is_wanted

    def left(self) -> float:
        """Return how long the next step may wait; raises where there shall be none."""
        if not self._is_wanted():
            raise CancelledError("nobody waits for this image any more")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("out of time")
        return min(left, MAX_STALL)

    def wait(self, step: Callable[[float], _T]) -> _T:
        """Return what ``step(seconds)`` does, which may be tried again when the seconds are over."""
        end = time.monotonic() + self.left()
        while True:
            try:
                return step(max(0.001, min(end - time.monotonic(), _LOOK_S)))
            except (TimeoutError, queue.Empty):
                self.left()
                if time.monotonic() >= end:
                    raise


class _Timed:
    """A socket as http.client wants one, whose every step waits no longer than is left.

    Its ``close()`` does nothing: http.client closes a connection that is not kept before the body is read.
    """

    def __init__(self, sock: socket.socket, limit: _Limit) -> None:
        self._sock = sock
        self._limit = limit

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(self._limit.left())
        self._sock.sendall(data)

    def recv_into(self, buffer: Any) -> int:
        def step(seconds: float) -> int:
            self._sock.settimeout(seconds)
            return self._sock.recv_into(buffer)

        return self._limit.wait(step)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        pass


class _Reader(io.RawIOBase):
    """The file that a response is read from."""

    def __init__(self, source: _Timed) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._source.recv_into(buffer)


@contextlib.contextmanager
def _reported(url: str, timeout: float) -> Iterator[None]:
    """Turn what sockets, TLS and http.client raise into DownloadError."""
    try:
        yield
    except (DownloadError, InvalidInputError, ImageDecodeError):
        raise
    except TimeoutError as exc:
        raise DownloadError(
            f"{shown(url)} took too long: {timeout:g} seconds are allowed, {MAX_STALL:g} without a byte"
        ) from exc
    except http.client.InvalidURL as exc:
        raise InvalidInputError(f"{shown(url)} is not a valid URL: {exc}") from exc
    except UnicodeEncodeError as exc:
        raise InvalidInputError(f"{shown(url)!a} is not a valid URL: {exc}") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:  # whatever the server has written
        raise DownloadError(f"{shown(url)} cannot be fetched: {exc or type(exc).__name__}") from exc
