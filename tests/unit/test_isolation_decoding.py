"""Images that a process of their own prepares: which ones, that they come out the same, and how it ends."""

from __future__ import annotations

import io
import multiprocessing.spawn
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from llava_native.errors import CancelledError, ImageDecodeError
from llava_native.images import MAX_BYTES, llava_pixels, rgb_pixels
from llava_native.isolation import decoding
from llava_native.isolation.decoding import needs_process, prepare_apart
from llava_native.sources import open_source

KINDS = [
    pytest.param("JPEG2000", (200, 150), id="jpeg2000"),
    pytest.param("WEBP", (1600, 1400), id="webp"),
    pytest.param("PNG", (3000, 2800), id="png"),
    pytest.param(
        "AVIF",
        (1200, 1000),
        id="avif",
        marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"),
    ),
]


def encoded(kind, size):
    noise = np.random.default_rng(3).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(file, kind, **({"speed": 10} if kind == "AVIF" else {}))
    return file.getvalue()


@pytest.fixture
def jp2():
    with opened(encoded("JPEG2000", (200, 150))) as source:
        yield source


@contextmanager
def opened(image):
    source = open_source(image, MAX_BYTES)
    with source.file:
        yield source


def always():
    return True


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("is_path", [False, True])
def test_the_pixels_are_the_same(tmp_path, kind, size, is_path):
    image = encoded(kind, size)
    if is_path:
        path = tmp_path / "picture"
        path.write_bytes(image)
        image = path
    with opened(image) as source:
        assert needs_process(source)
        apart = prepare_apart(source, 96, always)
        whole = prepare_apart(source, None, always)
        here = llava_pixels(source, 96)  # as after a process that did not get to work
    assert (apart.width, apart.height) == (here.width, here.height) == (96, 96)
    assert bytes(apart.data) == bytes(here.data)
    assert apart.data.readonly
    assert bytes(whole.data) == bytes(rgb_pixels(image).data)


@pytest.mark.parametrize(
    "image",
    [
        encoded("JPEG2000", (60, 50)),
        encoded("WEBP", (600, 500)),
        encoded("JPEG", (4000, 3000)),
        encoded("PNG", (2000, 2000)),
        encoded("BMP", (2000, 2000)),
        b"no image",
        encoded("JPEG2000", (200, 150))[:20],
    ],
    ids=["jpeg2000", "webp", "jpeg", "png", "bmp", "text", "header"],
)
def test_what_needs_none(image):
    with opened(image) as source:
        assert not needs_process(source)


def test_a_long_file_is_not_opened(monkeypatch):
    monkeypatch.setattr(decoding, "identify", None)
    with opened(encoded("WEBP", (600, 500)) + bytes(2**20)) as source:
        assert needs_process(source)


def test_another_program_is_not_started(monkeypatch, jp2):
    assert needs_process(jp2)
    for program in ("/usr/bin/uwsgi", b"/opt/app/photos", "", None):
        monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda program=program: program)
        assert not needs_process(jp2)


def test_a_damaged_image_is_the_same_error(tmp_path):
    path = tmp_path / "bad.jp2"
    path.write_bytes(encoded("JPEG2000", (200, 150))[:400])
    with pytest.raises(ImageDecodeError) as here:
        llava_pixels(path, 96)
    with opened(path) as source, pytest.raises(ImageDecodeError) as apart:
        prepare_apart(source, 96, always)
    assert str(apart.value) == str(here.value)


def test_nothing_is_taken_from_the_working_directory(tmp_path, monkeypatch, jp2):
    for name in ("json", "PIL", "llava_native"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", Path("ignored"), b"ignored", *sys.path])
    assert prepare_apart(jp2, 96, always).width == 96
    assert not (tmp_path / "ran").exists()


def test_a_process_that_does_not_get_to_work(monkeypatch, jp2):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])  # and so without Pillow
        assert prepare_apart(jp2, 96, always) is None
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONHOME", "/nowhere")
        assert prepare_apart(jp2, 96, always) is None
    monkeypatch.setattr(decoding, "_CODE", "import os; os.kill(os.getpid(), 9)")
    assert prepare_apart(jp2, 96, always) is None


def test_without_files_to_open(monkeypatch, jp2):
    def refuse():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(decoding, "new_file", refuse)
    assert prepare_apart(jp2, 96, always) is None


def test_a_system_that_starts_none(monkeypatch, jp2):
    def refuse(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert prepare_apart(jp2, 96, always) is None


@pytest.fixture
def started(monkeypatch):
    """The processes that are started, each of which sleeps."""
    processes = []
    popen = subprocess.Popen

    def start(arguments, **options):
        processes.append(popen([arguments[0], "-c", "import time; time.sleep(60)"], **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def test_it_ends_when_nobody_waits(started, jp2):
    with pytest.raises(CancelledError):
        prepare_apart(jp2, 96, lambda: not started)
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("end", "name"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "signal 40"),
        ("os._exit(7)", "status 7"),
    ],
)
def test_a_process_that_an_image_kills(monkeypatch, jp2, end, name):
    code = "import os, signal; from llava_native.isolation import decoding as d; "
    code += f"d._prepare = lambda *_: {end}; d.main(*map(int, sys.argv[1:]))"
    monkeypatch.setattr(decoding, "_CODE", code)
    with pytest.raises(ImageDecodeError, match=f"cannot be decoded: {name} ended the process that did"):
        prepare_apart(jp2, 96, always)


def test_ctrl_c_is_not_for_it(started, jp2):
    groups = []
    with pytest.raises(CancelledError):
        prepare_apart(jp2, 96, lambda: groups.append(os.getpgid(started[0].pid)))
    assert groups != [os.getpgid(0)]
