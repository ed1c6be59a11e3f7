import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tqdm.auto
from fakes import FakeEncoder

from valuembed._utils.atomic import NewFile
from valuembed._utils.progress import step_done
from valuembed.corpus import batches
from valuembed.corpus.job import check_files, embed_file, rejected_path
from valuembed.errors import InputError, OutputError, ReadingError, TruncationWarning


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"text": f"text number {n}", "id": f"doc-{n}"}) for n in range(10)]
    path.write_text("\n".join([*lines[:4], "{broken", '{"text": " "}', *lines[4:]]) + "\n")
    return path


def rejects(output):
    return [json.loads(line) for line in rejected_path(output).read_text().splitlines()]


def test_embed_file_writes_what_the_model_returns(tmp_path, source):
    model, output = FakeEncoder(), tmp_path / "out.parquet"
    summary = embed_file(model, source, output, rows_per_chunk=3, progress=False)
    table = pq.read_table(output)
    texts = [f"text number {n}" for n in range(10)]
    assert table.schema.names == ["id", "text", "input_id", "embedding"]
    assert table.schema.field("id").type == pa.int64()
    assert table.schema.field("text").type == pa.string()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16)
    assert table["text"].to_pylist() == texts
    # Positions in the input: the two rows set aside keep theirs.
    assert table["id"].to_pylist() == [0, 1, 2, 3, 6, 7, 8, 9, 10, 11]
    stored = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(stored, FakeEncoder().encode_document(texts))
    assert [row["row"] for row in rejects(output)] == [5, 6]
    assert rejects(output)[1]["reason"] == "blank"
    assert (summary.rows, summary.embedded, summary.rejected) == (12, 10, 2)
    assert (summary.tokens, summary.truncated) == (30, 0)
    assert summary.seconds > 0
    # Texts are embedded as documents, three at a time, each once; the first call is the probe.
    assert {role for role, _ in model.calls} == {"document"}
    assert [len(texts) for _, texts in model.calls[1:]] == [3, 3, 3, 1]
    assert pq.ParquetFile(output).metadata.num_row_groups == 4


def test_the_file_records_model_and_recipe(tmp_path, source):
    embed_file(FakeEncoder("some/model"), source, tmp_path / "out.parquet")
    record = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"valuembed"])
    assert record["model"] == "some/model"
    recipe = {"method": "aligned_wva", "signal": "value", "weights": "last", "alignment": "projection"}
    assert record["recipe"] == {**recipe, "layers": [2, 3], "template": ["{text}"]}
    assert record["width"] == 16
    assert record.keys() == {"model", "loaded_from", "recipe", "width", "precision", "dim", "version", "probe"}
    assert (record["precision"], record["dim"]) == ("float32", None)


def test_ids_of_a_column_are_strings(tmp_path, source):
    embed_file(FakeEncoder(), source, tmp_path / "out.parquet", id_column="id")
    ids = pq.read_table(tmp_path / "out.parquet")["id"]
    assert ids.type == pa.string()
    assert ids.to_pylist() == [f"doc-{n}" for n in range(10)]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_every_kind_of_input_gives_the_same_output(tmp_path, kind):
    texts = ["naïve café", "日本語のテキスト", "plain, with a comma", "emoji 🙂"]
    path = tmp_path / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = {
            "txt": texts,
            "jsonl": [json.dumps({"text": t}) for t in texts],
            "csv": ["text", *(f'"{t}"' for t in texts)],
        }
        path.write_text("\n".join(lines[kind]) + "\n", encoding="utf-8")
    embed_file(FakeEncoder(), path, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["text"].to_pylist() == texts
    assert table["id"].to_pylist() == [0, 1, 2, 3]
    assert not rejected_path(tmp_path / "out.parquet").exists()


def test_an_output_is_an_input(tmp_path, source):
    embed_file(FakeEncoder(), source, tmp_path / "one.parquet", id_column="id")
    embed_file(FakeEncoder(), tmp_path / "one.parquet", tmp_path / "two.parquet", id_column="id")
    assert pq.read_table(tmp_path / "two.parquet").equals(pq.read_table(tmp_path / "one.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.txt", "", r"in\.txt holds no rows: there is nothing in it$"),
        ("in.csv", "id,text\n", r"in\.csv holds no rows: there is nothing in it but a header$"),
        ("in.txt", "\n\n\n", r"in\.txt holds no text: all 3 rows are blank$"),
        ("in.jsonl", "{broken\n", r"its one row cannot be used; the first, in line 1: not valid JSON: Expecting"),
        (
            "in.jsonl",
            '{"text": 1}\n{"text": null}\n',
            r"none of its 2 rows can be used; the first, in line 1: not a str",
        ),
    ],
)
def test_an_input_that_yields_nothing_is_an_error_before_any_work(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    model = FakeEncoder()
    fails(tmp_path, tmp_path / name, InputError, message, model)
    assert model.calls == []


def test_the_first_row_set_aside_is_told(tmp_path, source):
    first = embed_file(FakeEncoder(), source, tmp_path / "out.parquet", rows_per_chunk=3).first_rejected
    assert first.row == 5
    assert first.reason.startswith("not valid JSON: ")
    (tmp_path / "good.txt").write_text("a good text\n")
    assert embed_file(FakeEncoder(), tmp_path / "good.txt", tmp_path / "good.parquet").first_rejected is None


def test_truncated_texts_are_counted_and_warned_about_once(tmp_path):
    (tmp_path / "in.txt").write_text("\n".join(["short", "long " * 50, "longer " * 50]))
    with pytest.warns(TruncationWarning, match="^2 of 3 texts were too long and lost their ends$") as caught:
        summary = embed_file(FakeEncoder(), tmp_path / "in.txt", tmp_path / "out.parquet", rows_per_chunk=1)
    assert summary.truncated == 2
    assert len(caught) == 1


def test_long_texts_end_a_chunk_early(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "CALL_CHARACTERS", 8)
    (tmp_path / "in.txt").write_text("aaaa\nbbbb\ncc\n")
    model = FakeEncoder()
    embed_file(model, tmp_path / "in.txt", tmp_path / "out.parquet")
    assert [texts for _, texts in model.calls[1:]] == [["aaaa", "bbbb"], ["cc"]]


def test_overwrite_replaces_output_and_list_of_rejected_rows(tmp_path, source):
    output = tmp_path / "out.parquet"
    embed_file(FakeEncoder(), source, output)
    with pytest.raises(OutputError, match=r"out\.parquet exists; give another name, or --overwrite \(overwrite=True\)"):
        embed_file(FakeEncoder(), source, output)
    (tmp_path / "good.txt").write_text("a good text\n")
    embed_file(FakeEncoder(), tmp_path / "good.txt", output, overwrite=True)
    assert pq.read_table(output)["text"].to_pylist() == ["a good text"]
    assert not rejected_path(output).exists()


def fails(tmp_path, source, error, message, model=None, output="out.parquet", **options):
    """Embed, expect an error, and check that it leaves the folder as it was."""
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(error, match=message):
        embed_file(model or FakeEncoder(), source, tmp_path / output, rows_per_chunk=3, progress=False, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_outputs_that_cannot_be_are_refused(tmp_path, source):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "in.parquet").write_bytes(b"")
    fails(
        tmp_path,
        source,
        OutputError,
        r"out\.csv has the extension '\.csv'; the only format is \.parquet",
        output="out.csv",
    )
    fails(
        tmp_path, source, OutputError, r"folder \S*nowhere does not exist; create it first", output="nowhere/o.parquet"
    )
    fails(
        tmp_path, source, OutputError, r"folder\.parquet is a folder; give the name of a file", output="folder.parquet"
    )
    fails(
        tmp_path, tmp_path / "in.parquet", OutputError, r"in\.parquet is the input", output="in.parquet", overwrite=True
    )
    with pytest.raises(ValueError, match="rows_per_chunk=0 has to be at least 1"):
        embed_file(FakeEncoder(), source, tmp_path / "out.parquet", rows_per_chunk=0)


def test_an_unwritable_folder_is_refused_before_anything_is_done(tmp_path, source, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=r"out\.parquet: folder \S+ is not writable"):
        check_files(source, tmp_path / "out.parquet")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write(tmp_path, source):
    (tmp_path / "locked").mkdir(mode=0o500)
    fails(tmp_path, source, OutputError, r"folder \S+locked is not writable", output="locked/out.parquet")


def test_a_folder_that_refuses_the_file_is_an_output_error(tmp_path, source, monkeypatch):
    def refuse(path, mode="r", *args, **kwargs):
        if "x" in mode:
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(path, mode, *args, **kwargs)

    original = Path.open
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match=r"cannot write \S+out\.parquet: Permission denied; nothing was left there"):
        embed_file(FakeEncoder(), source, tmp_path / "out.parquet")


def test_input_errors_leave_nothing_behind(tmp_path, source):
    fails(tmp_path, source, InputError, "no column 'body'; its columns are 'text', 'id'", text_column="body")
    fails(tmp_path, tmp_path / "missing.txt", InputError, r"missing\.txt does not exist")


def test_a_vector_that_is_not_finite_names_its_row_and_leaves_nothing(tmp_path, source):
    message = r"ids 3 to 7: the embedding is not finite for ids 6$"
    fails(tmp_path, source, ReadingError, message, FakeEncoder(poison="number 4"))


def test_an_error_of_the_model_says_which_rows_it_was_given(tmp_path, source):
    class Failing(FakeEncoder):
        def encode_document(self, inputs, **options):
            if "text number 4" in inputs:
                raise ReadingError("rows 1 are not finite")
            return super().encode_document(inputs, **options)

    message = r"in\.jsonl, ids 3 to 7 \(rows are counted from the first of these\): rows 1 are not finite"
    fails(tmp_path, source, ReadingError, message, Failing())


def test_vectors_of_another_shape_are_an_error(tmp_path, source):
    class Wide(FakeEncoder):
        def encode_document(self, inputs, **options):
            vectors = super().encode_document(inputs, **options)
            return vectors if len(inputs) == 1 else vectors[:, :7]

    fails(tmp_path, source, ReadingError, r"returned vectors \(3, 7\), expected \(3, 16\)", Wide())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interruption_keeps_the_earlier_output(tmp_path, source, interruption):
    embed_file(FakeEncoder(), source, tmp_path / "out.parquet")

    class Interrupted(FakeEncoder):
        def encode_document(self, inputs, **options):
            if len(self.calls) == 2:
                raise interruption("stop")
            return super().encode_document(inputs, **options)

    fails(tmp_path, source, interruption, "stop", Interrupted(), overwrite=True)


class FullDisk:
    """A file that takes so many bytes and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 3, 200, 600, 1500])
def test_a_full_disk_leaves_nothing_behind(tmp_path, source, monkeypatch, room):
    original = NewFile.__enter__

    def enter(self):
        original(self)
        self.file = FullDisk(self.file, room)
        return self

    monkeypatch.setattr(NewFile, "__enter__", enter)
    message = r"cannot write \S+: No space left on device; free some space and run it again; nothing was left there"
    fails(tmp_path, source, OutputError, message)


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are set by POSIX's setrlimit")
def test_a_limit_of_the_system_on_writing_leaves_nothing_behind(tmp_path, source):
    script = textwrap.dedent(
        """
        import resource, sys
        from fakes import FakeEncoder
        from valuembed.corpus import embed_file
        from valuembed.errors import OutputError
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            embed_file(FakeEncoder(width=256), sys.argv[1], sys.argv[2])
        except OutputError as error:
            print(error)
        """
    )
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", script, source, tmp_path / "out.parquet"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])},
    )
    assert "out.parquet: File too large; nothing was left there" in done.stdout, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_new_file_has_the_usual_rights(tmp_path, source):
    embed_file(FakeEncoder(), source, tmp_path / "out.parquet")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.parquet").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_bar_moves_with_every_step_of_the_model(tmp_path, source, monkeypatch):
    class Stepping(FakeEncoder):
        def encode_document(self, inputs, **options):
            for _ in inputs:
                step_done(1)
            return super().encode_document(inputs, **options)

    moved = []

    class Bar(tqdm.auto.tqdm):
        def update(self, n=1):
            moved.append(n)
            self.n += n

    monkeypatch.setattr("valuembed.corpus.single_file.track", lambda show, **about: Bar(disable=True, **about))
    embed_file(Stepping(), source, tmp_path / "out.parquet")
    # A step for each of ten texts, then the two rows that were set aside.
    assert moved == [1] * 10 + [2]
