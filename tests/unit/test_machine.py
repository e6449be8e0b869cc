"""What the machine and its control groups have, from faked files."""

from __future__ import annotations

import pytest

from llava_native.machine import Room, cpu_features, default_flash_attn, gpus, host_room

MEMINFO = "MemTotal:        8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n"
GiB = 2**30


@pytest.fixture
def fake(tmp_path):
    """A function that writes files under a root."""

    def write(**files: str):
        for name, text in {"proc/meminfo": MEMINFO, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return lambda files: write(**files)


def test_no_group(fake):
    assert host_room(fake({"proc/self/cgroup": "0::/\n"})) == Room(8 * GiB, 4 * GiB, "this machine")


@pytest.mark.parametrize(
    "folder", ["sys/fs/cgroup", "sys/fs/cgroup/a/b", "sys/fs/cgroup/a", "sys/fs/cgroup/unified/a"]
)
def test_version_2_wherever_the_limit_is(fake, folder):
    root = fake(
        {
            "proc/self/cgroup": "0::/a/b\n",
            f"{folder}/memory.max": f"{3 * GiB}\n",
            f"{folder}/memory.current": f"{2 * GiB}\n",
            f"{folder}/memory.stat": f"anon 5\ninactive_file {GiB // 2}\nactive_file {GiB // 2}\n",
        }
    )
    assert host_room(root) == Room(3 * GiB, 2 * GiB, "its control group")


def test_version_2_without_a_limit(fake):
    root = fake({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"})
    assert host_room(root) == Room(8 * GiB, 4 * GiB, "this machine")


def test_version_1(fake):
    folder = "sys/fs/cgroup/memory/x"
    root = fake(
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/x\n0::/\n",
            f"{folder}/memory.limit_in_bytes": f"{GiB}",
            f"{folder}/memory.usage_in_bytes": f"{GiB // 2}",
            f"{folder}/memory.stat": "cache 1\ntotal_inactive_file 0\ntotal_active_file 1024\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        }
    )
    assert host_room(root) == Room(GiB, GiB // 2 + 1024, "its control group")


def test_the_tightest_counts(fake):
    root = fake(
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": str(64 * GiB),
            "sys/fs/cgroup/a/memory.current": "0",
        }
    )
    assert host_room(root) == Room(8 * GiB, 4 * GiB, "this machine")


@pytest.mark.parametrize("text", ["", "nonsense", "0::", ":::::", "4:memory:/../../etc"])
def test_strange_files(fake, text):
    assert host_room(fake({"proc/self/cgroup": text})) == Room(8 * GiB, 4 * GiB, "this machine")


def test_this_machine():
    room = host_room()
    assert room is not None
    assert 0 < room.free <= room.total


def test_gpus_are_those_with_memory_of_their_own_or_without():
    found = [{"name": n, "type": t} for n, t in (("A", "gpu"), ("B", "igpu"), ("C", "accel"), ("CPU", "cpu"))]
    assert [device["name"] for device in gpus(found)] == ["A", "B"]


def cpu(**features):
    return {"name": "CPU", "type": "cpu", "features": features}


def test_features_are_the_cpus_and_not_those_that_are_off():
    found = [{"name": "A", "type": "gpu", "features": {"FAST": "1"}}, cpu(AVX2="1", AMX_INT8="0", NEON="")]
    assert cpu_features(found) == {"AVX2"}


@pytest.mark.parametrize(
    ("found", "type_k", "type_v", "expected"),
    [
        ([cpu(FLASH_ATTN="1")], "f16", "f16", True),
        ([cpu(FLASH_ATTN="1")], "q8_0", "bf16", True),
        ([cpu(FLASH_ATTN="1")], "f32", "f16", False),
        ([cpu(NEON="1")], "f16", "f16", False),
        ([cpu(NEON="1")], "f16", "q8_0", True),
        ([{"name": "A", "type": "gpu"}, cpu(FLASH_ATTN="1")], "f16", "f16", None),
    ],
)
def test_flash_attention_by_default(found, type_k, type_v, expected):
    assert default_flash_attn(found, type_k, type_v) is expected
