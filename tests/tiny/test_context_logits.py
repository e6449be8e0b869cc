"""Logits against a NumPy Llama, batches and sequences, and evaluations that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.reference import image_features, llama_logits, preprocess
from support.tiny_models import write_text_model

from llava_native import Context, ImageEmbedding, ImageEncoder, Model
from llava_native.errors import ContextFullError, EmbeddingMismatchError, InvalidInputError, ModelLoadError

BEFORE, AFTER = "What is in this picture?", " Answer in one word, please."


def prompt(model):
    return model.tokenize(BEFORE), model.tokenize(AFTER, add_special=False)


def evaluate(model, parts, **options):
    """Return the last logits of `parts` in a new context, as a copy."""
    with Context(model, **({"n_ctx": 256, "n_threads": 1} | options)) as ctx:
        for part in parts:
            n_past = ctx.eval(part)
        assert n_past == sum(map(len, parts)) == ctx.n_past()
        return np.array(ctx.logits)


def assert_logits(actual, expected):
    assert np.abs(actual - expected).max() <= 1e-2
    assert actual.argmax() == expected.argmax()


def random_rows(n, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)


# -- against NumPy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", ["phi-3", "llama-bpe"])
@pytest.mark.parametrize("layout", ["legacy", "full"])
def test_logits_after_text_image_text(tiny_pair, picture, vocab, layout):
    pair = tiny_pair(vocab, layout)
    with Model(pair.text.path) as model, ImageEncoder(pair.mmproj.path, n_threads=1) as encoder:
        before, after = prompt(model)
        logits = evaluate(model, [before, encoder.encode(picture), after])
    features = image_features(preprocess(picture, 28), pair.mmproj.weights, pair.mmproj.params)
    reference = llama_logits([before, features, after], pair.text.weights, pair.text.params)
    assert logits.shape == (pair.text.params.n_vocab,)
    assert_logits(logits, reference[-1])
    # the test could not pass with the image left out or in another place
    without = llama_logits([before, after], pair.text.weights, pair.text.params)[-1]
    moved = llama_logits([features, before, after], pair.text.weights, pair.text.params)[-1]
    assert np.abs(logits - without).max() > 0.1
    assert np.abs(logits - moved).max() > 0.1


@pytest.mark.parametrize("at_once", [1, 5, 20])
def test_one_head_of_keys_for_sixteen_of_queries(tmp_path, at_once):
    text = write_text_model(tmp_path / "text.gguf", n_embd=512, n_head=16, n_head_kv=1, n_ff=256)
    tokens = list(range(300, 320))
    with Model(text.path) as model:
        parts = [tokens[i : i + at_once] for i in range(0, len(tokens), at_once)]
        logits = evaluate(model, parts)
    assert_logits(logits, llama_logits([tokens], text.weights, text.params)[-1])


def test_logits_are_those_of_the_last_token_of_each_eval(pair, model, ctx):
    ids = model.tokenize("one two three four five")
    reference = llama_logits([ids], pair.text.weights, pair.text.params)
    for i, token in enumerate(ids):
        assert ctx.eval([token]) == i + 1
        assert_logits(np.asarray(ctx.logits), reference[i])


def test_f16_text_models_agree_too(tiny_pair):
    pair = tiny_pair(dtype="f16")
    with Model(pair.text.path) as model:
        before, after = prompt(model)
        logits = evaluate(model, [before, after])
    assert_logits(logits, llama_logits([before, after], pair.text.weights, pair.text.params)[-1])


# -- batches ------------------------------------------------------------------------------------------


@pytest.mark.cpu("how many rows are multiplied at once decides how exactly")
@pytest.mark.parametrize("sizes", [(7, 3), (7, 7), (1, 1), (256, 5)], ids=str)
def test_splitting_into_batches_changes_nothing(model, sizes):
    before, after = prompt(model)
    rows = ImageEmbedding.from_buffer(random_rows(17, model.n_embd))
    whole = evaluate(model, [before, rows, after])
    n_batch, n_ubatch = sizes
    split = evaluate(model, [before, rows, after], n_batch=n_batch, n_ubatch=n_ubatch)
    np.testing.assert_allclose(split, whole, atol=2e-3)
    assert split.argmax() == whole.argmax()


def test_tokens_may_be_any_iterable_of_integers(model):
    ids = model.tokenize("a few tokens here")
    whole = evaluate(model, [ids])
    for same in (tuple(ids), np.array(ids, np.int32), np.array(ids, np.uint64)):
        np.testing.assert_array_equal(evaluate(model, [same]), whole)


# -- sequences ----------------------------------------------------------------------------------------


def test_truncated_sequence_goes_on_as_if_the_rest_had_never_been(model, ctx):
    before, after = prompt(model)
    ctx.eval(before)
    ctx.eval(after)
    expected = np.array(ctx.logits)
    ctx.truncate_sequence(0, len(before))
    assert ctx.n_past() == len(before)
    ctx.eval(model.tokenize("something else altogether"))
    ctx.truncate_sequence(0, len(before))
    ctx.eval(after)
    np.testing.assert_array_equal(ctx.logits, expected)


@pytest.mark.cpu("other cells, other sums")
def test_copied_prefix_goes_on_like_its_original(model, ctx):
    before, after = prompt(model)
    ctx.eval(before)
    ctx.copy_sequence(0, 1)
    ctx.copy_sequence(0, 2, 3)
    assert [ctx.n_past(seq) for seq in range(4)] == [len(before), len(before), 3, 0]
    logits = []
    for seq in (0, 1):
        assert ctx.eval(after, seq=seq) == len(before) + len(after)
        logits.append(np.array(ctx.logits))
    ctx.eval([*before[3:], *after], seq=2)
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
    np.testing.assert_allclose(ctx.logits, logits[0], atol=2e-3)
    np.testing.assert_allclose(logits[0], evaluate(model, [before, after]), atol=2e-3)


@pytest.mark.cpu("other cells, other sums")
def test_copying_drops_what_the_target_held(model, ctx):
    before, after = prompt(model)
    ctx.eval(before)
    ctx.eval(model.tokenize("an entirely different and much longer sequence"), seq=1)
    ctx.copy_sequence(0, 1)
    ctx.eval(after)
    expected = np.array(ctx.logits)
    ctx.eval(after, seq=1)
    np.testing.assert_allclose(ctx.logits, expected, atol=1e-5)


def test_sequences_do_not_see_each_other(model, ctx):
    before, after = prompt(model)
    alone = evaluate(model, [before, after])
    for seq, text in enumerate(["First.", "The second one.", "And a third."]):
        ctx.eval(model.tokenize(text), seq=seq)
    ctx.eval(before, seq=3)
    ctx.eval(model.tokenize(" more"), seq=0)
    ctx.eval(after, seq=3)
    np.testing.assert_allclose(ctx.logits, alone, atol=2e-3)
    ctx.truncate_sequence(0, 0)
    assert [ctx.n_past(seq) for seq in (0, 3)] == [0, len(before) + len(after)]


def test_clear_forgets_all_sequences(model, ctx):
    before, after = prompt(model)
    ctx.eval(before)
    ctx.eval(after, seq=2)
    ctx.clear()
    assert [ctx.n_past(seq) for seq in range(4)] == [0, 0, 0, 0]
    with pytest.raises(InvalidInputError, match="no logits"):
        _ = ctx.logits
    ctx.eval(before)
    ctx.eval(after)
    np.testing.assert_allclose(ctx.logits, evaluate(model, [before, after]), atol=2e-3)


# -- refusals -----------------------------------------------------------------------------------------


def test_more_than_the_context_holds_is_refused_before_any_work(model, ctx):
    before, after = prompt(model)
    ctx.eval(before)
    logits = np.array(ctx.logits)
    with pytest.raises(ContextFullError, match=f"holds {len(before)} of 256"):
        ctx.eval([model.bos] * 300)
    with pytest.raises(ContextFullError):
        ctx.eval(ImageEmbedding.from_buffer(random_rows(300, model.n_embd)))
    assert ctx.n_past() == len(before)
    np.testing.assert_array_equal(ctx.logits, logits)
    ctx.eval(after)
    np.testing.assert_allclose(ctx.logits, evaluate(model, [before, after]), atol=2e-3)


def test_cells_taken_by_other_sequences_are_missed_halfway_and_given_back(model):
    before, after = prompt(model)
    with Context(model, n_ctx=256, n_batch=32, n_seq_max=2, n_threads=1) as ctx:
        ctx.eval([model.bos] * 150, seq=1)
        ctx.eval(before)
        with pytest.raises(ContextFullError, match="no free cells"):
            ctx.eval([model.bos] * 150)  # fits the sequence, not the pool: some batches go through
        assert ctx.n_past(0) == len(before)
        assert ctx.n_past(1) == 150
        ctx.eval(after)
        np.testing.assert_allclose(ctx.logits, evaluate(model, [before, after]), atol=2e-3)
        ctx.truncate_sequence(1, 0)
        ctx.eval([model.bos] * 150)


def test_context_may_be_filled_to_the_brim(model, ctx):
    assert ctx.n_ctx_seq == 256
    assert ctx.eval([model.bos] * 256) == 256
    with pytest.raises(ContextFullError):
        ctx.eval([model.bos])


@pytest.mark.parametrize("bad", [-1, 32064, 2**31 - 1])
def test_ids_out_of_range(ctx, bad):
    assert ctx.model.n_vocab <= 32064
    with pytest.raises(InvalidInputError, match=f"token id {bad}"):
        ctx.eval([1, bad])
    assert ctx.n_past() == 0


@pytest.mark.parametrize("seq", [-1, 4, 2**40])
def test_sequences_out_of_range(ctx, seq):
    for call in (
        lambda: ctx.eval([1], seq=seq),
        lambda: ctx.n_past(seq),
        lambda: ctx.truncate_sequence(seq, 0),
        lambda: ctx.copy_sequence(0, seq),
        lambda: ctx.copy_sequence(seq, 0),
    ):
        with pytest.raises(InvalidInputError, match="sequence"):
            call()


def test_lengths_out_of_range(ctx):
    ctx.eval([1, 2, 3])
    for call in (
        lambda: ctx.truncate_sequence(0, 4),
        lambda: ctx.truncate_sequence(0, -1),
        lambda: ctx.copy_sequence(0, 1, 4),
        lambda: ctx.copy_sequence(0, 1, -1),
        lambda: ctx.copy_sequence(0, 0),
        lambda: ctx.eval([]),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert [ctx.n_past(0), ctx.n_past(1)] == [3, 0]


def test_rows_of_another_width(model, ctx):
    with pytest.raises(EmbeddingMismatchError, match=f"{model.n_embd + 1} floats"):
        ctx.eval(ImageEmbedding.from_buffer(random_rows(2, model.n_embd + 1)))
    assert ctx.n_past() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 7}, {"n_ctx": -1}, {"n_ctx": 2**31}, {"n_batch": 0}, {"n_ubatch": 0}, {"n_seq_max": 0},
        {"n_seq_max": 257}, {"n_threads": 0}, {"n_threads": 513}, {"type_k": "q4_9"}, {"type_v": ""},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(model, options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        Context(model, **options)


@pytest.mark.parametrize(
    "options", [{"flash_attn": True}, {"type_k": "f32", "type_v": "f32"}, {"type_k": "bf16"}], ids=str
)
def test_other_ways_to_keep_keys_and_values(model, options):
    before, after = prompt(model)
    expected = evaluate(model, [before, after])
    np.testing.assert_allclose(evaluate(model, [before, after], **options), expected, atol=5e-2)


# -- types of the cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"type_k": "q8_0"}, {"type_k": "q8_0", "flash_attn": True}, {"type_v": "q8_0"}]
)
def test_a_cache_of_q8_0_is_near_one_of_f16(tmp_path, options):
    path = write_text_model(tmp_path / "wide.gguf", n_embd=128, n_head=4, n_head_kv=2).path
    with Model(path) as model:
        tokens = [list(range(3, 40))]
        exact, rounded = evaluate(model, tokens), evaluate(model, tokens, **options)
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] >= 0.999


@pytest.mark.parametrize(("n_embd", "n_head"), [(64, 4), (160, 2)])  # one was misread, one an abort
@pytest.mark.parametrize("name", ["type_k", "type_v"])
def test_a_cache_of_q8_0_needs_heads_that_its_blocks_divide(tmp_path, n_embd, n_head, name):
    path = write_text_model(tmp_path / "odd.gguf", n_embd=n_embd, n_head=n_head, n_head_kv=n_head // 2).path
    with Model(path) as model, pytest.raises(InvalidInputError, match=f"{n_embd // n_head} wide"):
        Context(model, **{name: "q8_0"})


def test_values_of_q8_0_need_flash_attention(tmp_path):
    path = write_text_model(tmp_path / "wide.gguf", n_embd=128, n_head=4, n_head_kv=2).path
    with Model(path) as model, pytest.raises(ModelLoadError, match="flash_attn"):
        Context(model, type_v="q8_0", flash_attn=False)
