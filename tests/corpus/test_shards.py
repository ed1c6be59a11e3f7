import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from shared_jobs import held, same, write_texts

from valuembed.corpus.job import embed_corpus, embed_source
from valuembed.corpus.manifest import Settings, open_job, read_manifest, recorded_sources
from valuembed.corpus.shards import Notes, SetAside, Shard, ShardStatus, read_notes, standings
from valuembed.data.sources import find_sources
from valuembed.errors import OutputError
from valuembed.vectors.provenance import VectorSpec


def job_of(inputs, output, rows_per_shard=10):
    choices = {"text_column": None, "id_column": None, "chunk": None, "overlap": 0}
    settings = Settings.of(FakeEncoder(), rows_per_shard=rows_per_shard, **choices)
    return open_job(output, VectorSpec.of(FakeEncoder()), settings, find_sources([inputs])[0])


def test_names_tell_what_is_finished(tmp_path):
    a, b = "a.txt-0123456789ab", "b-c.txt-0123456789ab"
    for name in (f"{a}-0000000000", f"{a}-0000000020-last", f"{b}-0000000010", f"{b}-12345678900", "other"):
        (tmp_path / f"{name}.parquet").touch()
    found = standings(tmp_path)
    assert found.keys() == {a, b}
    assert sorted(found[a].paths) == [0, 20]
    assert found[a].paths[20] == tmp_path / f"{a}-0000000020-last.parquet"
    assert (found[a].last, found[b].last) == (20, None)
    assert sorted(found[b].paths) == [10, 12345678900]
    with pytest.raises(OutputError, match=r"cannot read \S+none: No such file"):
        standings(tmp_path / "none")


@pytest.mark.parametrize(
    ("starts", "last", "missing"),
    [
        ([], None, [0]),
        ([0, 10], None, [20]),
        ([0, 20], None, [10, 30]),
        ([20], 20, [0, 10]),
        ([0, 10], 10, []),
        ([0], 0, []),
    ],
)
def test_what_is_missing(starts, last, missing):
    standing = ShardStatus({start: Path("x") for start in starts}, last)
    assert standing.missing(10) == missing
    assert standing.is_complete(10) == (not missing)


def test_notes_go_into_a_file_and_back(tmp_path):
    write_texts(tmp_path / "a.txt", 3)
    with (tmp_path / "a.txt").open("a") as file:
        file.write("\nb\u00e4d \0\n")
    embed_corpus(FakeEncoder(), tmp_path / "a.txt", tmp_path / "out", progress=False)
    (path,) = (tmp_path / "out").glob("*.parquet")
    aside = [SetAside(3, 4, "blank"), SetAside(4, 5, "not text: NUL character at character 4")]
    notes = Notes.read(path)
    assert (notes.start, notes.rows, notes.embedded, notes.rejected, notes.vectors) == (0, 5, 3, 2, 3)
    assert (notes.file, notes.aside) == (str(tmp_path / "a.txt"), aside)
    assert list(read_notes([path, path])) == [notes, notes]
    pq.write_table(pq.read_table(path), tmp_path / "bare.parquet")
    with pytest.raises(OutputError, match=r"shard \S+bare\.parquet is damaged \(b'valuembed\.shard'\); remove it"):
        Notes.read(tmp_path / "bare.parquet")


def test_a_shard_is_claimed_by_one_and_finished_once(tmp_path):
    source = find_sources([write_texts(tmp_path / "a.txt", 3)])[0][0]
    (tmp_path / ".work").mkdir()
    one, other = (Shard(tmp_path, tmp_path / ".work", source, 0) for _ in range(2))
    with one.claimed() as mine, other.claimed() as theirs:
        assert (mine, theirs) == (True, False)
    # Nothing came of it, so the lock file may stay.
    with other.claimed() as mine:
        assert mine
        other.path(last=True).touch()
    assert list((tmp_path / ".work").iterdir()) == []
    with one.claimed() as mine:
        assert not mine


def test_an_input_of_a_job_in_another_process(tmp_path, monkeypatch):
    """The job is plain data: whoever gets it can do an input, or what is left of it."""
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "a.txt", 35)
    embed_corpus(FakeEncoder(), "a.txt", "whole", rows_per_shard=10, progress=False)
    job = pickle.loads(pickle.dumps(job_of("a.txt", Path("out"))))
    (source,) = job.sources
    model = FakeEncoder()
    with Shard(job.folder, job.work, source, 10).claimed():
        embed_source(job, model, source)
    assert [len(texts) for _, texts in model.calls] == [10, 10, 5]
    assert sorted({row // 10 for _, row in held(job.folder)}) == [0, 2, 3]
    # What is behind the one that is missing is not read.
    embed_source(job, model, source, standing=standings(job.folder)[source.key])
    assert [len(texts) for _, texts in model.calls[3:]] == [10]
    assert same(Path("out"), Path("whole"))
    assert [entry.name for entry in recorded_sources(read_manifest(job.folder))] == ["a.txt"]
