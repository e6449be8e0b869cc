"""Saved embeddings: what comes back, who may read it, and files that are refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from llava_native import ImageEmbedding, ImageEncoder
from llava_native.errors import EmbeddingMismatchError, ModelFormatError


@pytest.fixture
def emb(encoder, picture):
    return encoder.encode(picture)


@pytest.fixture
def saved(emb, tmp_path):
    emb.save(tmp_path / "x.emb")
    return tmp_path / "x.emb"


def write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def header(shape=(2, 4), dtype="F32", format_="llava_native.ImageEmbedding", fingerprint="f"):
    return {
        "__metadata__": {"format": format_, "fingerprint": fingerprint},
        "rows": {"dtype": dtype, "shape": shape, "data_offsets": [0, 32]},
    }


def test_rows_and_fingerprint_come_back(emb, encoder, saved):
    loaded = ImageEmbedding.load(saved, encoder=encoder)
    np.testing.assert_array_equal(loaded, emb)
    assert loaded.shape == emb.shape
    assert loaded.fingerprint == emb.fingerprint == encoder.fingerprint
    assert loaded.address != emb.address


def test_loaded_rows_evaluate_like_the_first(ctx, emb, saved):
    ctx.eval(emb)
    expected = np.array(ctx.logits)
    ctx.clear()
    ctx.eval(ImageEmbedding.load(saved))
    np.testing.assert_array_equal(ctx.logits, expected)


def test_the_file_is_safetensors(emb, saved):
    """Read with nothing but json and NumPy, after the safetensors specification."""
    raw = saved.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    assert (8 + length) % 8 == 0
    head = json.loads(raw[8 : 8 + length])
    assert head["rows"]["dtype"] == "F32"
    assert all(isinstance(value, str) for value in head["__metadata__"].values())
    begin, end = head["rows"]["data_offsets"]
    assert len(raw) == 8 + length + end
    array = np.frombuffer(raw, "<f4", offset=8 + length + begin).reshape(head["rows"]["shape"])
    np.testing.assert_array_equal(array, emb)


def test_rows_without_a_fingerprint(encoder, tmp_path):
    ImageEmbedding.from_buffer(np.ones((2, 64), np.float32)).save(tmp_path / "x.emb")
    assert ImageEmbedding.load(tmp_path / "x.emb").fingerprint is None
    with pytest.raises(EmbeddingMismatchError, match="encode the image again"):
        ImageEmbedding.load(tmp_path / "x.emb", encoder=encoder)


def test_another_encoder_is_refused(tiny_pair, saved, emb):
    path = tiny_pair(layout="full").mmproj.path
    with ImageEncoder(path, n_threads=1) as other:
        assert other.fingerprint != emb.fingerprint
        with pytest.raises(EmbeddingMismatchError, match="another encoder"):
            ImageEmbedding.load(saved, encoder=other)


def test_the_fingerprint_tells_weights_apart_not_names(pair, encoder, tmp_path):
    raw = pair.mmproj.path.read_bytes()
    (tmp_path / "same.gguf").write_bytes(raw)
    with ImageEncoder(tmp_path / "same.gguf", n_threads=1) as same:
        assert same.fingerprint == encoder.fingerprint


def test_saving_replaces_and_leaves_nothing_else(emb, saved):
    emb.save(str(saved))
    assert [path.name for path in saved.parent.iterdir()] == ["x.emb"]
    with pytest.raises(FileNotFoundError):
        emb.save(saved.parent / "missing" / "x.emb")
    with pytest.raises(OSError, match=r"directory|not empty|exist"):
        emb.save(saved.parent)
    assert [path.name for path in saved.parent.iterdir()] == ["x.emb"]


def test_saving_into_the_current_folder(emb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    emb.save("here.emb")
    np.testing.assert_array_equal(ImageEmbedding.load("here.emb"), emb)


def test_truncated_files(saved, tmp_path):
    raw = saved.read_bytes()
    for size in (0, 7, 8, 20, 100, len(raw) - 64, len(raw) - 1):
        (tmp_path / "cut").write_bytes(raw[:size])
        with pytest.raises(ModelFormatError, match="cut"):
            ImageEmbedding.load(tmp_path / "cut")
    (tmp_path / "long").write_bytes(raw + b"\0")
    with pytest.raises(ModelFormatError):
        ImageEmbedding.load(tmp_path / "long")


@pytest.mark.parametrize(
    "bad",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"1", b"null", b"[" * 100_000, {}, {"rows": {}},
        header() | {"rows": "F32"}, header() | {"__metadata__": "x"}, header() | {"__metadata__": []},
        header(shape=[8]), header(shape=[2, 2, 2]), header(shape=[-2, -4]), header(shape=[0, 0]),
        header(shape=[2.0, 4.0]), header(shape=[True, 8]), header(shape=["2", 4]),
        header(shape=[2**40, 2**40]),
        header(dtype="F16"), header(format_="pt"), header(fingerprint=7), header(fingerprint=["f"]),
    ],
    ids=lambda bad: repr(bad)[:60],
)  # fmt: skip
def test_damaged_headers(tmp_path, bad):
    with pytest.raises(ModelFormatError, match="not a saved embedding"):
        ImageEmbedding.load(write(tmp_path / "x.emb", bad, bytes(32)))


def test_a_sound_file_from_elsewhere(tmp_path):
    emb = ImageEmbedding.load(write(tmp_path / "x.emb", header(), np.arange(8, dtype="<f4").tobytes()))
    np.testing.assert_array_equal(emb, np.arange(8).reshape(2, 4))


def test_a_header_longer_than_any(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**63) + bytes(100))
    with pytest.raises(ModelFormatError):
        ImageEmbedding.load(tmp_path / "x")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ImageEmbedding.load(tmp_path / "missing.emb")
