import subprocess
import sys

import pytest

from valuembed._utils import locks
from valuembed._utils.locks import Lock
from valuembed.errors import OutputError


def test_one_holder_at_a_time(tmp_path):
    one, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert one.acquire()
    assert not other.acquire()
    one.release()
    assert other.acquire()
    other.release()
    # As a block it waits; nobody has it now.
    with one:
        assert not other.acquire()
    assert other.acquire()
    other.release()
    # Twice is once.
    other.release()


@pytest.mark.process
def test_a_lock_dies_with_its_process_and_its_file_means_nothing(tmp_path):
    script = "import sys, time; from pathlib import Path; from valuembed._utils.locks import Lock\n"
    script += "lock = Lock(Path(sys.argv[1])); print(lock.acquire(), flush=True); time.sleep(60)"
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert not Lock(path).acquire()
        process.kill()
    assert path.exists()
    assert Lock(path).acquire()


def test_a_file_that_was_removed_is_no_lock(tmp_path):
    one, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert one.acquire()
    one.release(remove=True)
    assert not (tmp_path / "lock").exists()
    assert one.acquire()
    # Somebody removes the file, and a newcomer makes another: both would hold a lock, each on a file of its own.
    (tmp_path / "lock").unlink()
    assert other.acquire()
    assert (tmp_path / "lock").exists()


def test_whoever_locked_a_file_that_its_last_holder_removed_tries_again(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    looks = []

    def is_still(self, file):
        looks.append(file)
        if len(looks) == 1:
            path.unlink()
        return original(self, file)

    original = Lock._is_still
    monkeypatch.setattr(Lock, "_is_still", is_still)
    assert Lock(path).acquire()
    assert len(looks) == 2
    assert path.exists()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"^cannot write \S+none/lock: No such file or directory$"):
        Lock(tmp_path / "none" / "lock").acquire()


def test_a_lock_that_fails_otherwise_is_an_error_without_advice(tmp_path, monkeypatch):
    def refuse(file, **how):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    with pytest.raises(OutputError, match=r"^cannot lock \S+/lock: Input/output error$"):
        Lock(tmp_path / "lock").acquire()
