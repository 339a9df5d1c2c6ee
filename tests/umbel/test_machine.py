"""What this process may use: the machine's memory, or what a container, a service or a shell leaves of it."""

import resource
import subprocess
import sys

import psutil
import pytest

from umbel import machine
from umbel.machine import memory_limit

GIB = 1 << 30
ASK = "from umbel.machine import memory_limit; print(*memory_limit())"


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """An empty tree of control groups, and what says which of them is this process's."""
    own = tmp_path / "own"
    own.write_text("")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_OWN_CGROUP", own)

    def write(folder, limit, used, cached, old=False):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        for name, value in zip(names, (limit, used), strict=True):
            (place / name).write_text(f"{value}\n")
        (place / "memory.stat").write_text(f"anon 1\n{'total_cache' if old else 'file'} {cached}\nfile_mapped 9\n")
        return own

    return write


def test_the_machine_alone(groups):
    total, available = memory_limit()
    assert total == psutil.virtual_memory().total
    assert 0 < available <= total


def test_a_container_s_limit_less_what_it_holds_and_cannot_give_back(groups):
    groups(".", GIB, GIB // 2, GIB // 4)
    assert memory_limit() == (GIB, GIB - GIB // 4)
    groups(".", "max", GIB // 2, 0)
    assert memory_limit()[0] > GIB


def test_a_service_s_limit_and_those_above_it(groups):
    own = groups("system.slice/umbel.service", GIB, 0, 0)
    own.write_text("0::/system.slice/umbel.service\n")
    assert memory_limit() == (GIB, GIB)
    groups("system.slice", GIB // 2, GIB, 0)
    assert memory_limit() == (GIB // 2, 0)


def test_control_groups_of_version_1(groups):
    own = groups("memory/job", GIB, GIB // 2, GIB // 2, old=True)
    own.write_text("3:cpu,cpuacct:/else\n5:memory:/job\n")
    assert memory_limit() == (GIB, GIB)
    own.write_text("5:memory:/../..\nnonsense\n")
    assert memory_limit()[0] > GIB


def test_the_address_space_counts():
    def narrow():
        resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))

    found = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, preexec_fn=narrow)
    total, available = map(int, found.stdout.split())
    assert total == GIB
    assert 0 < available < GIB
