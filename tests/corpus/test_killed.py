"""Jobs that are killed, or run beside each other: every row once, and the same vectors to the bit."""

import fcntl
import json
import random
import time

import pytest
from fakes import FakeEncoder
from shared_jobs import end, go, held, same, start, write_texts

from valuembed.corpus import job
from valuembed.corpus.job import embed_corpus
from valuembed.errors import OutputError

ROWS = 140


@pytest.fixture
def inputs(tmp_path):
    """Three files of 140 rows in all."""
    folder = tmp_path / "in"
    for name, count in (("a.jsonl", 77), ("b.txt", 60), ("c.txt", 3)):
        write_texts(folder / name, count, name)
    return folder


@pytest.fixture
def whole(tmp_path, inputs):
    """The output of a run that nothing disturbs."""
    done = embed_corpus(FakeEncoder(width=256), inputs, tmp_path / "whole", rows_per_shard=7, progress=False)
    assert done.embedded == len(held(tmp_path / "whole")) == ROWS
    return tmp_path / "whole"


@pytest.mark.slow
@pytest.mark.process
def test_kill_9_at_random_moments_and_start_again(tmp_path, inputs, whole):
    output = tmp_path / "out"
    moments = random.Random(5)
    done = []
    for _ in range(5):
        process, before = start(inputs, output, pause=0.05), len(list(output.glob("*.parquet")))
        # The machine may be slow: each run is given the time for a shard.
        while len(list(output.glob("*.parquet"))) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.12))
        process.kill()
        assert process.communicate()[0] == "", "it was to be killed in the middle"
        done.append(len(held(output)))
    assert done == sorted(done)
    assert 0 < done[-1] < ROWS
    finished = embed_corpus(FakeEncoder(width=256), inputs, output, rows_per_shard=7, progress=False)
    assert (finished.rows, finished.embedded, finished.run.rows) == (ROWS, ROWS, ROWS - done[-1])
    assert same(output, whole)
    # What the killed runs had begun was written over, and is gone.
    assert {path.suffix for path in (output / ".work").iterdir()} <= {".lock"}


@pytest.mark.slow
@pytest.mark.process
def test_processes_on_one_folder_share_the_work(tmp_path, inputs, whole):
    output = tmp_path / "out"
    processes = [start(inputs, output, pause=0.05, hold=True) for _ in range(3)]
    for process in processes:
        go(process)
    shares = [[int(number) for number in end(process).split()] for process in processes]
    # Each of them waited until everything was there, and none did what another had done.
    assert [share[1:] for share in shares] == [[ROWS, ROWS, 0]] * 3
    assert sum(share[0] for share in shares) == ROWS
    assert sum(share[0] > 0 for share in shares) >= 2
    assert same(output, whole)


@pytest.mark.process
def test_processes_share_one_file(tmp_path, inputs):
    output = tmp_path / "out"
    processes = [start(inputs / "a.jsonl", output, pause=0.1, hold=True) for _ in range(2)]
    for process in processes:
        go(process)
    shares = [int(end(process).split()[0]) for process in processes]
    assert sum(shares) == len(held(output)) == 77
    assert min(shares) >= 7


@pytest.mark.process
def test_whoever_is_left_takes_over_from_one_that_died(tmp_path, inputs, whole, monkeypatch):
    monkeypatch.setattr(job, "POLL_SECONDS", 0.01)
    output = tmp_path / "out"
    # It holds the first shard of the first input, and would for long.
    neighbour = start(inputs, output, pause=20)
    while not list((output / ".work").glob("a.jsonl-*-0000000000.*.tmp")):
        time.sleep(0.01)
    waited = []

    def tell(progress):
        if progress.waiting:
            waited.append(progress.embedded)
            neighbour.kill()

    done = embed_corpus(FakeEncoder(width=256), inputs, output, rows_per_shard=7, progress=tell)
    neighbour.communicate()
    # Everything but the one shard in the other's hands was done first.
    assert waited[0] == ROWS - 7
    assert (done.rows, done.run.rows) == (ROWS, ROWS)
    assert same(output, whole)


def test_a_lock_file_that_nobody_holds_means_nothing(tmp_path, inputs, whole):
    output = tmp_path / "out"
    embed_corpus(FakeEncoder(width=256), inputs, output, rows_per_shard=7, progress=False)
    gone = sorted(output.glob("*.parquet"))[0]
    (output / ".work" / f"{gone.stem}.lock").touch()
    gone.unlink()
    assert embed_corpus(FakeEncoder(width=256), inputs, output, rows_per_shard=7, progress=False).run.rows == 7
    assert same(output, whole)


@pytest.mark.process
def test_two_processes_with_different_settings_do_not_mix(tmp_path, inputs):
    output = tmp_path / "out"
    first = start(inputs, output, pause=0.05)
    while not (output / "manifest.json").exists():
        time.sleep(0.01)
    second = start(inputs, output, rows_per_shard=8)
    assert "error: output" in (said := end(second))
    assert "rows_per_shard 7 against 8" in said
    assert end(first).split()[0] == str(ROWS)


@pytest.mark.process
def test_a_real_limit_on_the_size_of_files(tmp_path, inputs, whole):
    output = tmp_path / "out"
    # Enough for the manifest and for the smaller shards alone.
    sizes = sorted(path.stat().st_size for path in whole.glob("*.parquet"))
    said = end(start(inputs, output, limit=max(sizes[len(sizes) // 2], (whole / "manifest.json").stat().st_size)))
    assert ": File too large; nothing was left there; finished shards are kept, the same command goes on" in said
    assert not list((output / ".work").glob("*.tmp"))
    embed_corpus(FakeEncoder(width=256), inputs, output, rows_per_shard=7, progress=False)
    assert same(output, whole)


def test_a_file_system_without_locks_is_an_error(tmp_path, inputs, monkeypatch):
    def refuse(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = r"cannot lock \S+job\.lock: Function not implemented; its file system has no locks, by which processes"
    with pytest.raises(OutputError, match=message):
        embed_corpus(FakeEncoder(), inputs, tmp_path / "out", progress=False)


@pytest.mark.process
def test_each_of_an_array_of_jobs_may_bring_its_own_input(tmp_path, inputs):
    output = tmp_path / "out"
    processes = [start(path, output, pause=0.02) for path in sorted(inputs.iterdir())]
    for process in processes:
        end(process)
    assert len(held(output)) == ROWS
    record = json.loads((output / "manifest.json").read_text())
    assert sorted(entry["name"] for entry in record["inputs"]) == sorted(map(str, inputs.iterdir()))
