"""How many threads are used by default."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llava_native import threads
from llava_native.threads import default_n_threads


@pytest.fixture
def machine(monkeypatch):
    """A machine of our own: CPUs that we may use, their cores, and the container's quota."""

    def make(siblings, cpu_max=None):
        files = {
            f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text + "\n"
            for cpu, text in siblings.items()
            if text is not None
        }
        if cpu_max is not None:
            files["/sys/fs/cgroup/cpu.max"] = cpu_max

        def read_text(path):
            if str(path) not in files:
                raise FileNotFoundError(str(path))
            return files[str(path)]

        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(siblings), raising=False)
        monkeypatch.setattr(Path, "read_text", read_text)
        default_n_threads.cache_clear()
        return default_n_threads()

    yield make
    default_n_threads.cache_clear()


@pytest.mark.parametrize(
    ("siblings", "cpu_max", "expected"),
    [
        ({0: "0"}, None, 1),
        ({0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}, None, 2),  # two threads a core
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, None, 2),
        ({4: "0,4", 5: "1,5"}, None, 2),  # the affinity leaves one thread of each core
        ({0: "0,4", 4: "0,4"}, None, 1),
        ({0: None, 1: None, 2: None}, None, 3),  # no topology: every CPU is a core
        ({i: str(i) for i in range(8)}, "200000 100000\n", 2),
        ({i: str(i) for i in range(8)}, "250000 100000\n", 3),  # rounded up
        ({i: str(i) for i in range(8)}, "10000 100000\n", 1),
        ({i: str(i) for i in range(8)}, "max 100000\n", 8),
        ({i: str(i) for i in range(8)}, "nonsense\n", 8),
        ({i: str(i) for i in range(8)}, "", 8),
        ({i: str(i) for i in range(2)}, "800000 100000\n", 2),
    ],
)
def test_physical_cores_within_affinity_and_quota(machine, siblings, cpu_max, expected):
    assert machine(siblings, cpu_max) == expected


@pytest.mark.parametrize(("cpus", "expected"), [(6, 6), (None, 1), (0, 1)])
def test_without_affinity_every_cpu_counts(monkeypatch, cpus, expected):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    default_n_threads.cache_clear()
    assert default_n_threads() == expected
    default_n_threads.cache_clear()


def test_it_is_asked_once(monkeypatch):
    default_n_threads.cache_clear()
    first = default_n_threads()
    monkeypatch.setattr(threads, "_quota", lambda: pytest.fail("asked again"))
    assert default_n_threads() == first >= 1
