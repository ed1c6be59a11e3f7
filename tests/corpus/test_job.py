import errno
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from shared_jobs import held, write_texts

from valuembed._utils.atomic import NewFile
from valuembed.corpus import job, shards
from valuembed.corpus.job import check_corpus, embed_corpus
from valuembed.data import compression
from valuembed.errors import InputError, NotFiniteError, OutputError, ReadingError, TruncationWarning
from valuembed.vectors.provenance import VectorSpec


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, so that inputs have short names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "POLL_SECONDS", 0.01)
    return tmp_path


def embed(inputs, output="out", model=None, **options):
    options = {"rows_per_shard": 10, "progress": False, **options}
    return embed_corpus(model or FakeEncoder(), inputs, output, **options)


def names(folder="out"):
    return sorted(path.name for path in Path(folder).glob("*.parquet"))


def rejected(folder="out"):
    return [json.loads(line) for line in Path(folder, "rejected.jsonl").read_text().splitlines()]


def listing(folder="out"):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_a_folder_of_shards(here):
    write_texts(here / "in" / "a.jsonl", 25)
    (here / "in" / "deep").mkdir()
    (here / "in" / "deep" / "b.txt.gz").write_bytes(gzip.compress(b"one\n\nthree\n"))
    summary = embed("in")
    starts = {name.rpartition("-0000")[0] for name in names()}
    assert sorted(start.rpartition("-")[0] for start in starts) == ["a.jsonl", "b.txt.gz"]
    assert [name.rpartition("-0000")[2] for name in names()] == [
        "000000.parquet",
        "000010.parquet",
        "000020-last.parquet",
        "000000-last.parquet",
    ]
    table = pq.read_table(Path("out", names()[1]))
    assert table.schema.names == ["id", "file", "row", "text", "input_id", "embedding"]
    kinds = [pa.int64(), pa.string(), pa.int64(), pa.string(), pa.string(), pa.list_(pa.float32(), 16)]
    assert table.schema.types == kinds
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(10, 20))
    assert set(table["file"].to_pylist()) == {"in/a.jsonl"}
    np.testing.assert_array_equal(
        np.array(table["embedding"].to_pylist(), np.float32), FakeEncoder().encode_document(table["text"].to_pylist())
    )
    assert VectorSpec.from_metadata(Path("x"), table.schema.metadata).differences(VectorSpec.of(FakeEncoder())) == []
    assert rejected() == [{"file": "in/deep/b.txt.gz", "row": 1, "line": 2, "reason": "blank"}]
    rows = [*(("in/a.jsonl", n) for n in range(25)), ("in/deep/b.txt.gz", 0), ("in/deep/b.txt.gz", 2)]
    assert sorted(held(here / "out")) == rows
    assert (summary.inputs, summary.shards, summary.rows, summary.embedded, summary.rejected) == (2, 4, 28, 27, 1)
    assert (summary.vectors, summary.width, summary.precision, summary.unfinished) == (27, 16, "float32", ())
    assert (summary.run.rows, summary.run.share, summary.tokens) == (28, 1.0, summary.run.tokens)
    # Nothing is left of the work but locks that nobody holds.
    assert {path.suffix for path in Path("out/.work").iterdir()} == {".lock"}
    assert len(list(Path("out/.work").iterdir())) == 2


def test_the_same_again_does_nothing_and_what_is_missing_is_done(here):
    write_texts(here / "a.txt", 25)
    write_texts(here / "b.txt", 10)
    embed(["a.txt", "b.txt"])
    before, model = listing(), FakeEncoder()
    summary = embed(["a.txt", "b.txt"], model=model)
    assert listing() == before
    # The probe alone.
    assert len(model.calls) == 1
    assert (summary.rows, summary.run.rows, summary.run.share) == (35, 0, 1.0)
    Path("out", names()[1]).unlink()
    Path("out", names()[0]).unlink()
    summary = embed(["a.txt", "b.txt"], model=model)
    assert [len(texts) for _, texts in model.calls[2:]] == [10, 10]
    assert summary.run.rows == 20
    assert {name: content for name, content in listing().items() if name in before} == before


def test_a_file_of_just_so_many_rows_ends_with_an_empty_shard(here):
    write_texts(here / "a.txt", 20)
    (here / "empty.txt").touch()
    summary = embed(["a.txt", "empty.txt"])
    assert (summary.rows, summary.shards) == (20, 4)
    assert [pq.read_metadata(Path("out", name)).num_rows for name in names()] == [10, 10, 0, 0]
    assert [name.endswith("-last.parquet") for name in names()] == [False, False, True, True]
    model = FakeEncoder()
    assert embed(["a.txt", "empty.txt"], model=model).run.rows == 0


def test_rows_have_the_ids_of_a_column(here):
    write_texts(here / "a.jsonl", 3)
    embed("a.jsonl", id_column="id")
    table = pq.read_table(Path("out", names()[0]))
    assert (table["id"].to_pylist(), table["row"].to_pylist()) == (["text-0", "text-1", "text-2"], [0, 1, 2])


def test_calls_and_row_groups_are_bounded(here, monkeypatch):
    monkeypatch.setattr(shards, "TEXTS_PER_CALL", 4)
    write_texts(here / "a.txt", 13)
    model = FakeEncoder()
    embed("a.txt", model=model)
    # A call ends with its shard, so that a shard made again is the same to the bit.
    assert [len(texts) for _, texts in model.calls[1:]] == [4, 4, 2, 3]
    assert pq.ParquetFile(Path("out", names()[0])).metadata.num_row_groups == 3


@pytest.mark.parametrize(
    ("precision", "dim", "kind"),
    [
        ("float16", None, pa.list_(pa.float16(), 16)),
        ("int8", 8, pa.list_(pa.int8(), 8)),
        ("binary", None, pa.list_(pa.uint8(), 2)),
        ("binary", 12, pa.list_(pa.uint8(), 2)),
    ],
)
def test_precision_and_size_are_stored_and_recorded(here, precision, dim, kind):
    write_texts(here / "a.txt", 3)
    summary = embed("a.txt", precision=precision, dim=dim)
    table = pq.read_table(Path("out", names()[0]))
    assert table.schema.field("embedding").type == kind
    vector_spec = VectorSpec.from_metadata(Path("x"), table.schema.metadata)
    assert (vector_spec.precision, vector_spec.dim, vector_spec.width) == (precision, dim, dim or 16)
    assert (summary.precision, summary.width) == (precision, dim or 16)
    vectors = FakeEncoder().encode_document(table["text"].to_pylist())
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist()), vector_spec.pack(vectors))


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "options", "difference"),
        [
            (FakeEncoder(), {"rows_per_shard": 20}, "rows_per_shard 10 against 20"),
            (FakeEncoder(), {"precision": "int8"}, "precision 'float32' against 'int8'"),
            (FakeEncoder(), {"dim": 4}, "width 16 against 4 of 16"),
            (FakeEncoder(), {"text_column": "id"}, "text_column None against 'id'"),
            (FakeEncoder(), {"id_column": "id"}, "id_column None against 'id'"),
            (FakeEncoder(layers=(1,)), {}, r"layers \[2, 3\] against \[1\]"),
            (FakeEncoder(template=("so: {text}",)), {}, "template .* against .*so: .*"),
            (FakeEncoder(width=8), {}, "width 16 against 8"),
            (FakeEncoder(shift=0.5), {}, r"other weights or prompts: the same sentence has cosine 0\.9\d+"),
            (FakeEncoder(dtype="bfloat16"), {}, "dtype 'float32' against 'bfloat16'"),
            (FakeEncoder(max_tokens=9), {}, "max_tokens None against 9"),
        ],
    )
    def test_other_settings_by_name(self, here, model, options, difference):
        write_texts(here / "a.jsonl", 12)
        embed("a.jsonl")
        before = listing()
        with pytest.raises(
            OutputError, match=rf"^output out was begun with other settings \(there against here\): {difference}; give"
        ):
            embed("a.jsonl", model=model, **options)
        assert listing() == before

    def test_every_difference_at_once(self, here):
        write_texts(here / "a.jsonl", 12)
        embed("a.jsonl")
        with pytest.raises(OutputError, match=r"layers .*; precision .*; id_column .*; rows_per_shard .*; dtype "):
            embed(
                "a.jsonl",
                model=FakeEncoder(layers=(1,), dtype="float16"),
                precision="int8",
                id_column="id",
                rows_per_shard=5,
            )

    def test_changed_inputs_by_name(self, here):
        for name in ("a.txt", "b.txt", "c.txt"):
            write_texts(here / name, 12)
        embed(["a.txt", "b.txt", "c.txt"])
        before = listing()
        write_texts(here / "a.txt", 11)
        # Of the same length.
        (here / "b.txt").write_text((here / "b.txt").read_text().replace("text number 3", "text number 8"))
        message = (
            r"^2 of the inputs of out changed since shards were made of them: a\.txt \(\d+ bytes then, \d+ now; its "
            r"shards are a\.txt-[0-9a-f]{12}-\*\.parquet\); b\.txt \(of the same length; its shards are b\.txt-"
        )
        with pytest.raises(InputError, match=message):
            embed(["a.txt", "b.txt", "c.txt"])
        assert listing() == before
        # As the message says.
        for path in Path("out").glob("[ab].txt-*.parquet"):
            path.unlink()
        summary = embed(["a.txt", "b.txt", "c.txt"])
        assert (summary.rows, summary.run.rows) == (35, 23)

    def test_an_input_that_was_only_touched_or_copied_is_the_same(self, here):
        path = write_texts(here / "a.txt", 12)
        embed("a.txt")
        path.write_text(path.read_text())
        assert embed("a.txt").run.rows == 0

    def test_an_input_under_a_new_name(self, here):
        write_texts(here / "a.txt", 12)
        embed("a.txt")
        (here / "a.txt").rename(here / "b.txt")
        message = (
            r"^input b\.txt holds what a\.txt held when it was embedded into out, and would be embedded twice; name"
        )
        with pytest.raises(InputError, match=message):
            embed("b.txt")
        with pytest.raises(InputError, match=r"holds what a\.txt held"):
            embed(here / "b.txt")
        for path in Path("out").glob("a.txt-*.parquet"):
            path.unlink()
        assert embed("b.txt").rows == 12

    def test_copies_that_are_given_together_are_embedded_as_they_are_given(self, here):
        for name in ("a.txt", "b.txt"):
            write_texts(here / name, 5)
        assert embed(["a.txt", "b.txt"]).rows == 10

    def test_numbers_that_mean_nothing(self, here):
        write_texts(here / "a.txt", 5)
        for options, message in (
            ({"rows_per_shard": 0}, r"rows_per_shard=0 has to be 1 to 1,000,000"),
            ({"rows_per_shard": 1_000_001}, "rows_per_shard=1000001 has to be 1 to 1,000,000"),
            ({"overlap": 3}, "overlap=3 is between chunks; give chunk too"),
            ({"chunk": 3}, r"chunk=3: documents are cut for a model of valuembed\.load, not .*FakeEncoder"),
            ({"dim": 17}, "dim=17: the vectors of this model are 16 wide; legal: 1 to 16"),
            ({"precision": "int4"}, "precision 'int4' is unknown; legal: float32, float16, int8, binary"),
        ):
            with pytest.raises(InputError, match=message):
                embed("a.txt", **options)
            assert not Path("out").exists()

    def test_folders_that_are_not_a_jobs(self, here):
        write_texts(here / "a.txt", 5)
        Path("full").mkdir()
        Path("full", "thesis.doc").touch()
        Path("file").touch()
        for output, message in (
            ("full", "output full holds files but no manifest.json, so it is no job's; name another folder"),
            ("file", "output file is a file; name a folder, or one file that ends in .parquet"),
            ("new.csv", r"output new.csv has the extension '\.csv'; name a folder, or one file that ends in \.parquet"),
        ):
            with pytest.raises(OutputError, match=message):
                check_corpus(["a.txt"], output)
        assert [path.name for path in Path("full").iterdir()] == ["thesis.doc"]
        # Names with a dot are names.
        assert embed("a.txt", "v1.5").rows == 5

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", r"out/manifest\.json is damaged \(JSONDecodeError.*; put it back, or name another folder"),
            ('{"format": 1}', r"manifest\.json is damaged \(KeyError\('make'\)\)"),
            ('{"format": 2}', r"manifest\.json has the form 2, which this version \(.*\) does not know"),
        ],
    )
    def test_manifests_that_cannot_be_read(self, here, content, message):
        write_texts(here / "a.txt", 5)
        embed("a.txt")
        Path("out/manifest.json").write_text(content)
        with pytest.raises(OutputError, match=message):
            check_corpus("a.txt", "out")

    def test_columns_and_files_before_any_work(self, here):
        write_texts(here / "a.jsonl", 5)
        (here / "b.jsonl").write_text('{"body": "x"}\n')
        with pytest.raises(InputError, match=r"input b\.jsonl has no column 'text'; its columns are 'body'"):
            check_corpus(["a.jsonl", "b.jsonl"], "out")
        with pytest.raises(InputError, match=r"input none\.txt does not exist"):
            check_corpus(["a.jsonl", "none.txt"], "out")
        assert not Path("out").exists()


class TestInputsThatComeAndGo:
    def test_more_inputs_are_more_shards(self, here):
        write_texts(here / "a.txt", 5)
        write_texts(here / "b.txt", 6, "other")
        embed("a.txt")
        model = FakeEncoder()
        summary = embed(["a.txt", "b.txt"], model=model)
        assert [len(texts) for _, texts in model.calls[1:]] == [6]
        assert (summary.inputs, summary.rows, summary.run.rows) == (2, 11, 6)

    def test_inputs_that_are_not_given_stay_and_count(self, here):
        write_texts(here / "a.txt", 5)
        write_texts(here / "b.txt", 6, "other")
        embed("a.txt")
        (here / "a.txt").unlink()
        assert (embed("b.txt").rows, embed("b.txt").unfinished) == (11, ())
        next(Path("out").glob("a.txt-*.parquet")).unlink()
        summary = embed("b.txt")
        assert (summary.rows, summary.unfinished) == (6, ("a.txt",))

    def test_the_manifest_says_whether_everything_is_there(self, here):
        def complete():
            return json.loads(Path("out/manifest.json").read_text())["complete"]

        write_texts(here / "a.txt", 5)
        embed("a.txt")
        counts = {"rows": 5, "embedded": 5, "rejected": 0, "vectors": 5}
        assert counts.items() <= complete().items()
        write_texts(here / "b.txt", 6, "other")
        with pytest.raises(ReadingError):
            embed(["a.txt", "b.txt"], model=Failing(calls=1, error=ReadingError("stop")))
        assert complete() is None

    def test_files_of_other_kinds_are_named(self, here):
        write_texts(here / "in" / "a.txt", 5)
        (here / "in" / "notes.md").touch()
        with pytest.warns(UserWarning, match=r"^1 file is of no kind that is read: in/notes\.md$"):
            assert embed("in").rows == 5


class Failing(FakeEncoder):
    """A model that fails after so many calls; the first is the probe."""

    def __init__(self, *, calls, error, **options):
        super().__init__(**options)
        self.most, self.error = calls, error

    def encode_document(self, inputs, **options):
        if len(self.calls) >= self.most:
            raise self.error
        return super().encode_document(inputs, **options)


class TestRowsSetAside:
    def test_nothing_is_lost_without_a_word(self, here):
        lines = [b'{"text": "fine"}', b"{broken", b'{"text": "bad \xff byte"}', b'{"text": null}', b'{"body": 1}', b""]
        (here / "a.jsonl").write_bytes(b"\n".join(lines * 4) + b"\n")
        summary = embed("a.jsonl")
        assert (summary.rows, summary.embedded, summary.rejected) == (24, 4, 20)
        assert [row for _, row in held(here / "out")] == [0, 6, 12, 18]
        assert [(row["row"], row["line"]) for row in rejected()] == [(n, n + 1) for n in range(24) if n % 6]
        assert [row["reason"].split(":")[0] for row in rejected()[:5]] == [
            "not valid JSON",
            "not valid UTF-8",
            "null, not a text",
            "no key 'text'",
            "blank line",
        ]

    def test_the_list_goes_when_there_is_nothing_in_it(self, here):
        (here / "a.txt").write_text("one\n\n")
        embed("a.txt")
        assert len(rejected()) == 1
        write_texts(here / "a.txt", 3)
        Path("out", names()[0]).unlink()
        embed("a.txt")
        assert not Path("out/rejected.jsonl").exists()

    @pytest.mark.parametrize("raises", [True, False])
    def test_a_text_whose_vector_is_not_finite_costs_the_others_nothing(self, here, raises):
        class Strict(FakeEncoder):
            def encode_document(self, inputs, **options):
                vectors = super().encode_document(inputs, **options)
                if raises and not np.isfinite(vectors).all():
                    raise NotFiniteError("rows 3")
                return vectors

        (here / "a.csv").write_text("text\n" + "".join(f'"line\none {n}"\n' for n in range(25)))
        summary = embed("a.csv", model=Strict(poison="one 13"))
        assert (summary.rows, summary.embedded, summary.rejected) == (25, 24, 1)
        reason = "its embedding is not finite (NaN or infinite)"
        assert rejected() == [{"file": "a.csv", "row": 13, "line": 28, "reason": reason}]
        assert ("a.csv", 13) not in held(here / "out")

    def test_a_model_that_gives_nothing_finite_ends_the_job(self, here):
        write_texts(here / "a.txt", 40)
        with pytest.raises(NotFiniteError, match=r"^more than 16 of 20 texts have no finite embedding: the "):
            embed("a.txt", model=FakeEncoder(poison="number"), rows_per_shard=20)

    def test_vectors_that_do_not_fit_are_set_aside(self, here):
        class Large(FakeEncoder):
            def encode_document(self, inputs, **options):
                vectors = super().encode_document(inputs, **options)
                vectors[["number 2" in text for text in inputs]] *= 100_000
                return vectors

        write_texts(here / "a.txt", 5)
        assert embed("a.txt", model=Large(), precision="float16").embedded == 4
        assert rejected()[0]["reason"] == (
            "its embedding has numbers that are too large for the precision, or nothing but zeros in the size that is "
            "kept"
        )

    def test_texts_that_are_cut_are_warned_about_once(self, here):
        (here / "a.txt").write_text("short\n" + "long " * 50 + "\n" + "longer " * 50)
        with pytest.warns(TruncationWarning, match="^2 of 3 texts were too long and lost their ends$") as caught:
            assert embed("a.txt", rows_per_shard=1).truncated == 2
        assert len(caught) == 1


class TestThingsGoWrong:
    def test_a_damaged_input_is_told_of_when_the_others_are_done(self, here, monkeypatch):
        monkeypatch.setattr(compression, "_BUFFER", 1000)
        content = "".join(f"line {n} of very many\n" for n in range(20_000)).encode()
        whole = gzip.compress(content)
        (here / "a.txt.gz").write_bytes(whole[: len(whole) // 2])
        write_texts(here / "b.txt", 12)
        message = (
            r"^1 of 2 inputs could not be read to its end, the other is done: input a\.txt\.gz is damaged after "
            r"row \d+: Truncated compressed stream; shards finished before are kept$"
        )
        with pytest.raises(InputError, match=message):
            embed(["a.txt.gz", "b.txt"], rows_per_shard=1000)
        rows = [row for file, row in held(here / "out") if file == "a.txt.gz"]
        assert rows == list(range(len(rows)))
        assert len(rows) >= 1000
        assert len(rows) % 1000 == 0
        assert sum(file == "b.txt" for file, _ in held(here / "out")) == 12
        # Repaired it is another file, and says how to go on.
        (here / "a.txt.gz").write_bytes(whole)
        with pytest.raises(InputError, match=r"a\.txt\.gz \(\S+ bytes then, \S+ now; its shards are "):
            embed(["a.txt.gz", "b.txt"], rows_per_shard=1000)
        for path in Path("out").glob("a.txt.gz-*.parquet"):
            path.unlink()
        assert embed(["a.txt.gz", "b.txt"], rows_per_shard=1000).rows == 20_012

    def test_an_input_that_is_cut_while_it_is_read(self, here):
        path = write_texts(here / "a.txt", 50_000)
        size = path.stat().st_size

        class Cutting(FakeEncoder):
            def encode_document(self, inputs, **options):
                if len(self.calls) == 3:
                    path.write_text(path.read_text()[: size // 2])
                return super().encode_document(inputs, **options)

        message = rf"input a\.txt changed since this run began: it had {size:,} bytes and has {size // 2:,} now; shards"
        with pytest.raises(InputError, match=message):
            embed("a.txt", model=Cutting())
        # Of what was read of the file in both states nothing is kept.
        assert [row for _, row in held(here / "out")] == list(range(20))
        assert not list(Path("out/.work").glob("*.tmp"))
        with pytest.raises(InputError, match=r"1 of the inputs of out changed since shards were made of them: a\.txt"):
            embed("a.txt")

    def test_an_input_that_is_written_to_or_removed_while_it_is_read(self, here):
        def spoil(act):
            class Spoiling(FakeEncoder):
                def encode_document(self, inputs, **options):
                    if len(self.calls) == 1:
                        act()
                    return super().encode_document(inputs, **options)

            return Spoiling()

        path = write_texts(here / "a.txt", 5)
        with pytest.raises(InputError, match=r"input a\.txt changed since this run began: it was written to"):
            embed("a.txt", model=spoil(lambda: path.write_text(path.read_text().replace("2", "3"))))
        with pytest.raises(InputError, match=r"input a\.txt is gone since this run began: No such file"):
            embed("a.txt", model=spoil(path.unlink))
        assert names() == []

    @pytest.mark.parametrize("room", [0, 100, 3000, 6000, 9000])
    def test_a_full_disk_keeps_what_is_finished(self, here, monkeypatch, room):
        left = room

        class FullDisk:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                nonlocal left
                left -= len(data)
                if left < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(data)

            def __getattr__(self, name):
                return getattr(self.file, name)

        def enter(self):
            original(self)
            if self.target.suffix == ".parquet":
                self.file = FullDisk(self.file)
            return self

        original = NewFile.__enter__
        write_texts(here / "a.txt", 45)
        with monkeypatch.context() as patch:
            patch.setattr(NewFile, "__enter__", enter)
            message = (
                r"^cannot write out/a\.txt-\S+: No space left on device; free some space and run it again; nothing was "
                r"left there; finished shards are kept, the same command goes on from there$"
            )
            with pytest.raises(OutputError, match=message):
                embed("a.txt")
        kept = listing()
        assert not list(Path("out/.work").glob("*.tmp"))
        summary = embed("a.txt")
        assert (summary.rows, summary.run.rows) == (45, 45 - 10 * (len(kept) - 1))
        assert kept.keys() <= listing().keys()
        assert all(listing()[name] == content for name, content in kept.items() if name != "manifest.json")
        assert [row for _, row in held(here / "out")] == list(range(45))

    def test_a_disk_that_is_full_for_the_list_of_rows_set_aside(self, here, monkeypatch):
        def write(self, data):
            if self.target.name == "rejected.jsonl":
                raise self.error(OSError(errno.ENOSPC, "No space left on device"))
            return original(self, data)

        original = NewFile.write
        (here / "a.txt").write_text("\nx\n")
        with monkeypatch.context() as patch:
            patch.setattr(NewFile, "write", write)
            with pytest.raises(
                OutputError, match=r"cannot write out/rejected\.jsonl: No space left on device.*goes on"
            ):
                embed("a.txt")
        assert embed("a.txt").run.rows == 0
        assert len(rejected()) == 1

    @pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, MemoryError])
    def test_an_interruption_keeps_what_is_finished(self, here, interruption):
        write_texts(here / "a.txt", 45)
        with pytest.raises(interruption):
            embed("a.txt", model=Failing(calls=3, error=interruption()))
        assert len(names()) == 2
        assert not list(Path("out/.work").glob("*.tmp"))
        assert embed("a.txt").run.rows == 25

    def test_a_damaged_shard_is_named(self, here):
        write_texts(here / "a.txt", 5)
        embed("a.txt")
        Path("out", names()[0]).write_bytes(b"nonsense")
        with pytest.raises(
            OutputError, match=r"shard out/a\.txt-\S+\.parquet is damaged \(.*; remove it and run the same"
        ):
            embed("a.txt")


def test_progress_is_told_after_every_step(here):
    (here / "a.txt").write_text("one two\n\n" * 10)
    write_texts(here / "b.txt", 10)
    told = []
    embed(["a.txt", "b.txt"], progress=told.append, rows_per_shard=5)
    # Four shards of a.txt and the empty one, two of b.txt and the empty one.
    assert [progress.rows for progress in told] == [5, 10, 15, 20, 25, 30]
    assert [progress.rejected for progress in told] == [2, 5, 7, 10, 10, 10]
    assert all(progress.rows == progress.embedded + progress.rejected for progress in told)
    assert [progress.tokens for progress in told][:2] == [6, 10]
    assert told[-1].share == 1.0
    assert told[-1].seconds_left == 0
    assert told[-1].tokens_per_second > 0
