"""The header-only GGUF reader: it agrees with the gguf package, and bytes of any kind cannot hurt it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import damage
from support.gguf_parts import Parts, RawTensor

from llava_native import gguf
from llava_native._strings import plainly_distinct
from llava_native.errors import LlavaError, ModelFormatError
from llava_native.gguf import read_header
from llava_native.preflight import check_mmproj, check_text_model


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage.good_text(tmp_path_factory.mktemp("good") / "text.gguf")


@pytest.fixture(scope="module")
def mmproj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damage.good_mmproj(tmp_path_factory.mktemp("good") / "mmproj.gguf")


def test_agrees_with_the_gguf_package(text: Path, mmproj: Path) -> None:
    for path in (text, mmproj):
        header, expected = read_header(path), reference.GGUFReader(path)
        for key, value in header.metadata.items():
            ours = value.value.tolist() if value.type == "array" else value.value
            assert ours == expected.fields[key].contents(), key
        assert header.alignment == expected.alignment
        assert header.data_offset == expected.data_offset
        assert header.file_size == path.stat().st_size
        assert [t.name for t in expected.tensors] == list(header.tensors)
        for tensor in expected.tensors:
            ours = header.tensors[tensor.name]
            assert ours.shape == tuple(tensor.shape)
            assert ours.type == tensor.tensor_type.name
            assert header.data_offset + ours.offset == tensor.data_offset
            assert ours.nbytes == tensor.n_bytes


def test_every_scalar_and_array_type(tmp_path: Path) -> None:
    path = tmp_path / "all.gguf"
    writer = reference.GGUFWriter(path, "test")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_float32("f32", 0.5)
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float64("f64", 1e300)
    writer.add_bool("bool", True)
    writer.add_string("str", "grüß Gott")
    writer.add_array("array of i32", [1, -2, 3])
    writer.add_array("array of f32", [0.25, -0.5])
    writer.add_array("array of bool", [True, False])
    writer.add_array("array of str", ["a", "", "ß" * 300])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    for key, value in header.metadata.items():
        assert value.type == ("array" if key.startswith("array") else key if key in header else value.type)
    assert header.get("u8") == 200
    assert header.get("i8") == -100
    assert header.get("u16") == 60000
    assert header.get("i16") == -30000
    assert header.get("u32") == 2**32 - 1
    assert header.get("i32") == -(2**31)
    assert header.get("f32") == 0.5
    assert header.get("u64") == 2**64 - 1
    assert header.get("i64") == -(2**63)
    assert header.get("f64") == 1e300
    assert header.get("bool") is True
    assert header.get("str") == "grüß Gott"
    assert header.get("nothing", "default") == "default"
    assert header.get("array of i32").tolist() == [1, -2, 3]
    assert header.get("array of f32").tolist() == [0.25, -0.5]
    assert header.get("array of bool").tolist() == [True, False]
    assert header.get("array of str").tolist() == ["a", "", "ß" * 300]
    assert header.get("array of str").strings()[2] == ("ß" * 300).encode()
    with pytest.raises(TypeError, match="holds no strings"):
        header.get("array of i32").strings()


def test_tensor_types_are_those_of_ggml() -> None:
    """The package has Q8_1 wrong (it is no weight type): block_q8_1 is two halves and 32 bytes."""
    theirs = {kind.value: (kind.name, *size) for kind, size in reference.GGML_QUANT_SIZES.items()}
    theirs[9] = ("Q8_1", 32, 36)
    for code, entry in theirs.items():
        assert gguf._TENSOR_TYPES[code] == entry


def test_version_2_is_read(text: Path, tmp_path: Path) -> None:
    parts = Parts.read(text)
    parts.version = 2
    path = tmp_path / "v2.gguf"
    path.write_bytes(parts.to_bytes())
    assert read_header(path).version == 2


def test_alignment_is_followed(mmproj: Path, tmp_path: Path) -> None:
    parts = Parts.read(mmproj)
    parts.alignment = 128
    parts.set("general.alignment", 128)
    path = tmp_path / "aligned.gguf"
    path.write_bytes(parts.to_bytes())
    header = read_header(path)
    assert header.alignment == 128
    assert {t.offset % 128 for t in header.tensors.values()} == {0}
    assert check_mmproj(header).n_embd == 64


def test_final_padding_may_be_absent(mmproj: Path, tmp_path: Path) -> None:
    """Some writers leave it out, and llama.cpp does not mind."""
    parts = Parts.read(mmproj)
    parts.tensors["z"] = RawTensor((3,), 0, bytes(12))
    whole = parts.to_bytes()
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(whole[:-20])
    assert read_header(path).tensors["z"].nbytes == 12
    path.write_bytes(whole[:-21])
    with pytest.raises(
        ModelFormatError, match=rf"{len(whole) - 20} bytes expected, {len(whole) - 21} present"
    ):
        read_header(path)


def test_a_string_ends_at_its_first_nul(mmproj: Path, tmp_path: Path) -> None:
    """As it does upstream, where it is a C string."""
    parts = Parts.read(mmproj)
    parts.set("general.name", "before\0after")
    path = tmp_path / "nul.gguf"
    path.write_bytes(parts.to_bytes())
    assert read_header(path).get("general.name") == "before"


def test_os_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing.gguf")
    with pytest.raises((IsADirectoryError, PermissionError)):
        read_header(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ModelFormatError, match="regular file"):
            read_header(path)


def test_repr_is_short(text: Path) -> None:
    header = read_header(text)
    assert len(repr(header)) < 200
    assert repr(header.get("tokenizer.ggml.tokens")) == "GGUFArray(str, length 300)"


def test_large_arrays_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser goes on correctly where one read ended and the next began, wherever that is."""
    random = np.random.default_rng(0)
    tokens = [f"{i}" + "x" * int(n) for i, n in enumerate(random.integers(0, 40, 299))] + ["y" * 5000]
    pairs = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": [0.0] * 300,
             "tokenizer.ggml.token_type": [1] * 300, "tokenizer.ggml.merges": tokens[::-1],
             "tokenizer.ggml.bos_token_id": 17}  # fmt: skip
    path = damage.good_text(tmp_path / "text.gguf", **pairs)
    monkeypatch.setattr(gguf, "_LIKELY", 0)
    for chunk in (1, 7, 64, 1000):
        monkeypatch.setattr(gguf, "_CHUNK", chunk)
        header = read_header(path)
        assert header.get("tokenizer.ggml.tokens").tolist() == tokens
        assert header.get("tokenizer.ggml.merges").tolist() == tokens[::-1]
        assert header.get("tokenizer.ggml.bos_token_id") == 17


def stored(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(string)) + string for string in strings)


@given(strings=st.lists(st.binary(max_size=3), max_size=40))
def test_strings_that_are_plainly_distinct(strings: list[bytes]) -> None:
    data = b"head" + stored(strings)
    plain = all(string and b"\0" not in string for string in strings)
    assert plainly_distinct(data, 4, len(strings)) == (plain and len(set(strings)) == len(strings))
    assert not plainly_distinct(data[:-1], 4, len(strings)) or not strings
    assert not plainly_distinct(data, 4, len(strings) + 1)


def test_strings_that_were_chosen_to_collide_are_not_looked_at_for_long() -> None:
    def place(string: bytes) -> int:
        found = 0xCBF29CE484222325
        for byte in string:
            found = (found ^ byte) * 0x100000001B3 % 2**64
        return (found ^ (found >> 32)) % 256

    strings = [string for string in (b"%d" % i for i in range(40_000)) if place(string) == 7][:100]
    assert len(strings) == 100
    assert not plainly_distinct(stored(strings), 0, 100)
    assert plainly_distinct(stored(strings[:10]), 0, 10)


def test_fingerprint(mmproj: Path, tmp_path: Path) -> None:
    data = mmproj.read_bytes()
    header = read_header(mmproj)
    tag = header.fingerprint()
    assert len(tag) == 32
    assert tag == header.fingerprint() == read_header(mmproj).fingerprint()
    copy = tmp_path / "renamed.gguf"
    for position in (len(data) - 1, header.data_offset, data.index(b"image encoder")):
        changed = bytearray(data)
        changed[position] ^= 1
        copy.write_bytes(changed)
        assert read_header(copy).fingerprint() != tag, position
    copy.write_bytes(data + b"\0")
    assert read_header(copy).fingerprint() != tag
    copy.write_bytes(data)
    assert read_header(copy).fingerprint() == tag, "the name of the file must not matter"


def test_hostile_counts_cost_nothing(text: Path, tmp_path: Path) -> None:
    """Neither time nor memory follows what a header claims."""
    claims = [case for case in damage.CASES if "huge" in case.name or "2**6" in case.name]
    assert len(claims) >= 8
    path = tmp_path / "broken.gguf"
    for case in claims:
        case.write(text, path)
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(ModelFormatError):
            read_header(path)
        elapsed = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert elapsed < 1.0, case.name
        assert peak < 20 << 20, case.name


def test_sparse_file_with_a_huge_header_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q1s", 1, b"x")
    with path.open("wb") as file:
        file.write(head + struct.pack("<IQ", 8, 1 << 33))  # one string of 8 GiB
        file.truncate(1 << 34)
    with pytest.raises(ModelFormatError, match="more than 256 MiB"):
        read_header(path)


def _survives(path: Path) -> None:
    """Read and check a file: a result or a `LlavaError`, soon, and nothing else."""
    started = time.perf_counter()
    for check in (check_text_model, check_mmproj):
        try:
            check(read_header(path))
        except LlavaError as error:
            assert str(path) in str(error)  # noqa: PT017 -- most files pass, some do not
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("kind", ["text", "mmproj"])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bytes(kind: str, text: Path, mmproj: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = {"text": text, "mmproj": mmproj}[kind]
    content = bytearray(good.read_bytes())
    end = read_header(good).data_offset
    spots = st.lists(st.tuples(st.integers(0, end - 1), st.integers(0, 255)), min_size=1, max_size=8)
    for position, value in data.draw(spots):
        content[position] = value
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    _survives(path)


@pytest.mark.parametrize("kind", ["text", "mmproj"])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_replaced_numbers(kind: str, text: Path, mmproj: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Eight bytes become a number that is telling as a count, a length or an offset."""
    good = {"text": text, "mmproj": mmproj}[kind]
    content = bytearray(good.read_bytes())
    end = read_header(good).data_offset
    position = data.draw(st.integers(4, end - 8))
    telling = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, len(content)])
    content[position : position + 8] = struct.pack("<Q", data.draw(telling))
    path = tmp_path / "replaced.gguf"
    path.write_bytes(content)
    _survives(path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=400), n_tensors=st.integers(0, 20), n_kv=st.integers(0, 20))
def test_arbitrary_headers(tail: bytes, n_tensors: int, n_kv: int, tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, n_kv) + tail)
    _survives(path)


@pytest.mark.parametrize("kind", ["text", "mmproj"])
def test_every_length_but_the_whole_is_refused(kind: str, text: Path, mmproj: Path, tmp_path: Path) -> None:
    content = {"text": text, "mmproj": mmproj}[kind].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content)
    sizes = sorted({*np.linspace(0, len(content) - 33, 150, dtype=int).tolist()}, reverse=True)
    for size in sizes:
        os.truncate(path, size)
        with pytest.raises(ModelFormatError):
            read_header(path)


def test_import_pulls_in_nothing_heavy() -> None:
    code = (
        "import llava_native; before = set(sys.modules); import llava_native.gguf, llava_native.preflight;"
        "print(*sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", f"import sys; {code}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "llava_native.gguf" in out
    assert not {"numpy", "gguf", "dataclasses", "hashlib", "pathlib"} & set(out)
