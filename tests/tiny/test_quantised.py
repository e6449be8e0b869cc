"""Quantised weights: many tokens at once give what one at a time gives, and what NumPy makes of the weights.

One token is multiplied by other code than many are, and how many decides which: on a CPU with AVX2 tiles from
6 on, half of them up to 8, narrow ones up to 16, several windows from 257 on (vendor/patches/0007); with AMX
tiles of BF16 from 4, 7 or 64 on, two panels of 16 at a time (vendor/patches/0013); up to 6 of Q4_K and Q6_K
by kernels of their own with AVX2 and AVX-512 VNNI (vendor/patches/0016).
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from support.gguf_parts import SIZES, Parts, RawTensor
from support.reference import llama_logits
from support.tiny_models import write_text_model

from llava_native import Context, Model, devices

# where a block's float16 factors lie, in bytes, and how large they are so that weights are near 1/16
FACTORS = {
    "Q2_K": {80: 0.004, 82: 0.006},
    "Q3_K": {108: 0.0015},
    "Q4_K": {0: 0.0002, 2: 0.0015},
    "Q5_K": {0: 0.0001, 2: 0.0015},
    "Q6_K": {208: 0.00005},
    "IQ4_XS": {0: 0.00005},
    "Q8_0": {0: 0.0008},
    "Q4_0": {0: 0.012},
}
pytestmark = pytest.mark.cpu("a GPU multiplies few tokens and many by kernels of its own")
AMX, AVX2, VNNI = (
    any(device.get("features", {}).get(name) == "1" for device in devices())
    for name in ("AMX_INT8", "AVX2", "AVX512_VNNI")
)
# sums in another order turn a few activations' last bit; AMX has activations in BF16, not in 8 bits
CLOSE = 0.05 if AMX else 0.02
BATCHES = (2, 4, 5, 6, 8, 9, 16, 17, 25, 33, 260)


def blocks(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Return bytes of a matrix: every code and every scale is as likely as any other."""
    per_block, size = SIZES[gguf.GGMLQuantizationType[kind]]
    data = random.integers(0, 256, (shape[0], shape[1] // per_block, size), np.uint8)
    for offset, factor in FACTORS[kind].items():
        data[..., offset : offset + 2] = np.frombuffer(np.float16(factor).tobytes(), np.uint8)
    return data.reshape(shape[0], -1)


def largest(kind: str, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Return bytes of a matrix whose codes and scales are all ones; its rows differ by a factor."""
    per_block, size = SIZES[gguf.GGMLQuantizationType[kind]]
    data = np.full((shape[0], shape[1] // per_block, size), 0xFF, np.uint8)
    for offset, factor in FACTORS[kind].items():
        factors = (factor * random.standard_normal(shape[0])).astype(np.float16)
        data[..., offset : offset + 2] = factors.view(np.uint8).reshape(-1, 1, 2)
    return data.reshape(shape[0], -1)


def write(path: Path, kinds: Sequence[str], make: Callable[..., np.ndarray], **shape: int):
    """Write a Llama whose layers' matrices have these types in turn; return its weights and shape, too."""
    random, turns = np.random.default_rng(5), itertools.cycle(kinds)
    model = write_text_model(path, dtype="f16", n_ff=512, **shape)
    parts, weights = Parts.read(path), dict(model.weights)
    for name, tensor in parts.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            kind = next(turns)
            data = make(kind, tensor.shape[::-1], random)
            number = gguf.GGMLQuantizationType[kind]
            parts.tensors[name] = RawTensor(tensor.shape, number, data.tobytes())
            weights[name] = dequantize(data, number)
        elif make is largest and (name == "token_embd.weight" or name.startswith("blk.0")):
            weights[name] = np.ones_like(weights[name])  # rows of one value are codes of 127 everywhere
            ones = weights[name].astype(np.float32 if tensor.type == 0 else np.float16)
            parts.tensors[name] = RawTensor(tensor.shape, tensor.type, ones.tobytes())
    path.write_bytes(parts.to_bytes())
    return weights, model.params


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A writer of Llamas with all matrices of their layers in one type: (path, weights, params)."""
    written: dict[tuple, tuple] = {}

    def one(kind: str, make=blocks):
        if (kind, make) not in written:
            path = tmp_path_factory.mktemp("quantised") / "text.gguf"
            written[kind, make] = path, *write(path, [kind], make, n_embd=256, n_head=4, n_head_kv=2)
        return written[kind, make]

    return one


def last_logits(model: Model, tokens: list[int], at_once: int) -> np.ndarray:
    """Return the logits after `tokens`, evaluated so many at once."""
    with Context(model, n_ctx=512, n_ubatch=512, n_threads=2) as ctx:
        for start in range(0, len(tokens), at_once):
            ctx.eval(tokens[start : start + at_once])
        return np.array(ctx.logits)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square of a difference, in standard deviations of `b`."""
    return float(np.sqrt(np.mean((a - b) ** 2)) / np.std(b))


@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize(("repack", "at_once"), [(False, 1), (True, 1), (True, 3), (True, 40)])
def test_as_stored_and_as_copied_it_is_what_numpy_computes(quantised, kind, repack, at_once):
    """What ``repack=True`` copies is multiplied by kernels of its own: repack.cpp's, or AMX's."""
    path, weights, params = quantised(kind)
    tokens = list(range(300, 340))
    expected = llama_logits([tokens], weights, params)[-1]
    with Model(path, repack=repack) as model:
        logits = last_logits(model, tokens, at_once)
    assert np.std(expected) > 0.3
    assert apart(logits, expected) < 0.05  # activations have 8 bits


@pytest.mark.parametrize("kind", FACTORS)
def test_many_at_once_are_what_one_at_a_time_is(quantised, kind):
    path, *_ = quantised(kind)
    with Model(path, repack=False) as model:
        for n in BATCHES:
            tokens = list(range(300, 300 + n))
            assert apart(last_logits(model, tokens, n), last_logits(model, tokens, 1)) < CLOSE, n


@pytest.mark.skipif(not AVX2, reason="the CPU, or this build, has no AVX2")
@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_a_few_at_once_are_multiplied_as_one_is(quantised, kind):
    """Products with weights have the same bits; attention may add in another order."""
    path, *_ = quantised(kind)
    with Model(path, repack=False) as model:
        for n in range(2, 7 if VNNI else 6):
            tokens = list(range(300, 300 + n))
            assert apart(last_logits(model, tokens, n), last_logits(model, tokens, 1)) < 1e-3, n


@pytest.mark.skipif(not AMX, reason="the CPU, or this build, has no AMX")
@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0"])
def test_tiles_of_bf16_are_nearer_to_the_truth(quantised, kind):
    path, weights, params = quantised(kind)
    tokens = list(range(300, 340))
    expected = llama_logits([tokens], weights, params)[-1]
    with Model(path, repack=False) as model:
        alone, together = last_logits(model, tokens, 1), last_logits(model, tokens, len(tokens))
    assert apart(together, expected) < min(apart(alone, expected), 0.015)


NO_LEAVE = """
import ctypes, logging, sys
import numpy as np

class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(6000)  # a signal's frame with tiles would not fit: Linux refuses them
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
logging.basicConfig(level=logging.WARNING)
from llava_native import Context, Model

with Model(sys.argv[1], repack=False) as model, Context(model, n_ctx=512, n_threads=2) as context:
    context.eval(list(range(300, 340)))
    np.save(sys.argv[2], np.array(context.logits))
"""


@pytest.mark.skipif(not AMX or sys.platform != "linux", reason="the CPU, or this build, has no AMX")
def test_a_process_that_may_not_use_tiles_computes_without(quantised, tmp_path):
    path, weights, params = quantised("Q4_K")
    saved = tmp_path / "logits.npy"
    command = [sys.executable, "-c", NO_LEAVE, str(path), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "lets this process use no AMX tiles" in done.stderr
    assert apart(np.load(saved), llama_logits([list(range(300, 340))], weights, params)[-1]) < 0.05


@pytest.mark.parametrize("kind", FACTORS)
def test_the_largest_codes_do_not_overflow(quantised, kind):
    path, weights, params = quantised(kind, largest)
    tokens = list(range(300, 320))
    expected = llama_logits([tokens], weights, params)[-1]
    with Model(path, repack=False) as model:
        alone = last_logits(model, tokens, 1)
        for n in (10, 20):
            together = last_logits(model, tokens, n)
            assert apart(together, alone) < CLOSE, n
            assert apart(together, expected) < 0.05, n


def test_wide_rows_and_matrices_that_fill_no_tile(tmp_path):
    """Three blocks of 256 a row, and keys of 24 rows where tiles have 16."""
    path = tmp_path / "text.gguf"
    weights, params = write(path, [*FACTORS], blocks, n_embd=768, n_head=32, n_head_kv=1)
    with Model(path, repack=False) as model:
        for n in BATCHES:
            tokens = list(range(300, 300 + n))
            alone, together = last_logits(model, tokens, 1), last_logits(model, tokens, n)
            assert apart(together, alone) < CLOSE, n
            assert n > 40 or apart(together, llama_logits([tokens], weights, params)[-1]) < 0.05, n
