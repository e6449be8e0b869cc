"""Bad input, each case in a child process: an exception of the named class, and never a signal.

The rows of our study of what aborts or crashes llama.cpp that have no case, because nothing here can
reach them:

====================================================== ==================================================
native                                                 why no user can get there
====================================================== ==================================================
non-causal batches, encoder models over n_ubatch       such models are refused when loaded
partial seq_cp of split memories                       contexts are always made with kv_unified
seq_add, seq_div, context shift                        not bound
rows without logits, stale logits                      only the last row asks; `Context` remembers
a chain without a selecting sampler                    `native_new_chain` always ends in one
clone of samplers, samplers of the user's              not bound
models without a vocabulary                            refused when loaded
n_seq_id 0, pos NULL                                   `Context` fills both itself
llama_vocab_is_control out of range                    ids are checked; not bound
helpers of libmtmd, its image decoder, video, audio    not bound; Pillow decodes
RPC, control vectors                                    not bound
errors of CUDA                                         none can be made on purpose
====================================================== ==================================================
"""

from __future__ import annotations

import pytest
from support import bad_calls, bad_files, bad_words
from support.gauntlet import Case, Gauntlet

CASES = [(module.__name__, case) for module in (bad_files, bad_calls, bad_words) for case in module.CASES]


@pytest.fixture(scope="module")
def gauntlets(tmp_path_factory):
    made = {
        module.__name__: Gauntlet(module.__name__, tmp_path_factory.mktemp("gauntlet"))
        for module in (bad_files, bad_calls, bad_words)
    }
    yield made
    for gauntlet in made.values():
        gauntlet.close()


def test_names_are_unique():
    names = [case.name for _, case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("module", "case"), CASES, ids=[case.name for _, case in CASES])
def test_bad_input_is_an_exception(gauntlets, module: str, case: Case):
    outcome = gauntlets[module](case.name)
    assert outcome.died is None, outcome.died
    if case.raises is None:
        assert outcome.raised is None, outcome.message
    else:
        expected = f"{case.raises.__module__}.{case.raises.__qualname__}"
        assert outcome.raised == expected, outcome.message
        assert case.says in outcome.message
    assert outcome.left_alive == ""
