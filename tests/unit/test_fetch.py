"""URLs of images: what comes, and what is refused before it does harm."""

from __future__ import annotations

import io
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from PIL import Image
from support.http_server import serving

from llava_native import fetch
from llava_native.errors import (
    CancelledError,
    DownloadError,
    ImageDecodeError,
    ImageTooLargeError,
    InvalidInputError,
    LlavaError,
)
from llava_native.fetch import load_url


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(file, "PNG")
    return file.getvalue()


def local(url, **options):
    return load_url(url, allow_private=True, **options)


def test_the_bytes_come_as_they_are(server, png):
    assert local(server.add("/a.png", png)) == png
    request = server.requests[0]
    assert request.startswith("GET /a.png HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{server.port}\r\n" in request
    assert "Accept-Encoding: identity" in request


def test_without_a_length_and_in_chunks(server, png):
    assert local(server.add("/open", png, Content_Length=None)) == png
    chunks = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (10, png[:10], len(png) - 10, png[10:])
    assert local(server.add("/chunks", chunks, Content_Length=None, Transfer_Encoding="chunked")) == png


def test_spaces_umlauts_and_queries_are_escaped(server, png):
    server.add("/a%20b/%C3%BC.png?x=1%202", png)
    assert local(server.url("/a b/ü.png?x=1 2")) == png
    assert local(server.url("/a%20b/%C3%BC.png?x=1%202#part")) == png


def test_redirects_are_followed(server, png):
    server.add("/deep/c.png", png)
    server.add("/b", status="302 Found", Location="deep/c.png")
    assert local(server.add("/a", status="301 Moved", Location="/b")) == png


def test_redirects_end(server):
    url = server.add("/a", status="302 Found", Location="/a")
    with pytest.raises(DownloadError, match="more than 5 times"):
        local(url)
    assert len(server.requests) == 6
    with pytest.raises(DownloadError, match="to nowhere"):
        local(server.add("/b", status="302 Found"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.example/x.png", "data:,x", "gopher://a/"])
def test_redirects_stay_on_the_web(server, target):
    with pytest.raises(InvalidInputError, match="not a URL of http"):
        local(server.add("/a", status="302 Found", Location=target))


def test_redirects_do_not_drop_the_encryption(server, monkeypatch):
    monkeypatch.setattr(fetch, "_get", lambda *_: "http://other.example/a.png")
    with pytest.raises(DownloadError, match="not encrypted"):
        load_url("https://a.example/a.png")


# -- addresses


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "255.255.255.255", "224.0.0.1", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1",
    "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    "2001::1", "2001:db8::1",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_told(address):
    assert not fetch._is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_told(address):
    assert fetch._is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1"])
def test_loopback_is_refused_before_anything_is_sent(server, host):
    server.add("/a.png", b"x")
    with pytest.raises(DownloadError, match=r"not a public address|cannot be fetched"):
        load_url(f"http://{host}:{server.port}/a.png")
    assert server.requests == []


def resolver(monkeypatch, *answers):
    """Have host names resolve to these lists of addresses, one after another."""
    asked = []

    def getaddrinfo(host, port, *_, **__):
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_one_private_address_among_several_is_enough(monkeypatch):
    resolver(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(DownloadError, match=r"a\.example is at 10\.0\.0\.1"):
        load_url("http://a.example/a.png")


def test_a_name_that_changes_its_address_changes_nothing(server, png, monkeypatch):
    """DNS rebinding: the connection goes to the address that was checked, and nobody asks again."""
    server.add("/a.png", png)
    asked = resolver(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    wanted = []
    create_connection = socket.create_connection

    def to_the_server(address, timeout):
        wanted.append(address)
        return real(("127.0.0.1", server.port), timeout)

    def real(address, timeout):
        monkeypatch.undo()
        return create_connection(address, timeout)

    monkeypatch.setattr(socket, "create_connection", to_the_server)
    assert load_url("http://a.example/a.png") == png
    assert asked == ["a.example"]
    assert wanted == [("93.184.216.34", 80)]


def test_a_redirect_into_the_private_network_is_refused(server, monkeypatch):
    calls = []

    def get(parts, allow_private, *_):
        calls.append(parts.geturl())
        if len(calls) == 1:
            return server.url("/secret")
        return original(parts, allow_private, *_)

    original = fetch._get
    monkeypatch.setattr(fetch, "_get", get)
    with pytest.raises(DownloadError, match="not a public address"):
        load_url("http://a.example/")
    assert len(calls) == 2
    assert server.requests == []


# -- time and size


def test_an_answer_that_never_comes(server):
    server.answers["/slow"] = lambda _: server.stop.wait(20)
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"took too long: 0\.3 seconds"):
        local(server.url("/slow"), timeout=0.3)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_answer_that_drips(server, head):
    """Every byte comes in time; the whole does not, be it headers or the body."""

    def drip(connection):
        connection.sendall(head)
        while not server.stop.wait(0.05):
            connection.sendall(b"H")

    server.answers["/drip"] = drip
    began = time.monotonic()
    with pytest.raises(DownloadError, match="took too long"):
        local(server.url("/drip"), timeout=0.5)
    assert time.monotonic() - began < 5


def test_a_pause_is_enough(server, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_STALL", 0.2)
    server.answers["/slow"] = lambda _: server.stop.wait(20)
    began = time.monotonic()
    with pytest.raises(DownloadError, match="without a byte"):
        local(server.url("/slow"), timeout=60)
    assert time.monotonic() - began < 5


def test_it_ends_when_nobody_wants_it_any_more(server):
    asked = threading.Event()

    def stall(_):
        asked.set()
        server.stop.wait(20)

    server.answers["/slow"] = stall
    began = time.monotonic()
    with pytest.raises(CancelledError):
        local(server.url("/slow"), is_wanted=lambda: not asked.is_set())
    assert time.monotonic() - began < 5


def test_a_server_that_pauses_for_less_than_the_limit(server, png):
    def pause(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + png[:10])
        time.sleep(0.6)  # two looks at whether it is wanted
        connection.sendall(png[10:])

    server.answers["/pause"] = pause
    assert local(server.url("/pause")) == png


def test_an_endless_answer_ends_at_the_limit(server):
    sent = 0

    def pour(connection):
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        while not server.stop.is_set():
            sent += connection.send(b"\x89PNG" * 4096)

    server.answers["/endless"] = pour
    with pytest.raises(ImageTooLargeError, match="more than the 100000 bytes"):
        local(server.url("/endless"), max_bytes=100_000)
    server.close()
    assert sent < 20_000_000  # what was on its way


def test_a_length_above_the_limit_is_refused_unread(server):
    server.answers["/big"] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    with pytest.raises(ImageTooLargeError, match="more than the 1000 bytes"):
        local(server.url("/big"), max_bytes=1000)
    assert local(server.add("/fits", b"x" * 1000), max_bytes=1000) == b"x" * 1000


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n",
    ],
)
def test_nonsense_of_a_server_is_a_download_error(server, answer):
    server.answers["/odd"] = answer
    with pytest.raises((DownloadError, InvalidInputError)):
        local(server.url("/odd"))


@pytest.mark.parametrize("address", ["fec0::1", "3fff::1", "192.88.99.1"])
def test_addresses_that_are_not_public_after_all(address):
    assert not fetch._is_public(ipaddress.ip_address(address))


def test_a_resolver_that_hangs(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(20) and [])
    try:
        with pytest.raises(DownloadError, match="took too long"):
            load_url("http://a.example/", timeout=0.2)
    finally:
        release.set()


# -- what is no image


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"anything", "text/html; charset=utf-8"),
        (b"\n <!DOCTYPE  HTML><title>Sign in</title>", "image/png"),
        (b"\xef\xbb\xbf<html><body>", "application/octet-stream"),
        (b"<!-- a --><!-- b -->\n<HTML lang=en>", "image/jpeg"),
        (b'<?xml version="1.0"?><html xmlns="x">', None),
        (b"<!-- " * 1000, "text/html"),
    ],
)
def test_a_web_page_is_no_image(server, body, kind):
    with pytest.raises(ImageDecodeError, match="a web page, not an image"):
        local(server.add("/page", body, Content_Type=kind))


def test_what_only_looks_like_a_page_passes(server):
    body = b"<!-- " * 1000 + b"-->" * 1000  # also: is told in no time
    assert local(server.add("/odd", body)) == body


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404 Not Found"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "204"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", "gzip"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "95 bytes are missing|more expected"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nshort", "cannot be fetched"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000, "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
def test_bad_answers_are_errors(server, answer, says):
    server.answers["/bad"] = answer
    with pytest.raises(DownloadError, match=says):
        local(server.url("/bad"))


def test_an_empty_answer(server):
    with pytest.raises(ImageDecodeError, match="is empty"):
        local(server.add("/none"))


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as closing:
        port = closing.getsockname()[1]
    with pytest.raises(DownloadError, match="cannot be fetched"):
        local(f"http://127.0.0.1:{port}/a.png")


def test_https_to_a_server_without_it(server):
    server.answers["tls"] = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(DownloadError, match="cannot be fetched"):
        local(server.url("/a.png").replace("http:", "https:"), timeout=10)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key, and a certificate for "localhost" that nobody else has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    done = subprocess.run(
        [*command.split(), "subjectAltName=DNS:localhost", "-keyout", path, "-out", path.with_suffix(".crt")],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


def test_https_and_its_certificates(certificate, png, monkeypatch):
    with serving(certificate) as server:
        url = server.add("/a.png", png).replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(DownloadError, match="certificate verify failed"):
            local(url)
        assert server.requests == []
        default = ssl.create_default_context
        monkeypatch.setattr(ssl, "create_default_context", lambda: default(cafile=str(certificate)))
        assert local(url) == png
        with pytest.raises(DownloadError, match=r"certificate is not valid for '127\.0\.0\.1'"):
            local(url.replace("localhost", "127.0.0.1"))


@pytest.mark.parametrize(
    "url",
    [
        "", "a.png", "/etc/passwd", "file:///etc/passwd", "ftp://a.example/a.png", "http://", "http:///a.png",
        "http://[::1", "http://a.example:port/", "http://a.example:99999/", "http://user:word@a.example/",
        "http://" + "a" * 300 + ".example/", "http://a..b/",
    ],
)  # fmt: skip
def test_no_url_of_an_image(url):
    with pytest.raises(InvalidInputError):
        load_url(url)


def test_not_a_str():
    with pytest.raises(InvalidInputError, match="bytes"):
        load_url(b"http://a.example/")


def test_errors_are_also_builtins():
    assert issubclass(DownloadError, (LlavaError, OSError))
    assert str(DownloadError("what was wrong")) == "what was wrong"


def test_a_data_url_needs_no_network():
    assert load_url("data:,a%20b") == b"a b"
    with pytest.raises(ImageTooLargeError):
        load_url("data:,a%20b", max_bytes=2)
