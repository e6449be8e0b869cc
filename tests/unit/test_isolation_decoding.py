"""Images that a process of their own prepares: which ones, that they come out the same, and how it ends."""

from __future__ import annotations

import io
import multiprocessing.spawn
import os
import signal
import subprocess
import threading

import numpy as np
import pytest
from PIL import Image, features
from support.threads import until

from llava_native import images
from llava_native.errors import CancelledError, ImageDecodeError
from llava_native.images import llava_pixels, rgb_pixels
from llava_native.isolation import decoding
from llava_native.isolation.decoding import needs_process, prepare_apart

KINDS = [
    pytest.param("JPEG2000", (200, 150), id="jpeg2000"),
    pytest.param("WEBP", (1600, 1400), id="webp"),
    pytest.param(
        "AVIF",
        (1200, 1000),
        id="avif",
        marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"),
    ),
]


def encoded(kind, size, **options):
    noise = np.random.default_rng(3).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size).save(
        file, kind, **({"speed": 10} if kind == "AVIF" else {}), **options
    )
    return file.getvalue()


def always():
    return True


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("is_path", [False, True])
def test_the_pixels_are_the_same(tmp_path, kind, size, is_path):
    source = encoded(kind, size)
    if is_path:
        path = tmp_path / "picture"
        path.write_bytes(source)
        source = path
    assert needs_process(source)
    apart = prepare_apart(source, 96, always)
    here = llava_pixels(source, 96)
    assert (apart.width, apart.height) == (here.width, here.height) == (96, 96)
    assert bytes(apart.data) == bytes(here.data)
    assert apart.data.readonly
    assert bytes(prepare_apart(source, None, always).data) == bytes(rgb_pixels(source).data)


@pytest.mark.parametrize(
    "source",
    [
        encoded("JPEG2000", (60, 50)),
        encoded("WEBP", (600, 500)),
        encoded("JPEG", (4000, 3000)),
        encoded("PNG", (2000, 2000)),
        b"no image",
        b"",
        "no-such-file.jp2",
        np.zeros((3000, 3000, 3), np.uint8),
        Image.new("RGB", (3000, 3000)),
        None,
    ],
    ids=["jpeg2000", "webp", "jpeg", "png", "text", "nothing", "missing", "array", "pillow", "none"],
)
def test_what_needs_none(source):
    assert not needs_process(source)


def test_a_long_file_is_not_opened(monkeypatch):
    source = encoded("WEBP", (600, 500)) + bytes(2**20)
    monkeypatch.setattr(images, "_identify", None)
    assert needs_process(source)


def test_another_program_is_not_started(monkeypatch):
    source = encoded("JPEG2000", (200, 150))
    assert needs_process(source)
    for program in ("/usr/bin/uwsgi", b"/opt/app/photos", "", None):
        monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda program=program: program)
        assert not needs_process(source)


def test_a_damaged_image_is_the_same_error():
    source = encoded("JPEG2000", (200, 150))[:400]
    assert needs_process(source)
    with pytest.raises(ImageDecodeError) as here:
        llava_pixels(source, 96)
    with pytest.raises(ImageDecodeError) as apart:
        prepare_apart(source, 96, always)
    assert str(apart.value) == str(here.value)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jp2"):
        prepare_apart(tmp_path / "gone.jp2", 96, always)


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


def test_it_ends_when_nobody_waits(started):
    with pytest.raises(CancelledError):
        prepare_apart(b"image", 96, lambda: not started)
    assert started[0].returncode == -signal.SIGKILL


def test_a_process_that_is_killed(started):
    errors = []

    def prepare():
        try:
            prepare_apart(b"image", 96, always)
        except ImageDecodeError as exc:
            errors.append(str(exc))

    thread = threading.Thread(target=prepare)
    thread.start()
    until(lambda: started)
    os.kill(started[0].pid, signal.SIGSEGV)
    thread.join(30)
    assert errors == ["the process that decoded the image ended with -11"]


def test_a_system_that_starts_none(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert prepare_apart(encoded("JPEG2000", (200, 150)), 96, always) is None


def test_the_limits_are_those_of_formats_that_there_are():
    assert set(decoding._PIXELS) <= set(images._FORMATS)
