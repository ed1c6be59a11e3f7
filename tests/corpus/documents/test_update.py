"""A store of passages kept in step with a folder: what is embedded, what stays, what goes; both stores alike."""

import json
import os
import random
import shutil
import time

import pytest
from fakes import FakeEncoder
from passages import STORES, held, rows_of, start, update, vectors, words, write_document, write_documents

from valuembed.corpus.documents import PassageFolder, check_documents, holds_documents, update as update_module
from valuembed.data.documents import read_passages
from valuembed.errors import DocumentError, InputError, MissingExtraError, OutputError
from valuembed.search import PassageIndex, open_embeddings, search

pytest.importorskip("lancedb", reason="the extra 'store' is not installed")
pytest.importorskip("semantic_text_splitter", reason="the extra 'documents' is not installed")


@pytest.fixture(autouse=True)
def counting_words(monkeypatch):
    monkeypatch.setattr(update_module, "token_counter", words)


@pytest.fixture
def folder(tmp_path):
    return write_documents(tmp_path / "notes")


@pytest.fixture(params=STORES)
def new(request, tmp_path):
    """Makes the store anew, as each run does."""
    return lambda: STORES[request.param](tmp_path / "store")


def embedded(model):
    """Texts that a model embedded, but for the sentence that it is told by."""
    return [text for _, texts in model.calls for text in texts if not text.startswith("The quick brown fox")]


class TestFirstRun:
    def test_every_passage_is_there_once(self, tmp_path, folder, new):
        done = update(folder, new())
        assert (done.documents, done.passages, done.added, done.embedded, done.rejected) == (6, 18, 6, 18, 0)
        assert (done.changed, done.removed, done.unchanged, done.width) == (0, 0, 0, 16)
        assert held(tmp_path / "store")["a/0.md"] == [
            f"## Part {n} of doc0\n\n{' '.join([f'doc0{n}'] * 7)}".replace("## ", "") for n in range(3)
        ]

    def test_a_row_says_where_the_passage_stands(self, tmp_path, folder, new):
        update(folder, new())
        rows = {(row["file"], row["chunk"]): row for row in rows_of(tmp_path / "store").to_pylist()}
        row = rows["b/1.md", 1]
        assert (row["id"], row["row"], row["headings"], row["page"], row["line"]) == (
            "b/1.md#1",
            0,
            "Part 1 of doc1",
            None,
            5,
        )
        assert row["title"] == "Part 0 of doc1"
        assert 0 < row["start"] < row["end"]

    def test_passages_of_many_documents_are_embedded_together(self, folder, new):
        model = FakeEncoder()
        update(folder, new(), model)
        calls = [texts for _, texts in model.calls if len(texts) > 1]
        assert [len(texts) for texts in calls] == [18]

    def test_title_and_headings_stand_in_front_where_there_is_room(self, folder, new):
        model = FakeEncoder()
        (folder / "deep.md").write_text("# One\n\n## Two or three words\n\n### Last\n\nText of it.\n")
        update(folder, new(), model, chunk=12)
        # A fourth of 12 words: the whole trail has 8, its last heading 1.
        assert any(text.startswith("Last\n\n") and text.endswith("Text of it.") for text in embedded(model))
        update(folder, type(new())(folder.parent / "wide"), wide := FakeEncoder(), chunk=64)
        assert any(text.startswith("One > Two or three words > Last\n\n") for text in embedded(wide))

    def test_it_can_be_searched(self, tmp_path, folder, new):
        update(folder, new())
        hit = search(FakeEncoder(), "doc22", tmp_path / "store", 1)[0]
        assert hit.file == "a/2.md"
        assert hit.more["headings"] == "Part 2 of doc2"
        assert open_embeddings(tmp_path / "store").vector_spec.model == "fake"

    @pytest.mark.parametrize(("precision", "dim"), [("int8", None), ("binary", None), ("float16", 8)])
    def test_precision_and_size_are_those_of_the_store(self, tmp_path, folder, new, precision, dim):
        done = update(folder, new(), precision=precision, dim=dim)
        assert (done.precision, done.width) == (precision, dim or 16)
        write_document(folder / "new.md", "late")
        # They need not be said again.
        assert (update(folder, new()).precision, len(vectors(tmp_path / "store"))) == (precision, 21)

    def test_one_document_by_itself(self, tmp_path, folder, new):
        assert update(folder / "a" / "0.md", new()).passages == 3
        assert list(held(tmp_path / "store")) == ["0.md"]


class TestLaterRuns:
    def test_nothing_is_left_to_do(self, folder, new):
        update(folder, new())
        model = FakeEncoder()
        done = update(folder, new(), model)
        assert (done.unchanged, done.added, done.changed, done.embedded) == (6, 0, 0, 0)
        assert embedded(model) == []

    def test_only_what_changed_is_embedded(self, tmp_path, folder, new):
        update(folder, new())
        before = vectors(tmp_path / "store")
        write_document(folder / "a" / "0.md", "other", sections=2)
        write_document(folder / "c" / "new.md", "fresh")
        (folder / "b" / "1.md").unlink()
        model = FakeEncoder()
        done = update(folder, new(), model)
        assert (done.added, done.changed, done.removed, done.unchanged) == (1, 1, 1, 4)
        assert (done.embedded, done.passages, done.documents) == (5, 17, 6)
        assert all("other" in text or "fresh" in text for text in embedded(model))
        after = held(tmp_path / "store")
        assert sorted(after) == ["a/0.md", "a/2.md", "a/4.md", "b/3.md", "b/5.md", "c/new.md"]
        assert len(after["a/0.md"]) == 2
        assert "other0" in after["a/0.md"][0]
        kept = {key: vector for key, vector in vectors(tmp_path / "store").items() if key[0] in ("a/2.md", "b/5.md")}
        assert kept == {key: before[key] for key in kept}

    def test_a_touched_file_is_not_embedded_and_not_hashed_twice(self, folder, new, monkeypatch):
        update(folder, new())
        os.utime(folder / "a" / "0.md", ns=(1, 1))
        model = FakeEncoder()
        assert update(folder, new(), model).unchanged == 6
        assert embedded(model) == []
        monkeypatch.setattr(update_module, "_digest", lambda path: pytest.fail("it was hashed again"))
        assert update(folder, new()).unchanged == 6

    def test_a_renamed_file_is_held_under_its_new_name_alone(self, tmp_path, folder, new):
        update(folder, new())
        (folder / "a" / "0.md").rename(folder / "a" / "renamed.md")
        done = update(folder, new())
        assert (done.added, done.removed, done.passages) == (1, 1, 18)
        assert "a/0.md" not in held(tmp_path / "store")

    def test_the_same_as_made_anew(self, tmp_path, folder, new):
        update(folder, new())
        for number in range(4):
            write_document(folder / "a" / f"{2 * number}.md", f"turn{number}", sections=number + 1)
            (folder / "b" / f"{2 * number + 1}.md").unlink(missing_ok=True)
            update(folder, new())
        fresh = type(new())(tmp_path / "fresh")
        update(folder, fresh)
        assert held(tmp_path / "store") == held(tmp_path / "fresh")
        assert vectors(tmp_path / "store") == vectors(tmp_path / "fresh")

    def test_what_it_was_begun_with_decides(self, tmp_path, folder, new):
        update(folder, new())
        with pytest.raises(OutputError, match=r"begun with other settings \(there against here\): chunk 12 against 13"):
            update(folder, new(), chunk=13)
        with pytest.raises(OutputError, match="layers"):
            update(folder, new(), FakeEncoder(layers=(1,)))
        assert update(folder, new(), chunk=None).unchanged == 6

    def test_another_folder_does_not_take_its_place(self, tmp_path, folder, new):
        update(folder, new())
        other = write_documents(tmp_path / "elsewhere" / "notes", 1)
        with pytest.raises((InputError, OutputError), match="notes"):
            update(other, new())
        assert len(held(tmp_path / "store")) == 6


class TestSetAside:
    def test_what_cannot_be_read_is_listed_and_looked_at_again_once_it_changes(
        self, tmp_path, folder, new, monkeypatch
    ):
        asked = []

        def read(file, splitter):
            asked.append(file.name)
            if "bad" in file.name:
                raise DocumentError("no text in it")
            return read_passages(file, splitter)

        monkeypatch.setattr(update_module, "read_passages", read)
        bad = write_document(folder / "bad.md", "bad")
        (folder / "film.mp4").write_bytes(b"x")
        done = update(folder, new())
        assert (done.documents, done.rejected, done.first_rejected) == (6, 2, "bad.md: no text in it")
        listed = [json.loads(line) for line in (tmp_path / "store" / "rejected.jsonl").read_text().splitlines()]
        assert listed == [
            {"file": "bad.md", "reason": "no text in it"},
            {"file": "film.mp4", "reason": "of a kind that nothing reads: .mp4"},
        ]
        asked.clear()
        assert update(folder, new()).rejected == 2
        assert asked == []
        bad.write_text("# Changed")
        (folder / "film.mp4").unlink()
        update(folder, new())
        assert asked == ["bad.md"]
        bad.unlink()
        done = update(folder, new())
        assert (done.rejected, done.removed) == (0, 1)
        assert not (tmp_path / "store" / "rejected.jsonl").exists()

    def test_a_missing_extra_is_tried_again(self, folder, new, monkeypatch):
        def read(file, splitter):
            raise MissingExtraError("PDF needs the extra 'documents'")

        write_document(folder / "late.md", "late")
        monkeypatch.setattr(
            update_module, "read_passages", lambda *given: (read if "late" in given[0].name else read_passages)(*given)
        )
        assert update(folder, new()).first_rejected == "late.md: PDF needs the extra 'documents'"
        monkeypatch.undo()
        monkeypatch.setattr(update_module, "token_counter", words)
        done = update(folder, new())
        assert (done.changed, done.embedded, done.rejected) == (1, 3, 0)

    def test_a_passage_without_a_vector_costs_the_others_nothing(self, tmp_path, folder, new):
        done = update(folder, new(), FakeEncoder(poison="doc21"))
        assert (done.passages, done.embedded, done.rejected) == (17, 17, 1)
        assert done.first_rejected == "a/2.md: 1 passage of 3 left out: its embedding is not finite (NaN or infinite)"
        chunks = [row["chunk"] for row in rows_of(tmp_path / "store").to_pylist() if row["file"] == "a/2.md"]
        assert sorted(chunks) == [0, 2]

    def test_a_folder_without_a_document(self, tmp_path, new):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "film.mp4").write_bytes(b"x")
        message = r"empty holds no document; 1 file is set aside: of a kind that nothing reads: \.mp4; give a folder"
        with pytest.raises(InputError, match=message):
            update(tmp_path / "empty", new())
        with pytest.raises(InputError, match=r"nowhere does not exist; give a folder of documents"):
            update(tmp_path / "nowhere", new())

    def test_no_document_that_can_be_read(self, tmp_path, new):
        (tmp_path / "blank").mkdir()
        (tmp_path / "blank" / "a.md").write_text("\n \n")
        with pytest.raises(
            InputError, match=r"none of 1 document of \S+blank could be embedded; the first: a\.md: there is no text"
        ):
            update(tmp_path / "blank", new())


class TestWhileItRuns:
    def test_a_file_that_changes_while_it_is_read(self, tmp_path, folder, new, monkeypatch):
        times = []

        def read(file, splitter):
            found = read_passages(file, splitter)
            if file.name == "a/0.md" and len(times) < 2:
                times.append(file)
                write_document(folder / "a" / "0.md", "x" * len(times), sections=len(times))
            return found

        monkeypatch.setattr(update_module, "read_passages", read)
        done = update(folder, new())
        assert done.first_rejected == "a/0.md: it changed while it was read; run the same command again"
        assert "a/0.md" not in held(tmp_path / "store")
        done = update(folder, new())
        assert (done.added, done.rejected) == (1, 0)
        assert len(held(tmp_path / "store")["a/0.md"]) == 2

    def test_a_file_that_changes_once_is_read_again(self, tmp_path, folder, new, monkeypatch):
        def read(file, splitter):
            found = read_passages(file, splitter)
            if file.name == "a/0.md" and len(found) == 3:
                write_document(folder / "a" / "0.md", "shorter", sections=2)
            return found

        monkeypatch.setattr(update_module, "read_passages", read)
        assert update(folder, new()).rejected == 0
        assert len(held(tmp_path / "store")["a/0.md"]) == 2

    def test_a_file_that_vanishes(self, folder, new, monkeypatch):
        def read(file, splitter):
            (folder / "b" / "5.md").unlink(missing_ok=True)
            return read_passages(file, splitter)

        monkeypatch.setattr(update_module, "read_passages", read)
        done = update(folder, new())
        assert (done.documents, done.rejected) == (5, 1)
        assert done.first_rejected.startswith(
            "b/5.md: gone since it was found: No such file or directory; run the same"
        )

    def test_a_folder_that_vanishes_costs_nothing_that_is_held(self, tmp_path, folder, new, monkeypatch):
        update(folder, new())
        write_document(folder / "a" / "9.md", "nine")

        def digest(path):
            shutil.rmtree(folder)
            return path.read_bytes().hex()

        monkeypatch.setattr(update_module, "_digest", digest)
        with pytest.raises(
            InputError, match=r"notes is gone since this run began; documents that are finished are kept"
        ):
            update(folder, new())
        with pytest.raises(InputError, match="does not exist"):
            update(folder, new())
        folder.mkdir()
        with pytest.raises(InputError, match=r"holds no document; what \S+store holds is kept; give a folder"):
            update(folder, new())
        assert len(held(tmp_path / "store")) == 6

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_a_folder_inside_that_cannot_be_read_keeps_its_documents(self, tmp_path, folder, new):
        update(folder, new())
        (folder / "a").chmod(0)
        try:
            assert update(folder, new()).removed == 0
        finally:
            (folder / "a").chmod(0o755)
        assert len(held(tmp_path / "store")) == 6

    def test_a_second_writer_is_told(self, folder, new):
        update(folder, new())
        store = new()
        with store.writing(store.recorded(), folder), pytest.raises(OutputError, match="is being written by another"):
            update(folder, new())


class TestOutputsInside:
    def test_a_store_inside_its_folder_does_not_hold_itself(self, folder):
        for name, kind in STORES.items():
            update(folder, kind(folder / name))
        (folder / "copy.parquet").write_bytes(next((folder / "folder").glob("*.parquet")).read_bytes())
        for name, kind in STORES.items():
            assert update(folder, kind(folder / name)).unchanged == 6
            assert sorted(held(folder / name))[0] == "a/0.md"
        assert len(check_documents(folder)[0]) == 6

    @pytest.mark.parametrize("kind", STORES)
    def test_a_folder_that_moves_with_its_store_is_the_same(self, tmp_path, folder, kind):
        update(folder, STORES[kind](folder / "store"))
        folder.rename(tmp_path / "moved")
        (tmp_path / "moved" / "again").mkdir()
        moved = tmp_path / "moved"
        moved.rename(tmp_path / "notes")
        assert update(tmp_path / "notes", STORES[kind](tmp_path / "notes" / "store")).unchanged == 6


class TestWays:
    @pytest.mark.parametrize(
        ("names", "documents"),
        [
            (["a.jsonl", "b.csv", "c.tsv", "d.jsonl.gz"], False),
            (["a.jsonl", "b.txt"], True),
            (["a.md"], True),
            (["a.txt"], True),
            (["film.mp4"], False),
            ([], False),
        ],
    )
    def test_a_folder(self, tmp_path, names, documents):
        for name in names:
            (tmp_path / name).write_text("text")
        assert holds_documents(tmp_path) is documents

    @pytest.mark.parametrize(
        ("name", "documents"), [("a.md", True), ("a.pdf", True), ("a.txt", False), ("a.jsonl", False), ("a.mp4", False)]
    )
    def test_a_file(self, tmp_path, name, documents):
        (tmp_path / name).write_text("text")
        assert holds_documents(tmp_path / name) is documents
        assert not holds_documents(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("kind", STORES)
def test_kill_9_at_random_moments_and_start_again(tmp_path, kind):
    folder = write_documents(tmp_path / "notes", 16)
    address = tmp_path / "store"
    moments = random.Random(7)
    for turn in range(4):
        process = start(kind, folder, address, pause=0.05)
        for _ in range(4):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        assert "error" not in process.communicate()[0]
        if turn == 1:
            # While nothing runs, the folder changes under what is half done.
            write_document(folder / "a" / "0.md", "other", sections=1)
            (folder / "b" / "1.md").unlink()
    # Half of it is there, and can be searched.
    found = rows_of(address).num_rows
    assert 0 < found < 44
    assert search(FakeEncoder(), "doc2", address, 3)
    done = update(folder, STORES[kind](address))
    assert done.embedded < 44
    update(folder, STORES[kind](tmp_path / "whole"))
    assert held(address) == held(tmp_path / "whole")
    assert vectors(address) == vectors(tmp_path / "whole")


@pytest.mark.process
@pytest.mark.parametrize("kind", STORES)
def test_of_two_processes_the_second_gets_an_error(tmp_path, kind):
    folder = write_documents(tmp_path / "notes")
    first = start(kind, folder, tmp_path / "store", pause=60)
    for _ in range(2):
        first.stdout.readline()
    said = start(kind, folder, tmp_path / "store", pause=0).communicate()[0]
    first.kill()
    first.communicate()
    assert "is being written by another process; run it again when that is done" in said
    # Its lock went with it.
    assert update(folder, STORES[kind](tmp_path / "store")).embedded == 18


def test_the_stores_are_told_apart(tmp_path, folder):
    assert isinstance(PassageFolder(tmp_path / "new"), PassageFolder)
    update(folder, PassageIndex(tmp_path / "index"))
    with pytest.raises(OutputError, match=r"index holds files but no manifest\.json"):
        PassageFolder(tmp_path / "index")
    update(folder, PassageFolder(tmp_path / "out"))
    with pytest.raises(OutputError, match="is a folder with something else in it; name a new one"):
        update(folder, PassageIndex(tmp_path / "out"))
