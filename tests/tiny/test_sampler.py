"""Sampling: each parameter has its effect, grammars bind, and what cannot be sampled is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.child import outcome

from llava_native import Context, Model, Sampler, SamplingParams
from llava_native.errors import GrammarError, InvalidInputError

PROMPT = "The quick brown fox jumps over the lazy dog"
PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # the whole distribution


@pytest.fixture
def ready(model, ctx):
    """`ctx` with logits to sample from."""
    ctx.eval(model.tokenize(PROMPT))
    return ctx


def draw(ctx, n=200, **params):
    """Draw `n` tokens from the same logits, each without memory of the others."""
    with Sampler(ctx.model, SamplingParams(**({"seed": 1} | params))) as sampler:
        return [sampler.sample(ctx) for _ in range(n)]


def probabilities(ctx, temperature=1.0):
    scaled = np.asarray(ctx.logits, float) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def ranking(ctx):
    """Token ids, the likeliest first."""
    return np.argsort(-np.asarray(ctx.logits), kind="stable")


# -- choice -------------------------------------------------------------------------------------------


def test_temperature_zero_takes_the_likeliest(ready):
    assert set(draw(ready, 3, temperature=0)) == {int(ranking(ready)[0])}


def test_a_seed_fixes_the_draws_and_reset_repeats_them(ready):
    first = draw(ready, seed=11)
    assert draw(ready, seed=11) == first
    assert draw(ready, seed=12) != first
    with Sampler(ready.model, SamplingParams(seed=11)) as sampler:
        assert [sampler.sample(ready) for _ in range(200)] == first
        sampler.reset()
        assert [sampler.sample(ready) for _ in range(200)] == first


def test_without_a_seed_one_is_drawn_and_kept(ready):
    params = SamplingParams()
    assert params.seed is not None
    assert params.seed != SamplingParams().seed
    assert draw(ready, **dataclasses.asdict(params)) == draw(ready, **dataclasses.asdict(params))


def test_low_temperature_sharpens_and_high_flattens(ready):
    best = int(ranking(ready)[0])
    share = {t: draw(ready, temperature=t, **PLAIN).count(best) / 200 for t in (0.05, 0.3, 100.0)}
    assert share[0.05] > share[0.3] > share[100.0]
    assert share[0.05] > 0.5
    assert len(set(draw(ready, temperature=100.0, **PLAIN))) > 150


def test_draws_follow_the_probabilities(ready):
    """With three candidates, frequencies are the softmax over these."""
    top = ranking(ready)[:3]
    expected = probabilities(ready, 0.5)[top]
    tokens = draw(ready, 2000, temperature=0.5, **(PLAIN | {"top_k": 3}))
    counts = np.array([tokens.count(int(token)) for token in top])
    assert counts.sum() == 2000
    np.testing.assert_allclose(counts / 2000, expected / expected.sum(), atol=0.05)


# -- the samplers that narrow -------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k(ready, k):
    tokens = set(draw(ready, temperature=10.0, **(PLAIN | {"top_k": k})))
    assert tokens == set(ranking(ready)[:k].tolist())


def test_top_p(ready):
    order = ranking(ready)
    assert set(draw(ready, temperature=10.0, **(PLAIN | {"top_p": 1e-6}))) == {int(order[0])}
    mass = np.cumsum(probabilities(ready)[order])
    wanted = (mass[1] + mass[2]) / 2  # three tokens are needed to reach it
    tokens = set(draw(ready, temperature=10.0, **(PLAIN | {"top_p": float(wanted)})))
    assert tokens == set(order[:3].tolist())


def test_min_p(ready):
    order, p = ranking(ready), probabilities(ready)
    threshold = float((p[order[2]] + p[order[3]]) / 2 / p[order[0]])
    tokens = set(draw(ready, temperature=10.0, **(PLAIN | {"min_p": threshold})))
    assert tokens == set(order[:3].tolist())
    assert set(draw(ready, temperature=10.0, **(PLAIN | {"min_p": 1.0}))) == {int(order[0])}


def test_typical_p_narrows(ready):
    assert len(set(draw(ready, temperature=1.0, **PLAIN))) > 1
    assert len(set(draw(ready, temperature=1.0, typical_p=1e-6, **PLAIN))) == 1


def test_xtc_drops_the_top_choices(ready):
    order, p = ranking(ready), probabilities(ready)
    kept = p[order[:4]] / p[order[:4]].sum()
    threshold = float((kept[1] + kept[2]) / 2)  # two of the four are above it; the likelier of them goes
    options = {**PLAIN, "top_k": 4, "temperature": 1.0, "xtc_threshold": threshold}
    assert int(order[0]) in draw(ready, **options)
    dropped = draw(ready, xtc_probability=1.0, **options)
    assert int(order[0]) not in dropped
    assert set(dropped) <= set(order[1:4].tolist())


def test_mirostat_aims_at_its_surprise(ready):
    calm = draw(ready, temperature=1.0, mirostat_mode=2, mirostat_tau=0.1, mirostat_eta=0.5)
    wild = draw(ready, temperature=1.0, mirostat_mode=2, mirostat_tau=12.0, mirostat_eta=0.5)
    assert len(set(calm[50:])) < len(set(wild[50:]))


def test_mirostat_1_keeps_likely_tokens(ready):
    """Its estimate needs a vocabulary with Zipf's law, which random weights do not give."""
    tokens = draw(ready, 20, temperature=1.0, mirostat_mode=1)
    assert set(tokens) <= set(ranking(ready)[:1000].tolist())


# -- the samplers that change logits ------------------------------------------------------------------


def test_logit_bias(ready):
    order = ranking(ready).tolist()
    assert draw(ready, 1, temperature=0, logit_bias={order[0]: -np.inf}) == [order[1]]
    assert draw(ready, 1, temperature=0, logit_bias={order[500]: 1000.0}) == [order[500]]
    assert draw(ready, 1, temperature=0, logit_bias={order[0]: -1e-9}) == [order[0]]


@pytest.mark.parametrize(
    "penalty",
    [{"repeat_penalty": 1000.0}, {"presence_penalty": 1000.0}, {"frequency_penalty": 1000.0}],
    ids=lambda penalty: next(iter(penalty)),
)
def test_penalties_forbid_repetition_as_far_as_they_look_back(ready, penalty):
    assert len(set(draw(ready, 20, temperature=0, **penalty))) == 20
    short = draw(ready, 20, temperature=0, repeat_last_n=2, **penalty)
    assert short == (short[:3] * 7)[:20]
    assert len(set(short)) == 3
    assert len(set(draw(ready, 20, temperature=0, repeat_last_n=0, **penalty))) == 1


def test_dry_breaks_loops(ready):
    assert len(set(draw(ready, 30, temperature=0))) == 1
    assert len(set(draw(ready, 30, temperature=0, dry_multiplier=50.0))) > 1
    assert len(set(draw(ready, 30, temperature=0, dry_multiplier=50.0, dry_allowed_length=100))) == 1


def test_accept_tells_the_sampler_what_was_chosen_elsewhere(ready):
    best, second = ranking(ready)[:2].tolist()
    with Sampler(ready.model, SamplingParams(temperature=0, presence_penalty=1000.0)) as sampler:
        sampler.accept(best)
        assert sampler.sample(ready) == second
        sampler.reset()
        assert sampler.sample(ready) == best


# -- grammars -----------------------------------------------------------------------------------------


def generate(ctx, sampler, n=40):
    """Sample and evaluate until the end of the generation; return its text."""
    ids = []
    for _ in range(n):
        token = sampler.sample(ctx)
        if ctx.model.is_eog(token):
            break
        ids.append(token)
        ctx.eval([token])
    else:
        pytest.fail("the grammar did not end the generation")
    return b"".join(ctx.model.token_bytes(i) for i in ids).decode()


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_grammar_binds_the_whole_answer(ready, temperature):
    grammar = 'root ::= "yes " digit digit "!" | "no"\ndigit ::= [0-9]'
    params = SamplingParams(temperature=temperature, seed=3, grammar=grammar)
    with Sampler(ready.model, params) as sampler:
        text = generate(ready, sampler)
        sampler.reset()
        again = generate(ready, sampler)
    for answer in (text, again):
        assert answer == "no" or (answer[:4] == "yes " and answer[4:6].isdigit() and answer[6:] == "!")


def test_a_grammar_may_be_asked_again_after_its_end(ready):
    with Sampler(ready.model, SamplingParams(temperature=0, grammar='root ::= "a"')) as sampler:
        assert generate(ready, sampler) == "a"
        token = sampler.sample(ready)
        assert ready.model.is_eog(token)
        sampler.accept(token)


def test_another_root_rule(ready):
    grammar = 'root ::= "a"\nother ::= "b"'
    params = SamplingParams(temperature=0, grammar=grammar, grammar_root="other")
    with Sampler(ready.model, params) as sampler:
        assert generate(ready, sampler) == "b"


@pytest.mark.parametrize(
    "grammar",
    [
        "", "   ", "\0", 'root ::= "a"\0', "root", 'root ::= "a', "root ::= missing", 'other ::= "a"',
        "root ::= root", "root ::= (",
    ],
    ids=repr,
)  # fmt: skip
def test_bad_grammars(model, grammar):
    with pytest.raises(GrammarError):
        Sampler(model, SamplingParams(grammar=grammar))


def test_a_bad_grammar_tells_what_is_wrong_and_prints_nothing(model, capfd):
    with pytest.raises(GrammarError) as caught:
        Sampler(model, SamplingParams(grammar='root ::= "a'))
    assert any("error parsing grammar" in line for line in caught.value.log)  # patch 0005
    assert capfd.readouterr() == ("", "")


def test_a_grammar_of_megabytes_is_refused_before_it_is_parsed(model):
    with pytest.raises(GrammarError, match="at most 1048576"):
        Sampler(model, SamplingParams(grammar="root ::= (" + '"abcdefgh" | ' * 100_000 + '"b")*'))


def test_tokens_that_the_grammar_forbids_are_refused_and_change_nothing(ready):
    """Upstream aborts the process at an end of generation that comes before the grammar's end."""
    model = ready.model
    (letter,) = model.tokenize("b", add_special=False)[-1:]
    with Sampler(model, SamplingParams(temperature=0, grammar='root ::= "a" "c"')) as sampler:
        for _ in range(2):
            for token in (model.eos, letter, model.bos):
                with pytest.raises(GrammarError, match=f"forbids token {token}"):
                    sampler.accept(token)
        assert generate(ready, sampler) == "ac"


def test_no_token_left(ready):
    model = ready.model
    banned = {i: -np.inf for i in range(model.n_vocab) if model.token_bytes(i).strip()[:1] == b"a"}
    params = SamplingParams(temperature=0, grammar='root ::= "a"', logit_bias=banned)
    with Sampler(model, params) as sampler:
        try:
            token = sampler.sample(ready)
        except GrammarError:
            return
        assert model.token_bytes(token) == b"a", "a byte token of the same letter may remain"


def test_deep_grammars_do_not_overflow_the_stack(pair):
    code = """
        import sys
        from llava_native import Model, Sampler, SamplingParams
        from llava_native.errors import GrammarError
        with Model(sys.argv[1], vocab_only=True) as model:
            def chain(n):
                return "root ::= r0\\n" + "".join(f"r{i} ::= r{i + 1}\\n" for i in range(n)) + f'r{n} ::= "a"'

            parentheses = "root ::= " + "(" * 300_000
            for grammar in (parentheses, chain(100_000), "root ::= " + '"(" [(]' * 999, chain(3000)):
                try:
                    Sampler(model, SamplingParams(grammar=grammar)).close()
                except GrammarError as exc:
                    print("refused")
    """
    assert outcome(code, pair.text.path) == (0, "refused\nrefused", "")


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 1.1}, {"min_p": -1},
        {"typical_p": 2}, {"xtc_probability": 1.5}, {"repeat_penalty": 0}, {"repeat_last_n": -2},
        {"mirostat_mode": 3}, {"seed": -1}, {"seed": 2**32 - 1}, {"dry_base": 0.5},
        {"logit_bias": {1: float("nan")}}, {"logit_bias": {1: float("inf")}},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_range(params):
    with pytest.raises(InvalidInputError, match=next(iter(params))):
        SamplingParams(**params)


def test_tokens_out_of_range(ready):
    n_vocab = ready.model.n_vocab
    for token in (-1, n_vocab):
        with pytest.raises(InvalidInputError, match=f"token id {token}"):
            Sampler(ready.model, SamplingParams(logit_bias={token: 1.0}))
        with Sampler(ready.model) as sampler, pytest.raises(InvalidInputError, match=f"token id {token}"):
            sampler.accept(token)


def test_a_context_of_another_model(pair, ready):
    with (
        Model(pair.text.path) as other,
        Sampler(other) as sampler,
        pytest.raises(InvalidInputError, match="different models"),
    ):
        sampler.sample(ready)


def test_a_context_without_logits(model, ctx):
    with Sampler(model) as sampler:
        with pytest.raises(InvalidInputError, match="no logits"):
            sampler.sample(ctx)
        ctx.eval([1, 2, 3])
        ctx.truncate_sequence(0, 1)
        with pytest.raises(InvalidInputError, match="no logits"):
            sampler.sample(ctx)
        ctx.eval([4])
        assert 0 <= sampler.sample(ctx) < model.n_vocab


def test_sampling_leaves_the_logits_alone(ready):
    before = np.array(ready.logits)
    draw(ready, 5, temperature=0.3, repeat_penalty=2.0, logit_bias={5: -np.inf})
    np.testing.assert_array_equal(ready.logits, before)


def test_a_grammar_over_a_bpe_vocabulary(tiny_pair):
    with (
        Model(tiny_pair("llama-bpe").text.path) as model,
        Context(model, n_ctx=64, n_threads=1) as ctx,
        Sampler(model, SamplingParams(temperature=0, grammar='root ::= "né" [à-ÿ]')) as sampler,
    ):
        ctx.eval(model.tokenize("Hi"))
        text = generate(ctx, sampler)
        assert text[:2] == "né"
        assert "à" <= text[2] <= "ÿ"
        assert len(text) == 3


# -- probabilities, and masks from outside


def test_logprobs_are_the_softmax_of_the_logits(model, ctx):
    ctx.eval([model.bos, 5, 7])
    logits = np.array(ctx.logits, np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    with Sampler(model, SamplingParams(temperature=0)) as sampler:
        for token in (0, 7, model.n_vocab - 1):
            assert sampler.logprobs(ctx, token)[0] == pytest.approx(expected[token], abs=1e-6)
        for top in (0, 1, 2, 7, 100):
            _, found = sampler.logprobs(ctx, 7, top)
            order = np.argsort(-expected, kind="stable")[:top]
            assert [token for token, _ in found] == order.tolist()
            np.testing.assert_allclose([value for _, value in found], expected[order], atol=1e-6)
        for bad in ({"top": 101}, {"top": -1}, {"token": model.n_vocab}):
            with pytest.raises(InvalidInputError):
                sampler.logprobs(ctx, **{"token": 0, **bad})


class Only:
    """Lets a set of tokens through, and remembers what was accepted."""

    def __init__(self, n_vocab, *allowed):
        self.bits = np.packbits(np.isin(np.arange(n_vocab), allowed), bitorder="little").tobytes()
        self.seen = []

    def mask(self):
        return self.bits

    def accept(self, token):
        self.seen.append(token)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_matcher_decides_what_may_come(model, ctx, temperature):
    ctx.eval([model.bos, 5])
    logits = np.array(ctx.logits)
    only = Only(model.n_vocab, 11, 4000, model.n_vocab - 1)
    with Sampler(model, SamplingParams(temperature=temperature, seed=3), matcher=only) as sampler:
        seen = [sampler.sample(ctx) for _ in range(20)]
    assert set(seen) <= {11, 4000, model.n_vocab - 1}
    assert only.seen == seen
    if temperature == 0:
        assert set(seen) == {max((11, 4000, model.n_vocab - 1), key=lambda token: logits[token])}


def test_a_matcher_that_lets_nothing_through_or_gives_no_mask(model, ctx):
    ctx.eval([model.bos])
    with (
        Sampler(model, matcher=Only(model.n_vocab)) as sampler,
        pytest.raises(GrammarError, match="no token"),
    ):
        sampler.sample(ctx)
    short = Only(model.n_vocab)
    short.bits = b"\xff"
    with Sampler(model, matcher=short) as sampler, pytest.raises(InvalidInputError, match="1 bytes"):
        sampler.sample(ctx)
    with Sampler(model, matcher=object()) as sampler, pytest.raises(AttributeError):
        sampler.sample(ctx)
