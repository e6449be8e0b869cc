"""Image rows in memory, by bytes, and on disk, whole or not at all."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace

import numpy as np
import pytest

from llava_native import ImageEmbedding
from llava_native.engine.embedding_cache import DiskCache, EmbeddingCache, pixels_key, rows_key
from llava_native.images import Pixels

ENCODER = SimpleNamespace(fingerprint="one", n_embd=4)


def rows(value, n=2):
    return ImageEmbedding.from_buffer(np.full((n, 4), value, np.float32), fingerprint="one")


def test_the_least_recently_used_is_dropped():
    cache = EmbeddingCache(limit=96)  # three of 32 bytes
    for key in "abc":
        cache.put(key, rows(ord(key)))
    assert cache.get("a") is not None
    cache.put("d", rows(1))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert (len(cache), cache.nbytes) == (3, 96)
    assert cache.n_tokens("b") == 2  # known for longer than its rows
    assert cache.n_tokens("z") is None
    cache.put("a", rows(1))
    assert cache.nbytes == 96
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)


def test_what_is_larger_than_all_of_it_is_not_held():
    cache = EmbeddingCache(limit=96)
    cache.put("a", rows(1))
    cache.put("b", rows(1, n=7))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    off = EmbeddingCache(limit=0)
    off.put("a", rows(1))
    assert (len(off), off.n_tokens("a")) == (0, 2)


def test_keys_tell_pixels_shapes_and_encoders_apart():
    data = bytes(range(12)) * 2
    other = SimpleNamespace(fingerprint="two")
    keys = [
        pixels_key(Pixels(memoryview(data), 2, 4), ENCODER),
        pixels_key(Pixels(memoryview(data), 4, 2), ENCODER),
        pixels_key(Pixels(memoryview(data[::-1]), 2, 4), ENCODER),
        pixels_key(Pixels(memoryview(data), 2, 4), other),
        rows_key(rows(1)),
        rows_key(rows(2)),
    ]
    assert len(set(keys)) == 6
    assert pixels_key(Pixels(memoryview(bytearray(data)), 2, 4), ENCODER) == keys[0]
    assert rows_key(rows(1)) == keys[4]


def test_on_disk(tmp_path, caplog):
    disk = DiskCache(tmp_path / "a" / "b")
    assert disk.load("k", ENCODER) is None
    disk.save("k", rows(3))
    loaded = disk.load("k", ENCODER)
    np.testing.assert_array_equal(loaded, rows(3))
    assert DiskCache(tmp_path / "a" / "b").load("k", ENCODER) is not None
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["k.emb"]
    assert caplog.records == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b"junk"),
        lambda path: rows(1).save(path) or path.write_bytes(path.read_bytes().replace(b'"one"', b'"two"')),
        lambda path: ImageEmbedding.from_buffer(np.zeros((2, 5), np.float32), fingerprint="one").save(path),
    ],
)
def test_a_spoilt_file_is_removed_and_named(tmp_path, caplog, spoil):
    disk = DiskCache(tmp_path)
    disk.save("k", rows(3))
    spoil(tmp_path / "k.emb")
    with caplog.at_level(logging.WARNING, "llava_native"):
        assert disk.load("k", ENCODER) is None
    assert "k.emb" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoil", [os.mkfifo, os.mkdir])
def test_what_is_no_file_costs_nothing_but_the_cache(tmp_path, caplog, spoil):
    disk = DiskCache(tmp_path)
    spoil(tmp_path / "k.emb")
    with caplog.at_level(logging.WARNING, "llava_native"):
        assert disk.load("k", ENCODER) is None  # and waits for nobody
    assert "k.emb" in caplog.text


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path, caplog):
    disk = DiskCache(tmp_path / "rows")
    (tmp_path / "rows").rmdir()
    with caplog.at_level(logging.WARNING, "llava_native"):
        disk.save("k", rows(3))
    assert "could not be cached" in caplog.text
    assert disk.load("k", ENCODER) is None
