"""Models on which a native call takes long enough to be stopped, and tests that run isolated, too."""

from __future__ import annotations

import pytest
from support.tiny_models import TinyModel, write_mmproj

LONG = 6000  # tokens
# tests of the face that must pass unchanged with the engine in a child process
ISOLATED = frozenset({
    "test_generate_tells_all_about_an_answer",
    "test_greedy_answers_are_the_same_and_the_streams",
    "test_every_kind_of_image_is_the_same_picture",
    "test_several_images",
    "test_a_bad_image_leaves_it_usable",
    "test_options_that_make_no_sense",
    "test_swapped_files_are_named",
    "test_progress_is_told_of_both_files",
    "test_it_is_not_closed_under_a_stream",
    "test_a_policy_drops_images_until_it_fits",
    "test_a_chat_sends_all_earlier_turns_and_images",
    "test_bad_images_yield_their_errors",
    "test_dropped_in_the_middle",
    "test_chunks_are_openais_and_make_the_answer",
    "test_logprobs",
    "test_json_of_a_schema_about_an_image",
    "test_a_stop_string_ends_it_before_itself",
    "test_streams_side_by_side",
    "test_streams_dropped_in_the_middle_free",
    "test_cancel_from_another_thread",
    "test_a_timeout_is_an_exception_and_keeps_the_text",
    "test_async_for_gives_what_for_gives",
    "test_many_tasks",
    "test_a_timeout_and_a_bad_image_on_an_event_loop",
    "test_the_answer_is_that_about_the_picture",
    "test_nobody_waits_for_anothers_image",
    "test_cancelled_while_its_image_is_fetched",
    "test_time_runs_out_while_it_is_fetched",
    "test_what_cannot_be_fetched_is_an_error_of_its_own_answer",
    "test_closed_while_it_is_fetched",
    "test_dropped_while_it_is_fetched",
    "test_those_whose_images_are_elsewhere_count",
    "test_a_map_whose_time_runs_out_behind_slow_servers",
    "test_a_token_ends_it_though_nobody_asks_for_more",
    "test_requests_that_share_an_image_share_no_error",
    "test_it_is_allowed_by_the_one_who_fetches",
})  # fmt: skip


def pytest_generate_tests(metafunc):
    """Run those of `ISOLATED` a second time."""
    if metafunc.function.__name__ in ISOLATED:
        metafunc.fixturenames.insert(0, "isolated")
        metafunc.parametrize("isolated", [False, True], indirect=True, ids=["here", "isolated"])


@pytest.fixture
def isolated(request, monkeypatch):
    """Make ``Llava(isolate=True)`` the default, where the parameter says so."""
    from llava_native import Llava

    monkeypatch.setitem(Llava.__init__.__kwdefaults__, "isolate", request.param)


@pytest.fixture
def slow_ctx(model):
    """A context whose `eval` of `LONG` tokens takes a second and more: one graph a token, one call."""
    from llava_native import Context

    with Context(model, n_ctx=LONG + 64, n_batch=LONG, n_ubatch=1, n_seq_max=2, n_threads=1) as opened:
        yield opened


@pytest.fixture
def long_tokens(model):
    """What takes `slow_ctx` long."""
    return [model.bos] * LONG


@pytest.fixture(scope="session")
def slow_mmproj(tmp_path_factory) -> TinyModel:
    """An encoder of 1,024 patches and 24 blocks."""
    path = tmp_path_factory.mktemp("slow") / "mmproj.gguf"
    return write_mmproj(path, layout="full", image_size=448, n_layer=24, n_embd=64, n_head=4)


@pytest.fixture
def slow_encoder(slow_mmproj):
    """An encoder whose `encode` takes half a second and more."""
    from llava_native import ImageEncoder

    with ImageEncoder(slow_mmproj.path, n_threads=1) as opened:
        yield opened
