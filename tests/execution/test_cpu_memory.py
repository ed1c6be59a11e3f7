"""Freed memory that stays with the process: what is asked of the C library, and that pages no longer come and go."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import running

import valuembed
from valuembed.execution import cpu_memory

FAULTS = """
import resource, torch
from valuembed.execution.cpu_memory import keep_freed_memory

def step():
    torch.ones(10_000_000)

def faults():
    for _ in range(20):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = faults()
assert keep_freed_memory()
print(left, faults())
"""
GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


@pytest.fixture
def asked(monkeypatch):
    """What mallopt is told, in a process that has not told it anything."""
    calls = []

    class Library:
        gnu_get_libc_version = staticmethod(lambda: b"2.36")
        mallopt = staticmethod(lambda name, value: calls.append((name, value)) or 1)

    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    return calls


class TestWhatIsAsked:
    def test_values(self, asked, monkeypatch):
        for name in cpu_memory.CAPACITIES:
            monkeypatch.setenv(name, "64")
        cpu_memory.tune_memory()
        # M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h.
        assert asked == [(-1, 2**29), (-2, 2**26), (-3, 2**26)]

    @pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
    def test_settings_of_the_user_stay(self, asked, monkeypatch, name):
        monkeypatch.setenv(name, "1")
        assert not cpu_memory.keep_freed_memory()
        assert asked == []

    @pytest.mark.parametrize(("given", "expected"), [(None, "64"), ("7", "7")])
    def test_caches_are_bounded_unless_they_are_already(self, asked, monkeypatch, given, expected):
        for name in cpu_memory.CAPACITIES:
            monkeypatch.setenv(name, given or "")
            if given is None:
                monkeypatch.delenv(name)
        cpu_memory.tune_memory()
        assert [os.environ[name] for name in cpu_memory.CAPACITIES] == [expected] * 2

    @pytest.mark.parametrize("library", [type("Musl", (), {}), None])
    def test_other_libraries_are_left_alone(self, asked, monkeypatch, library):
        def opened(name):
            if library is None:
                raise TypeError("no library by that name on this system")
            return library

        monkeypatch.setattr(ctypes, "CDLL", opened)
        assert not cpu_memory.keep_freed_memory()
        cpu_memory.release_freed_memory()
        assert asked == []

    def test_loading_and_encoding_ask_for_nothing(self, asked, monkeypatch):
        for name in cpu_memory.CAPACITIES:
            monkeypatch.delenv(name, raising=False)
        valuembed.load("bundled", device="cpu").encode(["a text"])
        assert asked == []
        assert not set(cpu_memory.CAPACITIES) & set(os.environ)

    def test_the_command_line_asks(self, monkeypatch):
        asked = []
        monkeypatch.setattr(cpu_memory, "tune_memory", lambda: asked.append(True))
        # What a test starts is told not to; this one wants to see it asked.
        monkeypatch.setattr(running, "cpu_memory", SimpleNamespace(tune_memory=None))
        assert running.started("--version").code == 0
        assert asked == [True]


def printed(code):
    """The numbers that a process prints, without settings of the allocator in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    return map(int, ran.stdout.split())


HOLES = """
import ctypes
import torch
from valuembed.execution import cpu_memory

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

cpu_memory.keep_freed_memory()
before = resident()
large = []
small = []
for _ in range(200):
    large.append(torch.ones(2**18))
    small.append(torch.ones(2**10))
large.clear()
kept = resident()
cpu_memory.release_freed_memory()
print(kept - before, resident() - before)
"""
"""Blocks of a megabyte with small ones between them, of which the large ones are freed."""


@pytest.mark.process
@GLIBC
def test_holes_are_given_back():
    kept, left = printed(HOLES)
    assert kept > 150
    assert left < 50


@pytest.mark.slow
@pytest.mark.process
@GLIBC
def test_pages_stay():
    left, kept = printed(FAULTS)
    # Twenty blocks of 40 MB, more than glibc keeps of itself: 195 thousand pages of 4 KB, or 380 of 2 MB.
    assert kept < 100 < left
