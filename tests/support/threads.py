"""Threads that run only when the other one lets go of the GIL."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_switching() -> Iterator[None]:
    """Keep Python from taking the GIL away from a thread: it passes on only where it is given up."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(600)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def ticks_during(call: Callable[[], object]) -> tuple[int, float]:
    """Return how often another thread ran during `call`, and the seconds that it took.

    The other thread needs the GIL for each tick, and gets it only where `call` gives it up.
    """
    ticks: list[float] = []
    ready, stop = threading.Event(), threading.Event()

    def tick() -> None:
        ready.set()
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    with no_switching():
        thread = threading.Thread(target=tick)
        thread.start()
        try:
            ready.wait()
            start = time.perf_counter()
            call()
            end = time.perf_counter()
        finally:
            stop.set()
            thread.join()
    return sum(start < moment < end for moment in ticks), end - start


class Background:
    """Run `call` again and again in a thread, until `stop` or until it raises.

    Under `no_switching` the maker of this runs only where `call` gives up the GIL, so that the thread is
    inside the library whenever the maker looks, however late it is woken.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: Exception | None = None
        self._stop = False
        entered = threading.Event()

        def run() -> None:
            entered.set()
            try:
                while not self._stop:
                    call()
            except Exception as exc:
                self.error = exc

        self._thread = threading.Thread(target=run)
        self._thread.start()
        entered.wait()

    def stop(self) -> None:
        """Wait until the running `call` has ended."""
        self._stop = True
        self._thread.join()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `true` returns True."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.002)


def settled(llava: Any) -> None:
    """Wait until nothing runs or waits in a Llava, and no sampler is left."""
    from llava_native._native import live_counts

    gc.collect()
    until(lambda: llava.stats().running + llava.stats().waiting == 0)
    until(lambda: live_counts()["sampler"] == 0)
