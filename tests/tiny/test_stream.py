"""TokenStream: finish reasons, characters and stop strings, and every way to end early."""

from __future__ import annotations

import contextlib
import dis
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from functools import partial
from pathlib import Path

import pytest
from support import damage
from support.threads import settled

from llava_native import CancelToken, Constraint, Llava
from llava_native._native import live_counts
from llava_native.errors import (
    BusyError,
    CancelledError,
    GrammarError,
    ImageDecodeError,
    InvalidInputError,
    TimeoutExpiredError,
)
from llava_native.prompt import Text
from llava_native.templates import STOPS

EOS = 2  # of damage.good_text, whose vocabulary is bytes and a few words
GREEDY = {"temperature": 0, "max_tokens": 30}
ONLY_U = GREEDY | {"logit_bias": {ord("U") + 3: 1e9}}  # the token of that byte


@pytest.fixture
def llava(tmp_path):
    text, mmproj = damage.good_text(tmp_path / "text.gguf"), damage.good_mmproj(tmp_path / "mmproj.gguf")
    with Llava(text, mmproj, n_ctx=512, n_threads=1, chat_template="chatml") as opened:
        yield opened


@pytest.fixture
def answer(llava):
    """The greedy answer to "Hello", made of ASCII letters so that any cut of it is text."""
    biases = {byte + 3: -1e9 for byte in range(256) if not chr(byte).isalpha() or byte > 127}
    options = GREEDY | {"logit_bias": biases}
    text = llava.generate("Hello", **options).text
    assert len(text) >= 30
    return text, options


# -- why an answer ends


class CtrlC:
    """Raises KeyboardInterrupt after the n-th call that stream.py makes: where Python looks at signals."""

    def __init__(self, n):
        self.left = n
        self.last = ""

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.endswith("stream.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= self.last.startswith("CALL")
            self.last = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def test_a_stream_is_over_wherever_ctrl_c_came(llava):
    interrupted = 0
    for n in range(1, 60):
        with llava.stream("Hello", **GREEDY) as stream:
            before = sys.gettrace()
            sys.settrace(CtrlC(n))
            try:
                next(stream)
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.settrace(before)
        assert stream.finish_reason == "cancelled", n
    assert 10 < interrupted < 59
    settled(llava)


def test_max_tokens(llava):
    for n in (1, 2, 7):
        with llava.stream("Hello", temperature=0, max_tokens=n) as stream:
            list(stream)
        assert (stream.finish_reason, stream.usage.completion_tokens) == ("length", n)


def test_a_full_context_is_a_length_too(llava):
    result = llava.generate("Hello", temperature=0, max_tokens=None, logit_bias={EOS: -1e9})
    assert result.finish_reason == "length"
    assert result.usage.total_tokens == llava.context.n_ctx_seq


def test_the_model_ends_it(llava):
    result = llava.generate("Hello", **GREEDY, logit_bias={EOS: 1e9})
    assert (result.text, result.finish_reason, result.usage.completion_tokens) == ("", "eog", 0)


def test_a_stop_string_ends_it_before_itself(llava, answer):
    text, options = answer
    stop = text[10:14]
    expected = text[: text.find(stop)]
    result = llava.generate("Hello", stop=stop, **options)
    assert (result.text, result.finish_reason) == (expected, "stop")
    with llava.stream("Hello", stop=["nowhere", stop, text[12:16]], **options) as stream:
        seen = ""
        for token in stream:
            seen += token.text
            assert expected.startswith(seen)
    assert seen == expected


def test_text_held_back_for_a_stop_that_never_came_is_shown_at_the_end(llava, answer):
    text, options = answer
    result = llava.generate("Hello", stop=text[-3:] + "!", **options)
    assert (result.text, result.finish_reason) == (text, "length")


@pytest.fixture
def with_stops(llava, tmp_path, monkeypatch):
    monkeypatch.setitem(STOPS, "vicuna", ("UU",))
    with Llava(tmp_path / "text.gguf", n_ctx=512, n_threads=1, chat_template="vicuna") as opened:
        yield opened


def test_a_template_may_have_stops_of_its_own(with_stops):
    result = with_stops.generate("Hello", **ONLY_U)
    assert (result.text, result.finish_reason) == ("", "stop")


@pytest.mark.parametrize(
    "options", [{"grammar": 'root ::= "aUUb"'}, {"constraint": Constraint.regex("aUUb")}], ids=str
)
def test_a_templates_stops_do_not_cut_what_a_grammar_asks_for(with_stops, options):
    result = with_stops.generate("Hello", **options, **GREEDY)
    assert (result.text, result.finish_reason) == ("aUUb", "eog")
    result = with_stops.generate("Hello", stop="b", **options, **GREEDY)  # a caller's own do
    assert (result.text, result.finish_reason) == ("aUU", "stop")


def test_a_prompt_without_a_template_has_none_of_its_stops(with_stops):
    with with_stops.stream_prompt([Text("Hello", special=True)], **ONLY_U) as stream:
        assert stream.result().text == "U" * 30


def test_log_probabilities_are_of_tokens_of_the_answer(llava):
    """Also where the end showed text that was held back."""
    with llava.stream("Hello", grammar='root ::= "abcde"', stop="dex", logprobs=0, **GREEDY) as stream:
        tokens = list(stream)
    assert (stream.text, stream.finish_reason) == ("abcde", "eog")
    assert sum(token.logprob is not None for token in tokens) == stream.usage.completion_tokens == 5
    assert (tokens[-1].id, tokens[-1].text, tokens[-1].logprob) == (EOS, "de", None)
    with pytest.raises(InvalidInputError, match="logprobs"):
        llava.stream("Hello", logprobs=False)


# -- characters and grammars


def test_a_grammar_is_followed_to_its_end(llava):
    result = llava.generate("Hello", grammar='root ::= "no" | "yes"', **GREEDY)
    assert result.text in ("no", "yes")
    assert result.finish_reason == "eog"
    with pytest.raises(GrammarError):
        llava.stream("Hello", grammar="root ::= (")
    assert llava.generate("Hello", **GREEDY).text


@pytest.mark.parametrize("text", ["é", "€uro", "🙂", "aé€🙂z", "漢字かな", "\u0301", "🇩🇪"])
def test_a_character_of_several_tokens_is_shown_when_it_is_whole(llava, text):
    with llava.stream("Hello", grammar=f'root ::= "{text}"', **GREEDY) as stream:
        tokens = list(stream)
    assert stream.usage.completion_tokens == len(text.encode())  # a token a byte
    assert "".join(token.text for token in tokens) == text
    assert all(token.text in ("", char) for token, char in zip(tokens, _by_byte(text), strict=False))


def _by_byte(text):
    return [char for char in text for _ in char.encode()]


def test_a_character_that_is_cut_off_is_replaced_once(llava):
    result = llava.generate("Hello", grammar='root ::= "🙂"', temperature=0, max_tokens=3)
    assert (result.text, result.finish_reason) == ("\ufffd", "length")


def test_bytes_that_are_no_text(llava):
    result = llava.generate("Hello", temperature=0, max_tokens=4, logit_bias={0xFF + 3: 1e9})
    assert result.text == "\ufffd" * 4


# -- several at once


@pytest.mark.cpu("sums depend on what is evaluated at once, and these choices are not clear")
def test_streams_side_by_side(llava):
    """More of them than may run, all begun, none read to its end before the next."""
    texts = [f"Hello {n}" for n in range(7)]
    whole = [llava.generate(text, **GREEDY).text for text in texts]
    streams = [llava.stream(text, **GREEDY) for text in texts]
    for _ in range(3):
        for stream in streams:
            next(stream)
    assert [stream.result().text for stream in streams] == whole


def test_a_stream_that_never_began_frees_when_dropped(llava):
    before = live_counts()["sampler"]
    stream = llava.stream("Hello", **GREEDY)
    with pytest.raises(BusyError, match="stream"):
        llava.close()
    assert live_counts()["sampler"] == before + 1
    del stream
    assert live_counts()["sampler"] == before
    assert llava.stats().requests == 0


def test_streams_dropped_in_the_middle_free(llava):
    for _ in range(9):
        next(llava.stream("Hello", temperature=0, max_tokens=None, logit_bias={EOS: -1e9}))
    assert llava.generate("Hello", **GREEDY).text
    settled(llava)
    stats = llava.stats()
    assert (stats.requests, stats.finished, stats.waiting) == (10, 1, 0)


def test_a_finished_stream_stays_finished(llava):
    first = llava.stream("Hello", **GREEDY)
    list(first)
    assert list(first) == []
    first.close()
    first.cancel()
    assert first.finish_reason == "length"


def test_an_answer_that_failed_fails_again(llava):
    for bad, error in ((b"junk", ImageDecodeError), ("/nowhere.png", FileNotFoundError)):
        stream = llava.stream("Hello", image=bad, **GREEDY)
        seen = []
        for use in (stream.result, stream.__next__, partial(list, stream), stream.result):
            with pytest.raises(error) as info:
                use()
            seen.append(str(info.value))
        assert len(set(seen)) == 1
        assert seen[0]


def test_an_error_that_is_kept_keeps_nothing_else(llava):
    stream = llava.stream("Hello", timeout=0.0, **GREEDY)
    with contextlib.suppress(TimeoutExpiredError):
        stream.result()
    kept = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert kept() is None
    finally:
        gc.enable()


def test_a_closed_stream_is_over(llava):
    stream = llava.stream("Hello", **GREEDY)
    next(stream)
    stream.close()
    stream.close()
    assert stream.finish_reason == "cancelled"
    assert list(stream) == []
    assert stream.result().usage.completion_tokens == 1


def test_threads_on_one_stream_are_refused_and_harm_nothing(llava):
    stream = llava.stream("Hello", temperature=0, max_tokens=60, logit_bias={EOS: -1e9})
    refused: list[str] = []

    def go_on():
        while stream.finish_reason is None:
            try:
                next(stream)
            except BusyError as exc:
                refused.append(str(exc))
            except StopIteration:
                return

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.finish_reason == "length"
    assert stream.text == llava.generate("Hello", temperature=0, max_tokens=60, logit_bias={EOS: -1e9}).text
    assert refused == [] or "another thread" in refused[0]
    assert llava.generate("Hello", **GREEDY).text


# -- cancelled


def test_cancel_ends_the_iteration_without_an_exception(llava):
    with llava.stream("Hello", **GREEDY) as stream:
        for n, _ in enumerate(stream):
            if n == 4:
                stream.cancel()
    assert (stream.finish_reason, stream.usage.completion_tokens) == ("cancelled", 5)
    assert llava.generate("Hello", **GREEDY).finish_reason == "length"


@pytest.mark.parametrize("by", ["stream", "token"])
def test_cancel_from_another_thread(llava, by):
    token = CancelToken()
    begun = threading.Event()
    stream = llava.stream("Hello", temperature=0, max_tokens=None, cancel=token, logit_bias={EOS: -1e9})

    def stop():
        begun.wait()
        (stream if by == "stream" else token).cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    for _ in stream:
        begun.set()
        thread.join(0.01)  # let the other one in
    thread.join()
    assert stream.finish_reason == "cancelled"
    assert 0 < stream.usage.completion_tokens < 400


def test_cancelled_before_it_began(llava):
    token = CancelToken()
    token.cancel()
    result = llava.generate("Hello", cancel=token, **GREEDY)
    assert (result.text, result.finish_reason) == ("", "cancelled")
    with pytest.raises(InvalidInputError, match="not both"):
        llava.stream("Hello", cancel=token, timeout=1)


def test_a_timeout_is_an_exception_and_keeps_the_text(llava):
    token = CancelToken(60)
    with llava.stream("Hello", timeout=0.0, **GREEDY) as stream, pytest.raises(TimeoutExpiredError):
        stream.result()
    assert (stream.text, stream.finish_reason) == ("", "cancelled")
    with pytest.raises(TimeoutExpiredError):
        stream.result()
    with llava.stream("Hello", temperature=0, max_tokens=None, timeout=3, logit_bias={EOS: -1e9}) as stream:
        pause = threading.Event()
        with pytest.raises(TimeoutError) as info:
            [pause.wait(0.5) for _ in stream]
    assert isinstance(info.value, CancelledError)
    assert stream.finish_reason == "cancelled"
    assert stream.usage.completion_tokens >= 1
    assert llava.generate("Hello", cancel=token, **GREEDY).text


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_during_generate(tmp_path):
    """In a child process: KeyboardInterrupt, and the object answers afterwards."""
    damage.good_text(tmp_path / "text.gguf", **{"llama.context_length": 4096})
    program = textwrap.dedent(f"""
        from llava_native import Llava
        with Llava({str(tmp_path / "text.gguf")!r}, n_ctx=4096, n_threads=1) as llava:
            try:
                with llava.stream("Hello", max_tokens=None, logit_bias={{{EOS}: -1e9}}) as stream:
                    next(stream)
                    print("begun", flush=True)
                    while True:
                        stream.result()
                        stream = llava.stream("Hello", max_tokens=None, logit_bias={{{EOS}: -1e9}})
            except KeyboardInterrupt:
                stream.close()
                result = llava.generate("Hello", max_tokens=3, logit_bias={{{EOS}: -1e9}})
                print("interrupted", result.finish_reason)
    """)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.read() == "interrupted length\n"
        assert child.wait(60) == 0
    assert not list(Path(tmp_path).glob("core*"))
