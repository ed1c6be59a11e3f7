import fcntl
import json
import os
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeEncoder
from stored import some_words, write_embeddings

from valuembed.corpus.job import embed_corpus, embed_file
from valuembed.errors import InputError, MissingExtraError, OutputError, ReadingError
from valuembed.search import ingest
from valuembed.search.exact import open_embeddings, search
from valuembed.search.index import Index, RepeatedIdWarning, build_index
from valuembed.search.results import Hit
from valuembed.vectors.reader import EmbeddingFile

pytestmark = pytest.mark.slow

pytest.importorskip("lancedb", reason="the extra 'store' is not installed")

WORDS = some_words(600)


@pytest.fixture
def folder(tmp_path):
    """Three files with 200 rows each of one text file."""
    for number in range(3):
        shard(tmp_path / "out", number)
    return tmp_path / "out"


def shard(folder, number, words=WORDS, **given):
    first = 200 * number
    path = folder / f"{number}.parquet"
    return write_embeddings(path, words[first : first + 200], file="in.txt", first_row=first, **given)


def build(source, index, **given):
    return build_index(source, index, progress=False, **given)


def counts(done):
    return done.added, done.replaced, done.removed, done.outdated, done.rows


def contents(index):
    """What an index holds, as text by place."""
    rows = [row for batch in Index.open(index)._rows.scan(["file", "row", "id", "text"]) for row in batch.to_pylist()]
    found = {(row["file"], row["row"] if row["row"] is not None else row["id"]): row["text"] for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


def whole(words=WORDS):
    return {("in.txt", row): word for row, word in enumerate(words)}


class TestBuilding:
    def test_all_rows_once_and_nothing_is_done_twice(self, folder, tmp_path, monkeypatch):
        done = build(folder, tmp_path / "index")
        assert (done.name, done.files, done.unchanged, done.repeated, done.approximate) == ("out", 3, 0, 0, False)
        assert counts(done) == (600, 0, 0, 0, 600)
        assert contents(tmp_path / "index") == whole()
        monkeypatch.setattr(EmbeddingFile, "batches", lambda *_, **__: pytest.fail("an unchanged file was read"))
        done = build(folder, tmp_path / "index")
        assert (done.unchanged, counts(done)) == (3, (0, 0, 0, 0, 600))

    def test_new_files_are_added_and_changed_ones_replace_their_rows(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        words = [*WORDS[:200], *some_words(600, seed=1)[200:400], *WORDS[400:], *some_words(200, seed=2)]
        shard(folder, 1, words)
        shard(folder, 3, words)
        done = build(folder, tmp_path / "index")
        assert (done.unchanged, counts(done)) == (2, (200, 200, 0, 0, 800))
        assert contents(tmp_path / "index") == whole(words)

    def test_other_files_with_the_same_rows_replace_them(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        for path in folder.iterdir():
            path.unlink()
        write_embeddings(folder / "all.parquet", WORDS, file="in.txt")
        done = build(folder, tmp_path / "index")
        assert counts(done) == (0, 600, 0, 0, 600)
        assert contents(tmp_path / "index") == whole()

    def test_rows_that_left_the_source_are_kept_until_they_are_pruned(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        (folder / "0.parquet").unlink()
        write_embeddings(folder / "2.parquet", WORDS[400:450], file="in.txt", first_row=400)
        done = build(folder, tmp_path / "index")
        assert counts(done) == (0, 50, 0, 350, 600)
        done = build(folder, tmp_path / "index", prune=True)
        assert counts(done) == (0, 0, 350, 0, 250)
        left = {place: word for place, word in whole().items() if 200 <= place[1] < 450}
        assert contents(tmp_path / "index") == left
        assert counts(build(folder, tmp_path / "index", prune=True)) == (0, 0, 0, 0, 250)

    @pytest.mark.parametrize("stop", range(1, 7))
    @pytest.mark.parametrize("old", [False, True])
    def test_an_interrupted_run_goes_on(self, folder, tmp_path, monkeypatch, stop, old):
        """Whichever commit is the last one: of a first run, and of one that replaces rows."""
        if old:
            build(folder, tmp_path / "index")
            words = some_words(600, seed=1)
            for number in range(3):
                shard(folder, number, words)
        monkeypatch.setattr(ingest, "BYTES_AT_ONCE", 1)
        monkeypatch.setattr(ingest, "COMMITS_BEFORE_TIDYING", 2)
        batches = EmbeddingFile.batches
        small = lambda self, vector_spec, **given: batches(self, vector_spec, rows_per_batch=90, **given)  # noqa: E731
        monkeypatch.setattr(EmbeddingFile, "batches", small)
        seen = 0

        def interrupt(name):
            write = getattr(ingest.Table, name)

            def writing(self, rows):
                nonlocal seen
                done = write(self, rows)
                seen += "embedding" in rows.column_names
                if seen == stop:
                    raise KeyboardInterrupt
                return done

            monkeypatch.setattr(ingest.Table, name, writing)

        interrupt("append")
        interrupt("replace")
        with pytest.raises(KeyboardInterrupt):
            build(folder, tmp_path / "index")
        monkeypatch.undo()
        done = build(folder, tmp_path / "index")
        assert contents(tmp_path / "index") == whole(words if old else WORDS)
        assert (done.rows, done.outdated) == (600, 0)
        if not old:
            # Each file is three commits; what they brought is not brought again.
            assert done.added == 600 - [0, 90, 180, 200, 290, 380, 400][stop]

    def test_small_files_go_in_together(self, tmp_path, monkeypatch):
        for number, word in enumerate(WORDS[:30]):
            further = {"stars": [number]} if number > 9 else {}
            write_embeddings(tmp_path / "out" / f"{number:02}.parquet", [word], file=f"{number}.txt", **further)
        append, commits = ingest.Table.append, []
        monkeypatch.setattr(ingest.Table, "append", lambda self, rows: commits.append(append(self, rows)))
        assert counts(build(tmp_path / "out", tmp_path / "index")) == (30, 0, 0, 0, 30)
        assert len(commits) == 1
        assert contents(tmp_path / "index") == {(f"{number}.txt", 0): word for number, word in enumerate(WORDS[:30])}
        assert len(Index.open(tmp_path / "index").search(FakeEncoder(), "a", 30, where="stars IS NULL")) == 10
        assert build(tmp_path / "out", tmp_path / "index").unchanged == 30

    def test_an_index_that_was_not_finished_is_searched(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(ingest.Table, "tune", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(folder, tmp_path / "index")
        index = Index.open(tmp_path / "index")
        assert index.search(FakeEncoder(), WORDS[7], 1)[0].row == 7
        message = r"index has no index of words: its making was interrupted; run it again$"
        with pytest.raises(InputError, match=message):
            index.search(FakeEncoder(), WORDS[7], 1, hybrid=True)

    def test_sources_are_kept_apart_by_their_names(self, tmp_path):
        one = write_embeddings(tmp_path / "one.parquet", ["ab", "bc"])
        two = write_embeddings(tmp_path / "two.parquet", ["xy"], ids=["0"])
        build(one, tmp_path / "index")
        assert counts(build(two, tmp_path / "index", prune=True)) == (1, 0, 0, 0, 3)
        hits = Index.open(tmp_path / "index").search(FakeEncoder(), "xy", 3)
        # An id stays what it was: a number where rows were numbered, else a string.
        assert {(hit.id, hit.text) for hit in hits} == {("0", "xy"), (0, "ab"), (1, "bc")}
        found = Index.open(tmp_path / "index").search(FakeEncoder(), "xy", 3, where="source = 'one.parquet'")
        assert {hit.text for hit in found} == {"ab", "bc"}

    def test_ids_under_one_name_are_one_row(self, tmp_path):
        write_embeddings(tmp_path / "day1.parquet", ["ab", "bc"], ids=["a", "b"])
        write_embeddings(tmp_path / "day2.parquet", ["cd", "de"], ids=["b", "c"])
        build(tmp_path / "day1.parquet", tmp_path / "index", name="docs")
        done = build(tmp_path / "day2.parquet", tmp_path / "index", name="docs")
        assert counts(done) == (1, 1, 0, 1, 3)
        assert contents(tmp_path / "index") == {(None, "a"): "ab", (None, "b"): "cd", (None, "c"): "de"}
        # The last run wins, also when its file was there before.
        done = build(tmp_path / "day1.parquet", tmp_path / "index", name="docs")
        assert contents(tmp_path / "index") == {(None, "a"): "ab", (None, "b"): "bc", (None, "c"): "de"}

    def test_a_name_from_elsewhere_has_to_be_confirmed(self, tmp_path):
        build(write_embeddings(tmp_path / "a" / "out.parquet", ["ab"]), tmp_path / "index")
        moved = write_embeddings(tmp_path / "b" / "out.parquet", ["xy"])
        message = (
            r"index has a source named 'out\.parquet' from \S+/a/out\.parquet, and this one is \S+/b/out\.parquet\. If "
            r"it is the same, moved or newer, say so with --name out\.parquet \(name='out\.parquet'\)"
        )
        with pytest.raises(InputError, match=message):
            build(moved, tmp_path / "index")
        assert contents(tmp_path / "index") == {(None, 0): "ab"}
        assert counts(build(moved, tmp_path / "index", name="out.parquet")) == (0, 1, 0, 0, 1)
        assert counts(build(moved, tmp_path / "index")) == (0, 0, 0, 0, 1)

    def test_of_an_id_that_comes_twice_the_last_row_is_kept(self, tmp_path, monkeypatch):
        path = write_embeddings(tmp_path / "a.parquet", ["ab", "bc", "cd", "de"], ids=["x", "y", "x", "x"])
        message = (
            r"a\.parquet: 2 rows have an id that comes again further down; of each id the index holds the last row"
        )
        with pytest.warns(RepeatedIdWarning, match=message):
            done = build(path, tmp_path / "index")
        assert (done.repeated, done.rows) == (2, 2)
        assert contents(tmp_path / "index") == {(None, "x"): "de", (None, "y"): "bc"}
        # In two steps too.
        monkeypatch.setattr(ingest, "BYTES_AT_ONCE", 1)
        batches = EmbeddingFile.batches
        monkeypatch.setattr(
            EmbeddingFile, "batches", lambda self, vector_spec, **_: batches(self, vector_spec, rows_per_batch=3)
        )
        with pytest.warns(RepeatedIdWarning, match=message):
            done = build(path, tmp_path / "other")
        assert (done.repeated, done.rows) == (2, 2)
        assert contents(tmp_path / "other") == {(None, "x"): "de", (None, "y"): "bc"}

    def test_keys_do_not_meet_by_way_of_what_stands_in_names(self, tmp_path):
        columns = {"chunk": pa.array([None, 1], pa.int32())}
        write_embeddings(tmp_path / "a.parquet", ["ab", "bc"], ids=["1::0::a", "a"], **columns)
        build(tmp_path / "a.parquet", tmp_path / "index", name="x")
        write_embeddings(tmp_path / "b.parquet", ["cd"], ids=["a"])
        assert counts(build(tmp_path / "b.parquet", tmp_path / "index", name="x:1"))[0] == 1
        assert len(Index.open(tmp_path / "index")) == 3

    def test_a_folder_of_single_files(self, tmp_path):
        for name in ("a", "b"):
            write_embeddings(tmp_path / "out" / f"{name}.parquet", [f"{name}x", f"{name}y"])
        build(tmp_path / "out", tmp_path / "index")
        expected = {(f"{name}.parquet", row): name + "xy"[row] for name in "ab" for row in (0, 1)}
        assert contents(tmp_path / "index") == expected

    def test_no_rows(self, tmp_path):
        done = build(write_embeddings(tmp_path / "a.parquet", []), tmp_path / "index")
        assert (counts(done), done.unchanged) == ((0, 0, 0, 0, 0), 0)
        index = Index.open(tmp_path / "index")
        assert index.search(FakeEncoder(), "ab") == []
        assert index.search(FakeEncoder(), "ab", hybrid=True) == []
        assert build(tmp_path / "a.parquet", tmp_path / "index").unchanged == 1

    def test_vectors_without_a_direction_are_refused(self, tmp_path):
        path = write_embeddings(tmp_path / "a.parquet", ["ab", "nan"], model=FakeEncoder(poison="nan"))
        with pytest.raises(
            ReadingError, match=r"a\.parquet, rows from 0: vector 1 \(counted from 0\) is zero or not fin"
        ):
            build(path, tmp_path / "index")


class TestRefusals:
    def test_another_model(self, tmp_path):
        build(write_embeddings(tmp_path / "a.parquet", ["ab"]), tmp_path / "index")
        other = write_embeddings(tmp_path / "b.parquet", ["ab"], model=FakeEncoder("b", layers=(1,)))
        message = (
            r"index holds vectors made by model 'fake'.*b\.parquet vectors made by model 'b'.*; they cannot be compared"
            r": layers \[2, 3\] against \[1\]\. Give another index$"
        )
        with pytest.raises(InputError, match=message):
            build(other, tmp_path / "index")
        for ask in (Index.open(tmp_path / "index").search, lambda *a: search(a[0], a[1], tmp_path / "index")):
            with pytest.raises(InputError, match=r"index was made by model 'fake'.*other weights or prompts"):
                ask(FakeEncoder(shift=9.0), "ab")

    def test_a_model_is_looked_at_once(self, tmp_path):
        build(write_embeddings(tmp_path / "a.parquet", ["ab"]), tmp_path / "index")
        index, model = Index.open(tmp_path / "index"), FakeEncoder()
        for query in ("one", "two"):
            index.search(model, query)
        assert [role for role, _ in model.calls] == ["document", "query", "query"]

    def test_another_precision(self, tmp_path):
        build(write_embeddings(tmp_path / "a.parquet", ["ab"]), tmp_path / "index")
        signs = write_embeddings(tmp_path / "b.parquet", ["ab"], precision="binary")
        with pytest.raises(
            InputError, match=r"cannot be compared: precision 'float32' against 'binary'\. Give another"
        ):
            build(signs, tmp_path / "index")

    def test_places(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"nothing does not exist; give a file of embeddings, or a folder of them"):
            build(tmp_path / "nothing", tmp_path / "index")
        with pytest.raises(OutputError, match=r"out is a folder with something else in it; name a new one"):
            build(folder, folder)
        with pytest.raises(OutputError, match=r"0\.parquet is a file; name a folder"):
            build(folder, folder / "0.parquet")
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write \S+file/index: Not a directory"):
            build(folder, tmp_path / "file" / "index")
        with pytest.raises(
            InputError, match=r"nothing holds no index; make one with: valuembed index SOURCE -o \S+nothing"
        ):
            Index.open(tmp_path / "nothing")
        assert not (tmp_path / "index").exists()

    def test_a_second_writer(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        with (tmp_path / "index" / ".lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(OutputError, match="index is being written by another process; run it again when"):
                build(folder, tmp_path / "index")
            assert len(Index.open(tmp_path / "index")) == 600
        assert build(folder, tmp_path / "index").unchanged == 3

    def test_settings(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"language 'Klingon' is unknown; legal: Arabic, Danish, .*, Turkish$"):
            build(folder, tmp_path / "index", language="Klingon")
        with pytest.raises(InputError, match="name ' ' is blank"):
            build(folder, tmp_path / "index", name=" ")

    def test_a_missing_extra(self, folder, tmp_path, monkeypatch):
        def missing(*_):
            raise ModuleNotFoundError(name="lancedb")

        monkeypatch.setattr("valuembed._utils.optional.import_module", missing)
        with pytest.raises(MissingExtraError, match=r'^lancedb is not installed; run: pip install .*\[store\]"$'):
            build(folder, tmp_path / "index")
        assert not (tmp_path / "index").exists()

    def test_a_damaged_index(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        for path in (tmp_path / "index" / "rows.lance" / "_versions").iterdir():
            path.unlink()
        with pytest.raises(InputError, match=r"^cannot read \S+index: Table 'rows' was not found$"):
            Index.open(tmp_path / "index")

    def test_a_full_disk(self, folder, tmp_path, monkeypatch):
        build(folder, tmp_path / "index")
        shard(folder, 1, some_words(600, seed=1))

        def full(self, rows):
            raise OSError("lance error: LanceError(IO): No space left on device (os error 28), /src/io.rs:1:2")

        monkeypatch.setattr("lancedb.table.LanceTable.merge_insert", full)
        message = (
            r"^cannot write \S+index: No space left on device \(os error 28\); what was finished before is kept, run"
        )
        with pytest.raises(OutputError, match=message):
            build(folder, tmp_path / "index")


class TestSearching:
    def test_is_exact_without_an_approximate_index(self, folder, tmp_path):
        build(folder, tmp_path / "index")
        index = open_embeddings(tmp_path / "index")
        assert isinstance(index, Index)
        assert not index.is_approximate
        for query in ("hello world", WORDS[3]):
            exact = search(FakeEncoder(), query, folder, 30)
            found = search(FakeEncoder(), query, index, 30)
            np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in exact], atol=1e-6)
            assert [hit.rank for hit in found] == list(range(1, 31))
        assert found[0] == Hit(1, pytest.approx(1.0), 3, WORDS[3], file="in.txt", row=3, source="out")

    @pytest.mark.parametrize(
        ("width", "precision"),
        [(16, "float32"), (12, "float32"), (16, "float16"), (16, "int8"), (12, "binary"), (16, "binary")],
    )
    def test_an_approximate_index_finds_nearly_all(self, tmp_path, width, precision):
        model = FakeEncoder(width=width)
        path = write_embeddings(tmp_path / "a.parquet", WORDS, model=model, precision=precision)
        done = build(path, tmp_path / "index", approximate_from=300)
        index = Index.open(tmp_path / "index")
        assert done.approximate
        assert index.is_approximate
        for query in some_words(5, seed=3):
            exact = [hit.score for hit in search(model, query, path, 10)]
            # Equal scores are many here, so that scores are compared and not rows.
            found = [hit.score for hit in index.search(model, query, 10, refine=20)]
            assert np.isclose(exact, found, atol=2e-3).sum() >= 9

    def test_partitions(self, tmp_path, monkeypatch):
        """A query looks into few of them, but into all where few give too little."""
        monkeypatch.setattr("valuembed.search.vector_store.ROWS_PER_PARTITION", 20)
        monkeypatch.setattr("valuembed.search.vector_store.LEAST_PROBES", 1)
        words = some_words(2000)
        path = write_embeddings(tmp_path / "a.parquet", words)
        build(path, tmp_path / "index", approximate_from=300)
        index = Index.open(tmp_path / "index")

        def recall(**given):
            found = 0
            for query in some_words(20, seed=3):
                exact = [hit.score for hit in search(FakeEncoder(), query, path, 10, centre=False)]
                hits = index.search(FakeEncoder(), query, centre=False, **given)
                found += np.isclose(exact, [hit.score for hit in hits]).sum()
            return found / 200

        assert recall(probes=1) < 0.6
        assert recall() > 0.8
        assert recall(probes=1000) > 0.95
        assert len(index.search(FakeEncoder(), "hello", 1500, probes=1, centre=False)) == 1500
        assert len(index.search(FakeEncoder(), "hello", 9, where="row % 500 = 7", probes=1)) == 4

    def test_shortened_vectors(self, tmp_path):
        path = write_embeddings(tmp_path / "a.parquet", WORDS, dim=8)
        build(path, tmp_path / "index", approximate_from=300)
        vectors, query = FakeEncoder().encode(WORDS)[:, :8], FakeEncoder().encode(["hello"])[0, :8]
        cosines = np.sort(vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query))[::-1][:10]
        for source in (path, tmp_path / "index"):
            np.testing.assert_allclose(
                [hit.score for hit in search(FakeEncoder(), "hello", source, centre=False)], cosines, atol=1e-5
            )
        with pytest.raises(InputError, match=r"width 8 of 16 against 4$"):
            search(FakeEncoder(width=4), "hello", tmp_path / "index")

    @pytest.mark.parametrize("precision", ["float32", "binary"])
    def test_what_embed_writes(self, tmp_path, precision):
        (tmp_path / "a.txt").write_text("\n".join(["", *WORDS[:120]]))
        (tmp_path / "b.jsonl").write_text("\n".join(f'{{"text": "{word}"}}' for word in WORDS[120:150]))
        inputs = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
        job = {"precision": precision, "rows_per_shard": 50, "progress": False}
        embed_corpus(FakeEncoder(), inputs, tmp_path / "out", **job)
        # 121 rows are three files, and 30 one.
        assert (counts(build(tmp_path / "out", tmp_path / "index")), precision) == ((150, 0, 0, 0, 150), precision)
        exact = search(FakeEncoder(), WORDS[130], tmp_path / "out", 150)
        found = search(FakeEncoder(), WORDS[130], tmp_path / "index", 150)
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in exact], atol=1e-6)
        assert {(hit.file, hit.row, hit.id, hit.text) for hit in found} == {
            (hit.file, hit.row, hit.id, hit.text) for hit in exact
        }
        assert (found[0].file, found[0].row) == ((tmp_path / "b.jsonl").as_posix(), 10) or precision == "binary"
        assert build(tmp_path / "out", tmp_path / "index").unchanged == 4

    def test_the_length_of_a_vector_does_not_count(self, tmp_path):
        # Distances without their angle would find the first text, which is short as the query is.
        write_embeddings(tmp_path / "a.parquet", ["b", "a" * 40 + "b"])
        build(tmp_path / "a.parquet", tmp_path / "index")
        assert Index.open(tmp_path / "index").search(FakeEncoder(), "aaa", 1)[0].text == "a" * 40 + "b"

    def test_rows_that_are_not_in_the_approximate_index_yet_are_found(self, folder, tmp_path, monkeypatch):
        build(folder, tmp_path / "index", approximate_from=300)
        shard(folder, 3, [*WORDS, *some_words(200, seed=1)])
        monkeypatch.setattr(ingest.Table, "tune", lambda *_, **__: True)
        build(folder, tmp_path / "index")
        assert Index.open(tmp_path / "index").search(FakeEncoder(), some_words(9, seed=1)[8], 1)[0].row == 608

    @pytest.mark.parametrize("approximate_from", [10, 10_000])
    def test_filters(self, folder, tmp_path, approximate_from):
        build(folder, tmp_path / "index", approximate_from=approximate_from)
        index = Index.open(tmp_path / "index")

        def rows(where, k=600, **given):
            return {hit.row for hit in index.search(FakeEncoder(), "hello", k, where=where, **given)}

        assert rows("row < 5 OR row = 599") == {0, 1, 2, 3, 4, 599}
        # However narrow a filter is, and however few partitions are looked into.
        assert rows("id = '77'", probes=1) == {77}
        assert rows("file LIKE 'in%' AND `row` >= 597 -- the last") == {597, 598, 599}
        assert rows(f"text = '{WORDS[9]}'", hybrid=True) == {9}
        assert rows("row > 9999") == set()
        assert rows("row > 9999", hybrid=True) == set()

    @pytest.mark.parametrize(
        ("where", "reason"),
        [
            ("nope = 1", "Schema error: No field named nope"),
            ("row", "The filter row does not return a boolean"),
            ("row = 'a'", "could not convert to literal of type 'Int64'"),
            # LanceDB itself stops reading here, and would apply the beginning.
            ("row > 1; DROP TABLE rows", r"sql parser error: Expected: \), found: ;"),
            ("row >", "sql parser error: Expected: an expression"),
            ("", "sql parser error: Expected: an expression"),
            ("row IN (SELECT 1)", "is not supported SQL"),
        ],
    )
    def test_filters_that_mean_nothing(self, folder, tmp_path, where, reason):
        build(folder, tmp_path / "index")
        columns = (
            r"; columns of \S+index: source \(string\), id \(string\), file \(string\), row \(int64\), chunk \(int32\)"
            r", start \(int32\), end \(int32\), text \(string\)$"
        )
        with pytest.raises(InputError, match=reason + ".*" + columns) as caught:
            search(FakeEncoder(), "hello", tmp_path / "index", where=where)
        assert str(caught.value).startswith(f"the filter {where!r} cannot be applied: ")

    def test_vectors_made_for_search_are_searched_by_words_too(self, tmp_path):
        texts = ["zyx yxz", "the xyz case", "abc"]
        for method, is_hybrid in (("search", True), ("joined", False)):
            model = FakeEncoder(method=method)
            write_embeddings(tmp_path / f"{method}.parquet", texts, model=model)
            build(tmp_path / f"{method}.parquet", tmp_path / method)
            index = Index.open(tmp_path / method)
            assert index.is_hybrid is is_hybrid
            found = {given: index.search(model, "xyz", 1, hybrid=given)[0].text for given in (None, True, False)}
            assert found == {None: texts[is_hybrid], True: texts[1], False: texts[0]}
        # Files have no index of words, and are compared by their vectors.
        assert search(FakeEncoder(method="search"), "xyz", tmp_path / "search.parquet", 1)[0].text == texts[0]

    def test_words_and_meaning_together(self, tmp_path):
        # Letters are counted, so that "xyz" is closest to its own letters in any order, and words tell them apart.
        texts = ["zyx yxz", "the xyz case", "abc", "bca", "Le café de l'été", "東京は日本の首都です"]
        write_embeddings(tmp_path / "a.parquet", texts)
        build(tmp_path / "a.parquet", tmp_path / "index")
        index = Index.open(tmp_path / "index")
        assert index.search(FakeEncoder(), "xyz", 1)[0].text == "zyx yxz"
        first, second, *_ = index.search(FakeEncoder(), "xyz", 6, hybrid=True)
        # First by words and somewhere by meaning; first by meaning alone: 1/61.
        assert (first.text, second.text) == ("the xyz case", "zyx yxz")
        assert second.fused == pytest.approx(1 / 61)
        assert first.fused > second.fused
        # The score stays the cosine. "zyx yxz": (2, 2, 2) and one blank, so that it is 6 / sqrt(3 * 13).
        assert second.score == pytest.approx(6 / 39**0.5)
        for query, text in (("cafe ETE", texts[4]), ("首都", texts[5])):
            assert index.search(FakeEncoder(), query, 1, hybrid=True)[0].text == text
        # Nothing in it is a word, or an operator.
        assert len(index.search(FakeEncoder(), '+-!(AND" text:*', 6, hybrid=True)) == 6

    def test_words_by_their_stems(self, tmp_path):
        texts = ["cats sleeping", "a stranger", "zzz"]
        path = write_embeddings(tmp_path / "a.parquet", texts)

        def first(query):
            return max(
                Index.open(tmp_path / "index").search(FakeEncoder(), query, 3, hybrid=True), key=lambda hit: hit.fused
            ).fused

        build(path, tmp_path / "index")
        assert first("sleeps") == pytest.approx(1 / 61)
        build(path, tmp_path / "index", language="English")
        assert first("sleeps") == pytest.approx(2 / 61)
        # What is not said stays as it is.
        build(path, tmp_path / "index")
        assert first("sleeps") == pytest.approx(2 / 61)

    def test_further_columns(self, tmp_path):
        one = {"stars": [3, 5], "lang": pa.array(["de", "en"]).dictionary_encode(), "list": [[1], [2]]}
        write_embeddings(tmp_path / "a.parquet", ["ab", "abab"], **one)
        build(tmp_path / "a.parquet", tmp_path / "index")
        write_embeddings(tmp_path / "b.parquet", ["ba"], day=pa.array([0], pa.date32()))
        build(tmp_path / "b.parquet", tmp_path / "index")
        index = Index.open(tmp_path / "index")
        assert {"stars": "int64", "lang": "string", "day": "date32[day]"}.items() <= index.columns.items()
        assert "list" not in index.columns
        (hit,) = index.search(FakeEncoder(), "ab", where="stars > 3 AND lang = 'en'")
        assert (hit.text, hit.more) == ("abab", {"stars": 5, "lang": "en", "day": None})
        (hit,) = index.search(FakeEncoder(), "ab", where="day < date '1970-01-02'")
        assert (hit.text, hit.to_dict()["more"]) == ("ba", {"stars": None, "lang": None, "day": "1970-01-01"})
        wrong = write_embeddings(tmp_path / "c.parquet", ["ba"], stars=["many"])
        with pytest.raises(
            InputError, match=r"c\.parquet: column 'stars' holds string, and in \S+index int64; give one"
        ):
            build(wrong, tmp_path / "index")
        taken = write_embeddings(tmp_path / "d.parquet", ["ba"], part=["one"])
        with pytest.raises(
            InputError, match=r"a file has the column 'part'; key, part, numbered, source and names that"
        ):
            build(taken, tmp_path / "other")

    def test_pieces_of_texts(self, tmp_path):
        places = {"chunk": [0, 1], "start": [0, 8], "end": [10, 18]}
        columns = {name: pa.array(values, pa.int32()) for name, values in places.items()}
        write_embeddings(tmp_path / "out" / "a.parquet", ["ab", "xyz"], file="in.txt", **columns)
        # Both are pieces of one row.
        build(tmp_path / "out", tmp_path / "index")
        (hit,) = Index.open(tmp_path / "index").search(FakeEncoder(), "zyx", where='"end" > 10')
        assert hit == Hit(1, pytest.approx(1.0), 1, "xyz", file="in.txt", row=1, chunk=1, start=8, end=18, source="out")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"k": 0}, "k=0 has to be at least 1"),
            ({"probes": 0}, "probes=0 has to be at least 1"),
            ({"refine": 0}, "refine=0 has to be at least 1"),
            ({"query": " "}, "the query ' ' is blank"),
        ],
    )
    def test_what_cannot_be_asked(self, tmp_path, given, message):
        build(write_embeddings(tmp_path / "a.parquet", ["ab"]), tmp_path / "index")
        with pytest.raises(InputError, match=message):
            Index.open(tmp_path / "index").search(FakeEncoder(), **{"query": "ab", **given})

    def test_whoever_has_it_open_sees_changes(self, folder, tmp_path):
        build(folder, tmp_path / "index", approximate_from=100)
        index = Index.open(tmp_path / "index")
        shard(folder, 0, some_words(200, seed=1))
        build(folder, tmp_path / "index", approximate_from=100)
        assert index.search(FakeEncoder(), some_words(9, seed=1)[8], 1)[0].row == 8


def test_old_versions_do_not_pile_up(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("valuembed.search.vector_store.KEPT", timedelta(milliseconds=1))

    def size():
        return sum(path.stat().st_size for path in (tmp_path / "index").rglob("*") if path.is_file())

    build(folder, tmp_path / "index", approximate_from=100)
    first = size()
    for seed in range(1, 5):
        shard(folder, 0, some_words(200, seed=seed))
        build(folder, tmp_path / "index", approximate_from=100)
    assert size() < 2 * first


def sockets_of_this_process():
    """Those that lead somewhere else, over TCP or UDP."""
    own = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    tables = [Path("/proc/self/net", name).read_text().splitlines() for name in ("tcp", "tcp6", "udp", "udp6")]
    return own & {f"socket:[{line.split()[9]}]" for table in tables for line in table[1:]}


def test_no_network_is_reached_for(folder, tmp_path):
    """Neither by Python nor by what is compiled: no socket is opened, whatever tests before have left."""
    if not Path("/proc/self/net").is_dir():
        pytest.skip("the system does not tell which sockets are open")
    before = sockets_of_this_process()
    build(folder, tmp_path / "index", approximate_from=100)
    Index.open(tmp_path / "index").search(FakeEncoder(), "hello", hybrid=True)
    assert sockets_of_this_process() - before == set()


def test_nothing_is_warned_about(folder, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(folder, tmp_path / "index", approximate_from=100)
        Index.open(tmp_path / "index").search(FakeEncoder(), "hello", hybrid=True, where="row > 5")
    assert capfd.readouterr() == ("", "")


def test_kept_columns_can_be_filtered_by_from_the_start(tmp_path):
    lines = [
        {"text": "aa", "label": "x", "source": "web", "n": 1, "Year": 1999, "a.b": True},
        {"text": "ab", "label": "y", "source": "book", "n": 2, "Year": 2001, "a.b": None},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    embed_file(FakeEncoder(), tmp_path / "in.jsonl", tmp_path / "one.parquet", progress=False)
    embed_corpus(FakeEncoder(), tmp_path / "in.jsonl", tmp_path / "many", progress=False)
    for source in ("one.parquet", "many"):
        build_index(tmp_path / source, tmp_path / f"{source}.index", progress=False)
        index = Index.open(tmp_path / f"{source}.index")
        assert {
            "label": "string",
            "input_source": "string",
            "n": "int64",
            "a_b": "bool",
        }.items() <= index.columns.items()
        for where in ("label = 'y'", "input_source = 'book'", "n > 1", "Year >= 2000", "a_b IS NULL"):
            assert [hit.text for hit in index.search(FakeEncoder(), "aa", where=where)] == ["ab"]
        hit = index.search(FakeEncoder(), "aa", 1)[0]
        assert hit.more == {"label": "x", "input_source": "web", "n": 1, "Year": 1999, "a_b": True}


def test_an_index_made_without_kept_columns_takes_them_in(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "aa", "label": "x"}\n')
    for name, keep in (("old", []), ("new", None)):
        embed_file(FakeEncoder(), tmp_path / "in.jsonl", tmp_path / f"{name}.parquet", keep=keep, progress=False)
        build_index(tmp_path / f"{name}.parquet", tmp_path / "index", progress=False)
    found = Index.open(tmp_path / "index").search(FakeEncoder(), "aa")
    assert {hit.source: hit.more for hit in found} == {"old.parquet": {"label": None}, "new.parquet": {"label": "x"}}
