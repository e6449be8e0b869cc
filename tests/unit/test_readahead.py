"""A file is read in pieces, and what is asked between them may end it."""

from __future__ import annotations

import os

import pytest

from llava_native import readahead
from llava_native.machine import Room
from llava_native.readahead import read_ahead

pytestmark = pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="a system that maps files unread")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def waited(monkeypatch):
    """Read pieces of 300 bytes, none of which is in memory; return the places of those that were read."""
    offsets = []
    monkeypatch.setattr(readahead, "_PIECE", 300)
    monkeypatch.setattr(readahead, "_is_there", lambda _number, _offset: False)
    monkeypatch.setattr(os, "preadv", lambda _number, _pieces, offset: offsets.append(offset))
    return offsets


def test_all_of_it_is_waited_for(file, waited):
    checks = []
    read_ahead(file, lambda: checks.append(len(waited)))
    assert waited == [0, 300, 600, 900]
    assert checks == [0, 1, 2, 3]


def test_what_is_asked_between_pieces_ends_it(file, waited):
    def check():
        if len(waited) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_ahead(file, check)
    assert waited == [0, 300]


def test_what_is_in_memory_is_not_read(file, waited, monkeypatch):
    monkeypatch.setattr(readahead, "_STEP", 100)
    monkeypatch.setattr(readahead, "_is_there", lambda _number, offset: offset not in (0, 700, 999))
    read_ahead(file, bool)
    assert waited == [0, 600, 900]


def test_a_real_file(file):
    read_ahead(file, bool)
    with file.open("rb") as opened:
        assert not readahead._is_there(opened.fileno(), 5000)  # after its end


def test_what_does_not_fit_is_left_alone(file, waited, monkeypatch):
    monkeypatch.setattr(readahead, "host_room", lambda: Room(999, 999, "this machine"))
    read_ahead(file, bool)
    assert waited == []


def test_an_empty_file_and_none(tmp_path):
    (tmp_path / "empty").touch()
    read_ahead(tmp_path / "empty", bool)
    with pytest.raises(FileNotFoundError):
        read_ahead(tmp_path / "none", bool)
