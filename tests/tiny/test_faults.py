"""The world at fault: full disks, folders that go away, signals, other starts of a process, sudden exits."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import textwrap

import pytest
from support.child import outcome

ANSWER = """
    import sys
    from llava_native import Llava
    from PIL import Image
    picture = Image.new("RGB", (30, 20), "teal")
    def open_llava(**options):
        return Llava(sys.argv[1], sys.argv[2], n_ctx=256, n_threads=1, **options)
    def describe(llava):
        return llava.describe(picture, max_tokens=6)
"""


def run(pair, code, *args):
    """Run code after `ANSWER` in a child; return its exit status, stdout and stderr."""
    whole = textwrap.dedent(ANSWER) + textwrap.dedent(code)
    return outcome(whole, pair.text.path, pair.mmproj.path, *args)


def test_a_full_disk_costs_the_cache_and_not_the_answer(pair, tmp_path):
    code = """
        import logging, pathlib, resource
        logging.basicConfig(level=logging.WARNING)
        with open_llava() as llava:
            expected = describe(llava)
        folder = pathlib.Path(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
        with open_llava(cache_dir=folder) as llava:
            assert describe(llava) == expected
            chat = llava.chat()
            with chat.send("x", picture, max_tokens=4) as stream:
                stream.result()
            try:
                chat.save(folder / "talk.chat")
            except OSError as exc:
                print("not saved")
        print(*[path.name for path in folder.iterdir()])
    """
    status, out, err = run(pair, code, tmp_path / "cache")
    assert (status, out) == (0, "not saved"), err
    assert "could not be cached" in err


def test_a_cache_folder_that_goes_away(pair, tmp_path):
    code = """
        import shutil
        with open_llava() as llava:
            expected = describe(llava)
        with open_llava(cache_dir=sys.argv[3], prefix_cache=0, embedding_cache=0) as llava:
            assert describe(llava) == expected
            shutil.rmtree(sys.argv[3])
            assert describe(llava) == expected
    """
    assert run(pair, code, tmp_path / "cache")[0] == 0


def describe_in(method, files):
    """Answer in a process that `multiprocessing` starts."""
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        return pool.apply(_describe, files)


def _describe(text, mmproj):
    from PIL import Image

    from llava_native import Llava

    with Llava(text, mmproj, n_ctx=256, n_threads=1) as llava:
        return llava.describe(Image.new("RGB", (30, 20), "teal"), max_tokens=6)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_multiprocessing_answer(pair, method):
    files = (str(pair.text.path), str(pair.mmproj.path))
    assert describe_in(method, files) == _describe(*files)


@pytest.mark.parametrize(
    "code",
    [
        "stream = llava.stream('x', image=picture, max_tokens=None)",
        "stream = llava.stream('x', image=picture, max_tokens=None); next(stream)",
        "import threading; threading.Thread(target=describe, args=(llava,), daemon=True).start()",
        "chat = llava.chat(); stream = chat.send('x', picture); next(stream)",
    ],
)
def test_an_exit_in_the_middle_is_silent(pair, code):
    status, out, err = run(pair, f"llava = open_llava()\n{code}\n")
    assert (status, out) == (0, ""), err
    assert "Traceback" not in err
    assert "abort" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("stage", ["load", "encode", "answer"])
def test_signals_end_the_host_at_once(pair, number, stage):
    code = """
        stage = sys.argv[3]
        def say(*_):
            print("now", flush=True)
            return True
        if stage == "load":
            while True:
                open_llava(progress=say).close()
        llava = open_llava(embedding_cache=0, prefix_cache=0)
        while True:
            if stage == "encode":
                llava.encoder.encode(picture)
            else:
                describe(llava)
            say()
    """
    whole = textwrap.dedent(ANSWER) + textwrap.dedent(code)
    command = [sys.executable, "-c", whole, str(pair.text.path), str(pair.mmproj.path), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "now\n"
        host.send_signal(number)
        _, err = host.communicate(timeout=30)
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in err
    else:
        assert host.returncode == -number
    assert "aborted" not in err
