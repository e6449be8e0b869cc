"""What goes between the processes: frames, shared files, exceptions."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from llava_native import errors
from llava_native.isolation.faults import from_data, to_data
from llava_native.isolation.wire import Channel, Frame, Kind, WireError, close_all


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    a, b = Channel(ours), Channel(theirs)
    yield a, b, ours
    a.close()
    b.close()


def test_frames_arrive_as_they_were_sent(ends, tmp_path):
    a, b, _ = ends
    path = tmp_path / "x"
    path.write_bytes(b"shared")
    a.send(Kind.TOKEN, 7, {"a": [1, 2.5, None, "ü"]}, b"\0\1")
    a.send(Kind.CLOSE)
    a.send(Kind.SUBMIT, 9, [], file=path.open("rb"))
    assert b.receive() == Frame(Kind.TOKEN, 7, {"a": [1, 2.5, None, "ü"]}, b"\0\1", [])
    assert b.receive() == Frame(Kind.CLOSE, 0, None, b"", [])
    frame = b.receive()
    assert os.pread(frame.fds[0], 9, 0) == b"shared"
    close_all(frame.fds)
    a.shutdown()
    assert b.receive() is None


def test_a_frame_of_many_megabytes(ends):
    import threading

    a, b, _ = ends
    blob = os.urandom(5 << 20)
    thread = threading.Thread(target=a.send, args=(Kind.REPLY, 1, None, blob))
    thread.start()
    assert b.receive().blob == blob
    thread.join()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<BBIII", 1, 0, 0, 2**31, 0),
        struct.pack("<BBIII", 1, 200, 0, 0, 0),
        struct.pack("<BBIII", 1, 1, 0, 0, 0),  # a descriptor that was not sent
        struct.pack("<BBIII", 1, 0, 0, 3, 0) + b"{[}",
        struct.pack("<BBIII", 1, 0, 0, 100000, 0) + b"[" * 100000,
        struct.pack("<BBIII", 1, 0, 0, 2, 0) + b"\xff\xfe",
    ],
)
def test_what_is_no_frame(ends, data):
    _, b, sock = ends
    sock.sendall(data)
    with pytest.raises(WireError):
        b.receive()


def test_nobody_hears(ends):
    a, b, _ = ends
    b.shutdown()
    a.send(Kind.CLOSE)  # no exception
    assert a.receive() is None


@pytest.mark.parametrize("name", errors.__all__)
def test_our_exceptions_come_back_as_they_were(name):
    kind = getattr(errors, name)
    if name == "PromptTooLongError":
        error = kind("too long", n_tokens=9, n_ctx=8)
    else:
        error = kind("what", call="llama_decode", code=-3, log=("one", "two"))
    back = from_data(to_data(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_builtin_exceptions_and_unknown_ones():
    missing = from_data(to_data(FileNotFoundError(2, "No such file", "/x")))
    assert (type(missing), missing.filename, missing.errno) == (FileNotFoundError, "/x", 2)
    assert type(from_data(to_data(TypeError("t")))) is TypeError
    strange = from_data({"type": "SystemExit", "message": "0"})  # no class that ends anything
    assert type(strange) is errors.LlavaError
    assert "SystemExit" in str(strange)
