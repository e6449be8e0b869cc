"""An encode on as many threads as it is told to use."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llava_native import ImageEncoder
from llava_native.errors import InvalidInputError


def threads_during(call):
    """Return how many threads this process had meanwhile, at most."""
    time.sleep(0.1)  # those of a call before are gone by then
    seen, over = [], threading.Event()

    def watch():
        while not over.is_set():
            seen.append(len(list(Path("/proc/self/task").iterdir())))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        over.set()
        watcher.join()
    return max(seen)


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_each_encode_may_have_another_number_of_threads(slow_mmproj, picture):
    with ImageEncoder(slow_mmproj.path, n_threads=3, use_gpu=False) as encoder:
        pixels, rows = encoder.prepare(picture), {}

        def encode(n):
            rows[n] = encoder.encode_pixels(pixels, n_threads=n)

        counted = [threads_during(lambda n=n: encode(n)) for n in (1, None, 2, 1)]
        assert [n - counted[0] for n in counted] == [0, 2, 1, 0]
        assert encoder.n_threads == 3
        np.testing.assert_allclose(np.asarray(rows[1]), np.asarray(rows[None]), atol=1e-5)


@pytest.mark.parametrize("n", [0, 513, -1])
def test_numbers_of_threads_that_make_no_sense(pair, picture, n):
    with ImageEncoder(pair.mmproj.path) as encoder:
        with pytest.raises(InvalidInputError, match="n_threads must be 1 to 512"):
            encoder.encode_pixels(encoder.prepare(picture), n_threads=n)
        encoder.encode(picture)
