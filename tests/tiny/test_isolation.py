"""Llava(isolate=True): a child that dies at any stage, a parent that dies, and what is left of them."""

from __future__ import annotations

import base64
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.child import TESTS, outcome

from llava_native import ImageEncoder, Llava, Model
from llava_native.errors import (
    CancelledError,
    ClosedError,
    GrammarError,
    InvalidInputError,
    ModelFormatError,
    NativeAbort,
    NotEnoughMemoryError,
    PromptTooLongError,
)
from llava_native.isolation import process
from llava_native.isolation.engine import IsolatedEngine

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

GREEDY = {"temperature": 0, "max_tokens": 8}
FOREVER = {"temperature": 0, "max_tokens": None, "logit_bias": {2: -1e9}}
WAIT_S = 10.0


def parent_of(pid: int) -> int | None:
    """Return a live process's parent; a zombie of ours counts, one of init's does not."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" and int(parent) != os.getpid() else int(parent)


def children() -> list[int]:
    """Return the processes that this one started and has not reaped."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if parent_of(pid) == os.getpid()]


def until(condition) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def n_open() -> int:
    """Return how many descriptors are open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No process, no zombie, no descriptor."""
    gc.collect()
    before = n_open()
    yield
    until(lambda: not children())
    gc.collect()
    until(lambda: n_open() <= before)


@pytest.fixture
def llava(pair):
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1, isolate=True) as opened:
        yield opened


@pytest.fixture
def slow(pair, slow_mmproj):
    """One whose encodes take half a second, and whose long prompts seconds."""
    with Llava(
        pair.text.path, slow_mmproj.path, n_ctx=6000, n_batch=512, n_ubatch=1, n_threads=1, isolate=True
    ) as opened:
        yield opened


def pid_of(llava: Llava) -> int:
    return llava._engine.pid


# -- the child dies


def test_killed_while_loading(pair):
    def kill():
        until(children)
        time.sleep(0.05)
        for pid in children():
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(NativeAbort, match="killed by SIGKILL"):
        Llava(pair.text.path, pair.mmproj.path, isolate=True)
    thread.join()


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode"])
def test_killed_at_a_stage(slow, picture, stage):
    ask = {"encode": {"image": picture}, "prefill": {}, "decode": {}}[stage]
    prompt = "word " * 5000 if stage == "prefill" else "Hello"
    expected = slow.generate("Hello", **GREEDY).text
    pid = pid_of(slow)
    stream = slow.stream(prompt, **ask, **FOREVER)
    if stage == "decode":
        next(stream)
    else:
        stream.start()
        time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(NativeAbort, match="killed by SIGKILL") as caught:
        for _ in stream:
            pass
    assert caught.value.code == -signal.SIGKILL
    until(lambda: parent_of(pid) is None)
    assert slow.generate("Hello", **GREEDY).text == expected
    assert pid_of(slow) != pid


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_whatever_the_signal(llava, number):
    stream = llava.stream("Hello", **FOREVER)
    next(stream)
    os.kill(pid_of(llava), number)
    # while threads run, Python's own report about an abort may itself end in a SIGSEGV
    said = "SIGABRT|Fatal Python error: Aborted" if number == signal.SIGABRT else number.name
    with pytest.raises(NativeAbort, match=said) as caught:
        stream.result()
    if number != signal.SIGTERM:
        assert any("Fatal Python error" in line for line in caught.value.log)  # with the stack
    assert llava.generate("Hello", **GREEDY).text


def test_all_callers_are_told_and_a_question_too(llava):
    streams = [llava.stream(f"Number {n}", **FOREVER) for n in range(6)]
    for stream in streams[:3]:
        next(stream)
    for stream in streams[3:]:
        stream.start()
    os.kill(pid_of(llava), signal.SIGSTOP)
    errors: list[BaseException] = []

    def ask():
        try:
            llava.model.tokenize("one")
        except NativeAbort as exc:
            errors.append(exc)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    os.kill(pid_of(llava), signal.SIGKILL)
    thread.join()
    assert len(errors) == 1
    for stream in streams:
        with pytest.raises(NativeAbort):
            for _ in stream:
                pass
    assert llava.ask(np.zeros((9, 9, 3), np.uint8), ["a", "b"], **GREEDY)


def test_a_map_goes_on_after_a_death(llava):
    images = [np.full((8, 8, 3), n, np.uint8) for n in range(20)]
    items = llava.map(images, "What?", **GREEDY)
    found = [next(items)]
    os.kill(pid_of(llava), signal.SIGKILL)
    found += items
    assert [item.index for item in found] == list(range(20))
    errors = [item.error for item in found if item.error is not None]
    assert errors
    assert all(isinstance(error, NativeAbort) for error in errors)
    assert len(errors) < 20


def test_a_model_file_that_is_cut_short_while_mapped(pair, tmp_path):
    text = Path(shutil.copy(pair.text.path, tmp_path / "text.gguf"))
    whole = text.read_bytes()
    with Llava(text, n_ctx=256, n_threads=1, isolate=True) as llava:
        expected = llava.generate("Hello", **GREEDY).text
        os.truncate(text, len(whole) // 2)
        with pytest.raises(NativeAbort, match="SIGBUS"):
            llava.generate("Hello again", **GREEDY)
        with pytest.raises(ModelFormatError, match="cut short"):
            llava.generate("Hello", **GREEDY)
        text.write_bytes(whole)
        assert llava.generate("Hello", **GREEDY).text == expected


def test_a_child_that_talks_nonsense_is_ended(pair, monkeypatch):
    code = "import os, sys, time; os.write(int(sys.argv[1]), b'x' * 99); time.sleep(60)"
    monkeypatch.setattr(process, "_CODE", code)
    with pytest.raises(NativeAbort, match="a frame of"):
        Llava(pair.text.path, isolate=True)


# -- the parent

PARENT = """
    import os, sys, time
    from llava_native import Llava
    llava = Llava(sys.argv[1], sys.argv[2], n_ctx=256, n_threads=1, isolate=True)
    stream = llava.stream("Hello", max_tokens=None, logit_bias={2: -1e9})
    next(stream)
    if sys.argv[3] == "forks" and os.fork() == 0:
        time.sleep(20)  # this one has the socket, too
        os._exit(0)
    print(llava._engine.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["plain", "forks"])
def test_a_killed_parent_takes_its_child_along(pair, how):
    import textwrap

    files = map(str, (pair.text.path, pair.mmproj.path))
    command = [sys.executable, "-c", textwrap.dedent(PARENT), *files, how]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(TESTS)},
        start_new_session=True,
    ) as parent:  # fmt: skip
        try:
            pid = int(parent.stdout.readline())
            assert parent_of(pid) == parent.pid
            parent.kill()
            until(lambda: parent_of(pid) is None)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


@pytest.mark.parametrize("isolate", [False, True])
def test_the_interpreter_ends_with_a_stream_open(pair, isolate):
    code = """
        import sys
        from llava_native import Llava
        llava = Llava(sys.argv[1], n_ctx=256, n_threads=1, isolate=sys.argv[2] == "True")
        stream = llava.stream("Hello", max_tokens=None, logit_bias={2: -1e9})
        next(stream)
        print("end")
    """
    assert outcome(code, pair.text.path, isolate, strict=False, timeout=60) == (0, "end", "")


def test_after_a_fork_only_the_parent_may_ask(pair):
    code = """
        import os, sys
        from llava_native import Llava
        from llava_native.errors import ForkError
        with Llava(sys.argv[1], n_ctx=256, n_threads=1, isolate=True) as llava:
            stream = llava.stream("Hello", temperature=0, max_tokens=40)
            next(stream)
            pid = os.fork()
            if pid == 0:
                try:
                    llava.generate("Hello")
                except ForkError:
                    stream.close()  # says nothing to the parent's child
                    llava.close()
                    os._exit(7)
                os._exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stream.result().finish_reason)
    """
    status, out, err = outcome(code, pair.text.path, strict=False, timeout=60)
    assert (status, err) == (0, "")
    assert out.split()[0] == "7"
    assert out.split()[1] in ("length", "eog")


def test_dropped_without_close(pair):
    llava = Llava(pair.text.path, n_ctx=256, n_threads=1, isolate=True)
    assert children() == [pid_of(llava)]
    next(llava.stream("Hello", **FOREVER))
    del llava
    gc.collect()
    until(lambda: not children())


# -- the rest of the face


def test_what_it_cannot_take(pair):
    with Model(pair.text.path) as model, pytest.raises(InvalidInputError, match="must be a path"):
        Llava(model, isolate=True)
    with pytest.raises(NotEnoughMemoryError, match="memory_limit"):
        Llava(pair.text.path, isolate=True, memory_limit=2**20)
    with pytest.raises(FileNotFoundError) as caught:
        Llava("/nowhere.gguf", isolate=True)
    assert caught.value.filename == "/nowhere.gguf"
    with pytest.raises(CancelledError):
        Llava(pair.text.path, isolate=True, progress=lambda _: False)


def test_stand_ins(llava, pair, picture):
    with Model(pair.text.path) as model, ImageEncoder(pair.mmproj.path, n_threads=1) as encoder:
        ids = model.tokenize("Hello <|end|>", parse_special=True)
        assert llava.model.tokenize("Hello <|end|>", parse_special=True) == ids
        assert llava.model.detokenize(ids) == model.detokenize(ids)
        assert llava.model.token_bytes(ids[1]) == model.token_bytes(ids[1])
        assert llava.model.metadata == model.metadata
        assert llava.model.is_eog(model.eos)
        rows = llava.encoder.encode(picture)
        assert np.array_equal(np.asarray(rows), np.asarray(encoder.encode(picture)))
        assert rows.fingerprint == encoder.fingerprint
    png = io.BytesIO()
    picture.save(png, "PNG")
    url = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    texts = {llava.generate("What?", image=image, **GREEDY).text for image in (picture, rows, url)}
    assert len(texts) == 1


def test_what_stand_ins_refuse(llava):
    with pytest.raises(InvalidInputError):
        llava.model.token_bytes(10**6)
    with pytest.raises(AttributeError, match="isolate=True"):
        llava.context.eval([1])


def test_a_short_prompt_is_tokenised_with_its_request(llava, picture, monkeypatch):
    with Llava(llava.model.path, llava.encoder.path, n_ctx=256, n_threads=1) as here:
        expected = here.generate("Was ist das? <|end|>", image=picture, **GREEDY)
    asked, call = [], IsolatedEngine.call
    monkeypatch.setattr(IsolatedEngine, "call", lambda *a, **data: asked.append(a[1]) or call(*a, **data))
    found = llava.generate("Was ist das? <|end|>", image=picture, **GREEDY)
    assert (found.text, found.usage) == (expected.text, expected.usage)
    assert not asked
    llava.generate("word " * 60, **GREEDY)  # more bytes than tokens fit, but not more tokens
    assert asked == ["pieces"]
    with pytest.raises(PromptTooLongError, match=r"n_ctx=256 must also hold") as caught:
        llava.stream("word " * 300)
    assert caught.value.n_ctx == 256


def test_a_short_prompt_that_does_not_fit_after_all(llava, monkeypatch):
    monkeypatch.setattr(llava.planner, "_n_ctx", 10_000)
    stream = llava.stream("word " * 300)
    with pytest.raises(PromptTooLongError) as caught:
        stream.result()
    assert caught.value.n_ctx == 256
    assert llava.generate("Hello", **GREEDY).text


def test_a_sampler_that_cannot_be_made_is_refused_at_once(llava):
    with pytest.raises(GrammarError):
        llava.stream("Hello", grammar="root ::= nothing")
    llava.stream("Hello", grammar='root ::= "yes"').close()  # never begun: the child frees what it made
    assert llava.generate("Hello", grammar='root ::= "yes"', **GREEDY).text == "yes"


def test_closed(pair):
    llava = Llava(pair.text.path, n_ctx=256, n_threads=1, isolate=True)
    llava.close()
    llava.close()
    for call in (lambda: llava.generate("Hello"), lambda: llava.model.tokenize("a"), llava.stats):
        with pytest.raises(ClosedError):
            call()
