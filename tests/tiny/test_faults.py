"""The world at fault: full disks, folders that go away, signals, other starts of a process, sudden exits."""

from __future__ import annotations

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


def run(pair, code, *args, **options):
    """Run code after `ANSWER` in a child; return its exit status, stdout and stderr."""
    whole = textwrap.dedent(ANSWER) + textwrap.dedent(code)
    return outcome(whole, pair.text.path, pair.mmproj.path, *args, **options)


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


PROGRAM = """
import multiprocessing, sys
from PIL import Image
from llava_native import Llava

def describe(text, mmproj):
    with Llava(text, mmproj, n_ctx=256, n_threads=1) as llava:
        return llava.describe(Image.new("RGB", (30, 20), "teal"), max_tokens=6)

if __name__ == "__main__":
    expected = describe(*sys.argv[2:])
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        assert pool.starmap(describe, [sys.argv[2:]] * 4) == [expected] * 4
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_multiprocessing_answer(pair, method, tmp_path):
    # in a program of its own: multiprocessing leaves helpers behind until the interpreter ends
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, program, method, pair.text.path, pair.mmproj.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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
        try:
            _, err = host.communicate(timeout=30)
        finally:
            host.kill()  # where it did not end by itself
    if number == signal.SIGINT:
        assert "KeyboardInterrupt" in err
    else:
        assert host.returncode == -number
    assert "aborted" not in err


@pytest.mark.parametrize("isolate", [False, True], ids=["here", "isolated"])
def test_an_exit_ends_daemon_threads_in_silence(pair, isolate):
    code = f"""
        import threading
        llava = open_llava(isolate={isolate})
        def forever():
            while True:
                llava.generate("x", temperature=0, max_tokens=100, logit_bias={{2: -1e9}})
        for _ in range(2):
            threading.Thread(target=forever, daemon=True).start()
        while llava.stats().running < 2:
            pass
    """
    assert run(pair, code, strict=False) == (0, "", "")
