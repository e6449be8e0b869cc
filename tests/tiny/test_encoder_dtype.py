"""F16 weights kept as BF16: the rows agree, the file stays as it was, and it can be switched off."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from support.reference import row_cosines
from support.tiny_models import write_mmproj

from llava_native import CancelToken, ImageEncoder, devices
from llava_native.errors import CancelledError, InvalidInputError

LAYOUTS = ["legacy", "full", "modern"]


def encode(path, picture, **options):
    with ImageEncoder(path, n_threads=1, use_gpu=False, **options) as encoder:
        return np.array(encoder.encode(picture)), encoder.dtype, encoder.fingerprint


def cpu_has_bf16():
    return any(d["type"] == "cpu" and d["features"].get("AVX512_BF16") == "1" for d in devices())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_rows_agree_with_f16_ones(tmp_path, picture, layout):
    path = write_mmproj(tmp_path / "m.gguf", layout=layout, dtype="f16", n_embd=128, n_ff=256).path
    f16, f16_dtype, f16_fingerprint = encode(path, picture, dtype="f16")
    bf16, bf16_dtype, bf16_fingerprint = encode(path, picture, dtype="bf16")
    assert (f16_dtype, bf16_dtype) == ("f16", "bf16")
    assert row_cosines(f16, bf16).min() >= 0.9999
    assert np.abs(f16 - bf16).max() > 0, "the weights were not converted"
    assert f16_fingerprint != bf16_fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_auto_is_bf16_where_the_cpu_multiplies_it(tiny_pair, picture, layout):
    path = tiny_pair(layout=layout, dtype="f16").mmproj.path
    rows, dtype, fingerprint = encode(path, picture)
    expected = "bf16" if cpu_has_bf16() else "f16"
    assert dtype == expected
    same, _, same_fingerprint = encode(path, picture, dtype=expected)
    np.testing.assert_array_equal(rows, same)
    assert fingerprint == same_fingerprint


@pytest.mark.parametrize("dtype", ["auto", "f16", "bf16"])
def test_the_file_is_not_touched(tiny_pair, picture, dtype):
    path = tiny_pair(dtype="f16").mmproj.path
    before = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest(), sorted(path.parent.iterdir())
    encode(path, picture, dtype=dtype)
    after = path.stat(), hashlib.sha256(path.read_bytes()).hexdigest(), sorted(path.parent.iterdir())
    assert after[0].st_mtime_ns == before[0].st_mtime_ns
    assert after[0].st_ino == before[0].st_ino
    assert after[1:] == before[1:]


def test_f32_files_stay_as_they_are(tiny_pair, picture):
    path = tiny_pair(layout="full", dtype="f32").mmproj.path
    rows, dtype, _ = encode(path, picture)
    assert dtype == "f32"
    for asked in ("f16", "bf16"):
        same, dtype, _ = encode(path, picture, dtype=asked)
        assert dtype == "f32"
        np.testing.assert_array_equal(same, rows)


@pytest.mark.parametrize("dtype", ["f32", "q8_0", "", "BF16"])
def test_unknown_types(pair, dtype):
    with pytest.raises(InvalidInputError, match="dtype must be"):
        ImageEncoder(pair.mmproj.path, dtype=dtype)


def test_an_encoder_on_the_cpu_by_name_is_one_of_the_cpu(pair, picture):
    """It can be cancelled, and has the type that the CPU multiplies best."""
    with ImageEncoder(pair.mmproj.path, device="cpu") as named, ImageEncoder(pair.mmproj.path) as default:
        assert named.dtype == default.dtype
        token = CancelToken()
        token.cancel()
        with pytest.raises(CancelledError):
            named.encode_pixels(named.prepare(picture), cancel=token)
    with pytest.raises(InvalidInputError, match=r"no device 'TPU7'.*has: .*CPU"):
        ImageEncoder(pair.mmproj.path, device="TPU7")
