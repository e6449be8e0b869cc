"""LoRA adapters: the same logits as of a model into which NumPy merged them, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.gguf_file import read_kv, write_gguf

from llava_native import Context, Llava, Model
from llava_native._lora import LoraAdapter, adapters_of, set_adapters
from llava_native.errors import InUseError, InvalidInputError, ModelFormatError, UnsupportedModelError

RANK, ALPHA, SCALE = 4, 6.0, 0.5
TOKENS = [1, 2, 3, 4, 5]
KV = {
    "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
    "adapter.lora.alpha": ALPHA,
}  # fmt: skip


def pairs_of(text, names, seed=5):
    """Return random halves for these matrices of a model."""
    draw, tensors = np.random.default_rng(seed), {}
    for name in names:
        n_out, n_in = text.weights[name].shape
        tensors[f"{name}.lora_a"] = draw.standard_normal((RANK, n_in)).astype(np.float32)
        tensors[f"{name}.lora_b"] = draw.standard_normal((n_out, RANK)).astype(np.float32) * 0.2
    return tensors


@pytest.fixture
def names(pair):
    every = ("attn_q", "attn_v", "attn_output", "ffn_down")
    return [f"blk.{i}.{name}.weight" for i in range(pair.text.params.n_layer) for name in every] + [
        "output.weight"
    ]


@pytest.fixture
def adapter(pair, names, tmp_path):
    path = tmp_path / "adapter.gguf"
    write_gguf(path, KV, pairs_of(pair.text, names))
    return path


def logits(path, adapters=(), scale=SCALE):
    with Model(path) as model:
        loaded = [LoraAdapter(model, adapter, scale=scale) for adapter in adapters]
        with Context(model, n_ctx=64, n_threads=1) as context:
            set_adapters(context, loaded)
            context.eval(TOKENS)
            found = np.array(context.logits)
        del loaded
    return found


@pytest.mark.cpu("F32 is multiplied as TF32 elsewhere")
def test_the_logits_are_those_of_the_merged_model(pair, adapter, names, tmp_path):
    halves, merged = pairs_of(pair.text, names), dict(pair.text.weights)
    for name in names:
        change = halves[f"{name}.lora_b"] @ halves[f"{name}.lora_a"]
        merged[name] = (merged[name] + SCALE * ALPHA / RANK * change).astype(np.float32)
    write_gguf(tmp_path / "merged.gguf", read_kv(pair.text.path), merged)
    expected = logits(tmp_path / "merged.gguf")
    found = logits(pair.text.path, [adapter])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.abs(expected - logits(pair.text.path)).max() > 0.5  # it makes a difference


def test_an_embedding_is_changed_too(pair, tmp_path):
    table = pair.text.weights["token_embd.weight"]
    draw = np.random.default_rng(3)
    a = draw.standard_normal((table.shape[0], RANK)).astype(np.float32)
    b = draw.standard_normal((table.shape[1], RANK)).astype(np.float32)
    halves = {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b}
    write_gguf(tmp_path / "a.gguf", KV, halves)
    merged = {**pair.text.weights, "token_embd.weight": table + (SCALE * ALPHA / RANK * a @ b.T)}
    write_gguf(tmp_path / "merged.gguf", read_kv(pair.text.path), merged)
    expected = logits(tmp_path / "merged.gguf")
    np.testing.assert_allclose(logits(pair.text.path, [tmp_path / "a.gguf"]), expected, atol=2e-3)


def test_a_llava_uses_adapters(pair, adapter, picture):
    def answer(**options):
        files = (pair.text.path, pair.mmproj.path)
        with Llava(*files, n_ctx=256, n_threads=1, **options) as llava:
            return llava.describe(picture, max_tokens=8)

    plain, changed = answer(), answer(lora=adapter)
    assert plain != changed
    assert answer(lora=(adapter, 0.0)) == plain
    assert answer(lora=[(adapter, 0.25), (adapter, 0.75)]) == changed
    assert answer(lora=[str(adapter)], isolate=True) == changed
    with pytest.raises(InvalidInputError, match="paths, or pairs"):
        answer(lora=[(adapter, "much")])


@pytest.mark.parametrize("isolate", [False, True])
def test_a_state_of_other_adapters_is_not_used(pair, adapter, picture, tmp_path, isolate):
    files = (pair.text.path, pair.mmproj.path)
    with Llava(*files, n_ctx=256, n_threads=1) as llava:
        chat = llava.chat()
        with chat.send("What?", picture, temperature=0, max_tokens=4) as stream:
            stream.result()
        chat.save(tmp_path / "talk.chat")
    with Llava(*files, n_ctx=256, n_threads=1, lora=adapter, isolate=isolate) as llava:
        with llava.load_chat(tmp_path / "talk.chat").send("And?", max_tokens=4) as stream:
            stream.result()
        assert llava.stats().cached_tokens == 0


def test_a_model_stays_open_for_its_adapters(pair, adapter):
    model = Model(pair.text.path)
    loaded = LoraAdapter(model, adapter)
    assert 0 < loaded.nbytes < adapter.stat().st_size
    with pytest.raises(InUseError):
        model.close()
    del loaded
    model.close()


def test_a_context_takes_what_was_loaded_before_it_and_for_its_model(pair, adapter):
    with Model(pair.text.path) as model, Model(pair.text.path) as other:
        first = LoraAdapter(model, adapter)
        foreign = LoraAdapter(other, adapter)
        with Context(model, n_ctx=64, n_threads=1) as context:
            late = LoraAdapter(model, adapter)
            with pytest.raises(InvalidInputError, match="after the context"):
                set_adapters(context, [late])
            with pytest.raises(InvalidInputError, match="another Model"):
                set_adapters(context, [foreign])
            set_adapters(context, [first])
            assert adapters_of(context) == [first]
            context.eval(TOKENS)
            with pytest.raises(InvalidInputError, match="other adapters"):
                set_adapters(context, [])
            context.clear()
            set_adapters(context, [])
            assert adapters_of(context) == []
        del first, foreign, late
    with pytest.raises(InvalidInputError, match="a number"), Model(pair.text.path) as model:
        LoraAdapter(model, adapter, scale=float("nan"))


def _with(**changes):
    return lambda kv, _: kv.update({key.replace("__", "."): value for key, value in changes.items()})


def _tensor(name, shape):
    return lambda _, tensors: tensors.update({name: np.zeros(shape, np.float32)})


def _lose(name):
    return lambda _, tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (_with(general__type="model"), ModelFormatError, "no LoRA adapter"),
        (_with(general__type=3), ModelFormatError, "must be of type str"),
        (_with(adapter__type="vector"), ModelFormatError, "no LoRA adapter"),
        (_with(general__architecture="phi3"), ModelFormatError, "an adapter of phi3 models"),
        (_with(adapter__lora__alpha=4), ModelFormatError, "must be of type f32"),
        (_with(adapter__lora__alpha=float("nan")), ModelFormatError, "alpha is nan"),
        (_with(adapter__alora__invocation_tokens=[1, 2]), UnsupportedModelError, "aLoRA"),
        (_lose("output.weight.lora_a"), ModelFormatError, "has lora_b only"),
        (_tensor("output.weight.lora_a", (RANK, 7)), ModelFormatError, "has shapes"),
        (_tensor("output.weight.lora_b", (7, RANK)), ModelFormatError, "has shapes"),
        (_tensor("output.weight.lora_b", (2, 7, RANK)), ModelFormatError, "has shapes"),
        (_tensor("blk.99.attn_q.weight.lora_a", (RANK, 7)), ModelFormatError, "has lora_a only"),
        (_tensor("something", (3,)), ModelFormatError, "no half of a pair"),
        (lambda _, tensors: tensors.clear(), ModelFormatError, "no pair"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(pair, tmp_path, change, error, says):
    kv, tensors = dict(KV), pairs_of(pair.text, ["output.weight"])
    change(kv, tensors)
    write_gguf(tmp_path / "bad.gguf", kv, tensors)
    with Model(pair.text.path) as model, pytest.raises(error, match=says):
        LoraAdapter(model, tmp_path / "bad.gguf")


def test_a_tied_embedding_takes_no_adapter(pair, tmp_path):
    tied = {name: array for name, array in pair.text.weights.items() if name != "output.weight"}
    write_gguf(tmp_path / "tied.gguf", read_kv(pair.text.path), tied)
    n_vocab, n_embd = pair.text.weights["token_embd.weight"].shape
    halves = {
        "token_embd.weight.lora_a": np.zeros((n_vocab, RANK), np.float32),
        "token_embd.weight.lora_b": np.zeros((n_embd, RANK), np.float32),
    }
    write_gguf(tmp_path / "a.gguf", KV, halves)
    with Model(tmp_path / "tied.gguf") as model, pytest.raises(UnsupportedModelError, match="for its output"):
        LoraAdapter(model, tmp_path / "a.gguf")
