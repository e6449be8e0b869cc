"""Addresses: embeddings and logits are shared, not copied, and their memory outlives whoever made it."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import pytest

from llava_native import Context, ImageEmbedding, ImageEncoder, Model
from llava_native.errors import ClosedError, EmbeddingMismatchError, InvalidInputError

has_dlpack_1 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy knows the read-only flag from 2.1 on"
)


def address(array):
    return array.__array_interface__["data"][0]


def rows(n=5, width=64, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


@pytest.fixture
def emb(encoder, picture):
    return encoder.encode(picture)


# -- out ----------------------------------------------------------------------------------------------


def test_asarray_shares(emb):
    array = np.asarray(emb)
    assert address(array) == emb.address
    assert array.dtype == np.float32
    assert array.shape == emb.shape == (4, 64) == (emb.n_tokens, emb.n_embd)
    assert len(emb) == 4
    assert array.nbytes == emb.nbytes
    assert array.flags.c_contiguous
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_slices_share(emb):
    part = emb[1:3]
    assert part.shape == (2, 64)
    assert part.address == emb.address + 64 * 4
    assert part.fingerprint == emb.fingerprint
    assert part[1:].address == emb[2:3].address == emb[-2:-1].address
    np.testing.assert_array_equal(part, np.asarray(emb)[1:3])
    expected = np.array(emb)[3]
    last = emb[3:]
    del emb, part
    gc.collect()
    np.testing.assert_array_equal(np.asarray(last)[0], expected)


def test_slices_of_a_buffer_that_may_change_may_change():
    array = rows()
    part = ImageEmbedding.from_buffer(array)[2:4]
    assert part._is_writable()
    array[2] = 7
    assert np.asarray(part)[0, 0] == 7
    array.flags.writeable = False
    assert not ImageEmbedding.from_buffer(array)[2:4]._is_writable()


@pytest.mark.parametrize(
    "wrong", [slice(2, 2), slice(3, 1), slice(9, 12), slice(0, 4, 2), slice(None, None, -1)]
)
def test_slices_that_take_nothing_or_not_in_a_row(emb, wrong):
    with pytest.raises(InvalidInputError, match="takes no rows in a row"):
        emb[wrong]


def test_rows_are_taken_by_slices(emb):
    for wrong in (0, "a", (0, 1), None):
        with pytest.raises(TypeError, match="by slices"):
            emb[wrong]


def test_memoryview_shares(emb):
    with memoryview(emb) as view:
        assert (view.format, view.shape, view.strides, view.readonly) == ("f", (4, 64), (256, 4), True)
        assert address(np.asarray(view)) == emb.address
        assert view[3, 63] == np.asarray(emb)[3, 63]
    with memoryview(emb).cast("B") as flat:
        assert bytes(flat) == np.asarray(emb).tobytes()


@has_dlpack_1
def test_dlpack_shares(emb):
    array = np.from_dlpack(emb)
    assert address(array) == emb.address
    assert array.shape == emb.shape
    assert array.strides == (256, 4)
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, emb)


def test_a_writable_buffer_is_refused(emb):
    with pytest.raises((BufferError, TypeError)):
        ctypes.c_char.from_buffer(emb)
    with pytest.raises(TypeError, match="not writable"):
        (ctypes.c_float * 4).from_buffer(memoryview(emb))


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"max_version": None}, {"max_version": (0, 8)}, {"max_version": (1, 0), "copy": True},
        {"max_version": (1, 0), "stream": 1}, {"max_version": (1, 0), "dl_device": (2, 0)},
    ],
    ids=str,
)  # fmt: skip
def test_dlpack_refuses_what_it_cannot_give(emb, asked):
    with pytest.raises(BufferError):
        emb.__dlpack__(**asked)
    assert emb.exports == 0


def test_exports_are_counted(emb):
    assert emb.exports == 0
    first, second = memoryview(emb), memoryview(emb)
    assert emb.exports == 2
    first.release()
    assert emb.exports == 1
    second.release()
    array = np.asarray(emb)
    assert emb.exports == 1
    part = array[1:2, ::3]
    del array
    assert emb.exports == 1
    del part
    assert emb.exports == 0


@has_dlpack_1
def test_dlpack_exports_are_counted(emb):
    tensor = np.from_dlpack(emb)
    assert emb.exports == 1
    del tensor
    assert emb.exports == 0


def test_a_capsule_that_nobody_consumes_is_freed(emb):
    assert emb.__dlpack_device__() == (1, 0)
    capsule = emb.__dlpack__(max_version=(1, 0))
    assert emb.exports == 1
    del capsule
    assert emb.exports == 0


# -- in -----------------------------------------------------------------------------------------------


def test_from_buffer_borrows():
    array = rows()
    emb = ImageEmbedding.from_buffer(array, fingerprint="mine")
    assert emb.address == address(array)
    assert emb.fingerprint == "mine"
    assert emb.shape == array.shape
    array[2, 3] = 42.0
    assert np.asarray(emb)[2, 3] == 42.0
    assert not np.asarray(emb).flags.writeable


def test_from_buffer_takes_other_buffers():
    raw = bytearray(rows().tobytes())
    emb = ImageEmbedding.from_buffer(memoryview(raw).cast("f", (5, 64)))
    np.testing.assert_array_equal(emb, rows())
    with pytest.raises(BufferError):
        raw.append(0)  # locked while it is borrowed
    del emb
    raw.append(0)
    again = ImageEmbedding.from_buffer(ImageEmbedding.from_buffer(rows()))
    np.testing.assert_array_equal(again, rows())


def test_from_buffer_takes_read_only_memory():
    array = rows()
    array.flags.writeable = False
    assert ImageEmbedding.from_buffer(array).address == address(array)


@pytest.mark.parametrize(
    "bad",
    [
        np.asfortranarray(rows()), rows()[:, ::2], rows().astype(np.float64), rows().astype(np.float16),
        rows().astype(">f4"), rows().view(np.int32), rows()[0], rows()[None], np.zeros((0, 64), np.float32),
        np.zeros((3, 0), np.float32), rows().tobytes(), rows().tolist(), None, "rows",
    ],
    ids=[
        "fortran", "strided", "float64", "float16", "big endian", "int32", "1-D", "3-D", "no rows",
        "no columns", "bytes", "list", "None", "str",
    ],
)  # fmt: skip
def test_from_buffer_refuses(bad):
    with pytest.raises(EmbeddingMismatchError, match="image rows must be"):
        ImageEmbedding.from_buffer(bad)


def test_rows_reach_the_library_where_they_lie(ctx, emb):
    ctx.eval(emb)
    assert ctx.last_input_address == emb.address
    array = rows()
    ctx.eval(ImageEmbedding.from_buffer(array))
    assert ctx.last_input_address == address(array)


def test_later_batches_of_rows_lie_inside_them(model):
    array = rows(10)
    with Context(model, n_ctx=64, n_batch=4, n_threads=1) as ctx:
        ctx.eval(ImageEmbedding.from_buffer(array))
        assert ctx.last_input_address == address(array) + 8 * array.strides[0]


# -- lifetimes ----------------------------------------------------------------------------------------


def test_rows_outlive_embedding_and_encoder(pair, picture):
    with ImageEncoder(pair.mmproj.path, n_threads=1) as encoder:
        emb = encoder.encode(picture)
        array, expected = np.asarray(emb), np.array(emb)
    del encoder, emb
    gc.collect()
    np.testing.assert_array_equal(array, expected)


def test_views_may_go_before_or_after_their_owner(encoder, picture):
    for first in ("view", "owner"):
        things = {"owner": encoder.encode(picture)}
        things["view"] = memoryview(things["owner"])
        things.pop(first)
        gc.collect()
        assert len(things) == 1


def test_a_borrowed_array_lives_as_long_as_its_embedding():
    emb = ImageEmbedding.from_buffer(rows())
    gc.collect()
    np.testing.assert_array_equal(emb, rows())


def test_many_embeddings_have_memory_of_their_own(encoder, picture):
    many = [encoder.encode(picture) for _ in range(5)]
    assert len({emb.address for emb in many}) == 5
    for emb in many[1:]:
        np.testing.assert_array_equal(emb, many[0])


def test_embeddings_are_not_made_directly():
    with pytest.raises(TypeError, match="from_buffer"):
        ImageEmbedding()
    never = ImageEmbedding.__new__(ImageEmbedding)
    with pytest.raises(ClosedError):
        memoryview(never)
    with pytest.raises(ClosedError):
        never.__dlpack__(max_version=(1, 0))
    with pytest.raises(ClosedError):
        _ = never.address


# -- logits -------------------------------------------------------------------------------------------


def test_logits_are_a_view(model, ctx):
    ctx.eval([1, 2, 3])
    logits = np.asarray(ctx.logits)
    assert logits.shape == (model.n_vocab,)
    assert logits.dtype == np.float32
    assert address(logits) == ctx.logits.address
    assert not logits.flags.writeable
    before = logits.copy()
    ctx.eval([4])
    assert not np.array_equal(logits, before)


def test_views_of_logits_hold_the_context_open(pair):
    model = Model(pair.text.path)
    ctx = Context(model, n_ctx=64, n_threads=1)
    ctx.eval([1, 2, 3])
    logits = np.asarray(ctx.logits)
    with pytest.raises(BufferError, match="still alive"):
        ctx.close()
    assert np.isfinite(logits).all()
    del logits
    ctx.close()
    model.close()


def test_views_of_logits_keep_an_abandoned_context_alive(model):
    ctx = Context(model, n_ctx=64, n_threads=1)
    ctx.eval([1, 2, 3])
    logits = np.asarray(ctx.logits)
    expected = logits.copy()
    del ctx
    gc.collect()
    np.testing.assert_array_equal(logits, expected)
    owner = logits.base
    while not hasattr(owner, "exports"):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    with pytest.warns(ResourceWarning, match="unclosed Context"):
        logits = owner = None
