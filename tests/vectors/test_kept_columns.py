"""Columns of the input that are kept: which, under what name, of what type; in one file and in a folder."""

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder

from valuembed.corpus.job import embed_corpus, embed_file
from valuembed.corpus.manifest import read_manifest
from valuembed.errors import InputError, OutputError
from valuembed.vectors import kept_columns
from valuembed.vectors.kept_columns import KeptColumns, find_columns, stored_name


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, so that inputs have short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, records):
    if name.endswith(".parquet"):
        pq.write_table(pa.table(records), name)
    else:
        Path(name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return name


def kept(name, **options):
    """Types, and values of all rows, of what is kept of a file."""
    embed_file(FakeEncoder(), name, "out.parquet", overwrite=True, progress=False, **options)
    table = pq.read_table("out.parquet").drop_columns(["id", "text", "embedding"])
    return {field.name: str(field.type) for field in table.schema}, table.to_pylist()


def folder(inputs, **options):
    embed_corpus(FakeEncoder(), inputs, "out", rows_per_shard=2, progress=False, **options)
    return ds.dataset(sorted(map(str, Path("out").glob("*.parquet")))).to_table()


class TestTypes:
    def test_of_json_are_as_wide_as_the_values_need(self, here):
        write(
            "a.jsonl",
            [
                {
                    "text": "a",
                    "b": True,
                    "i": 1,
                    "f": 1,
                    "s": "x",
                    "m": 1,
                    "big": 2**70,
                    "n": None,
                    "o": {"k": [1, "é"]},
                },
                {"text": "b", "b": None, "i": 2, "f": 2.5, "s": "y", "m": "two", "big": 1, "n": None, "late": 3},
            ],
        )
        types, rows = kept("a.jsonl")
        assert types == {
            "b": "bool",
            "i": "int64",
            "f": "double",
            "s": "string",
            "m": "string",
            "big": "string",
            "n": "string",
            "o": "string",
            "late": "int64",
        }
        first, second = rows
        assert (first["f"], first["m"], first["big"], first["o"]) == (1.0, "1", str(2**70), '{"k": [1, "é"]}')
        assert (second["b"], second["m"], second["o"], second["late"]) == (None, "two", None, 3)

    def test_of_one_file_take_every_row_into_account(self, here, monkeypatch):
        monkeypatch.setattr(kept_columns, "LOOKED_AT", 10)
        write("a.jsonl", [{"text": "a", "n": n} for n in range(3000)] + [{"text": "b", "n": "x", "late": 1}])
        types, rows = kept("a.jsonl")
        assert types == {"n": "string", "late": "int64"}
        assert (rows[7]["n"], rows[-1]) == ("7", {"n": "x", "late": 1})

    def test_of_csv_are_strings(self, here):
        Path("a.csv").write_text(",text,year,label\n0,a,1999,x\n1,b,,\n")
        # A column without a name, which pandas writes for its index, is left out.
        assert kept("a.csv") == (
            {"year": "string", "label": "string"},
            [{"year": "1999", "label": "x"}, {"year": "", "label": ""}],
        )

    def test_of_parquet_are_those_of_parquet(self, here):
        columns = {
            "text": ["a", " ", "c"],
            "day": pa.array([date(2020, 1, 1), None, date(2021, 1, 1)]),
            "at": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
            "tags": [["x"], [], None],
            "place": [{"city": "a"}, {"city": "b"}, {"city": "c"}],
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "small": pa.array([1, 2, 3], pa.uint8()),
            "view": pa.array(["x", None, "z"], pa.string_view()),
        }
        write("a.parquet", columns)
        types, rows = kept("a.parquet")
        assert types == {
            "day": "date32[day]",
            "at": "timestamp[ns, tz=UTC]",
            "tags": "list<element: string>",
            "place": "struct<city: string>",
            "kind": "string",
            "small": "uint8",
            "view": "string",
        }
        # The row between them was set aside.
        assert [(row["day"], row["tags"], row["place"], row["small"]) for row in rows] == [
            (date(2020, 1, 1), ["x"], {"city": "a"}, 1),
            (date(2021, 1, 1), None, {"city": "c"}, 3),
        ]

    def test_of_several_batches_and_calls(self, here):
        write("a.parquet", {"text": [f"text {n}" for n in range(3000)], "n": range(3000)})
        assert [row["n"] for row in kept("a.parquet", rows_per_chunk=700)[1]] == list(range(3000))

    def test_text_that_is_no_unicode_is_null_with_a_warning(self, here):
        Path("a.jsonl").write_text('{"text": "a", "s": "\\ud800"}\n{"text": "b", "s": "x"}\n')
        with pytest.warns(UserWarning, match=r"a\.jsonl: column 's' has values that are no string.*kept as null"):
            assert [row["s"] for row in kept("a.jsonl")[1]] == [None, "x"]

    def test_too_many_keys_are_no_columns(self, here):
        write("a.jsonl", [{"text": "a", **{f"key {n}": n for n in range(1001)}}])
        with pytest.raises(InputError, match=r"more than 1,000 different keys.*\(--keep none, keep=\[\]\)$"):
            kept("a.jsonl")
        assert kept("a.jsonl", keep=[])[0] == {}


class TestNames:
    def test_of_ours_get_a_prefix(self, here):
        write(
            "a.jsonl", [{"text": "t", "id": 7, "source": "web", "file": "f", "_score": 1, "a.b": 2, "embedding": [1]}]
        )
        assert kept("a.jsonl") == (
            {
                "input_id": "int64",
                "input_source": "string",
                "input_file": "string",
                "input__score": "int64",
                "a_b": "int64",
            },
            [{"input_id": 7, "input_source": "web", "input_file": "f", "input__score": 1, "a_b": 2}],
        )
        assert kept("a.jsonl", keep=["embedding"])[0] == {"input_embedding": "string"}
        assert kept("a.jsonl", id_column="id", keep=["id", "text"])[0] == {}
        assert stored_name("label") == "label"

    def test_that_become_one_are_an_error(self, here):
        write("a.jsonl", [{"text": "t", "id": 7, "input_id": 8}])
        message = (
            "the columns 'id' and 'input_id' would both be kept as 'input_id'; name the columns to keep without one"
        )
        with pytest.raises(InputError, match=message):
            kept("a.jsonl")
        assert kept("a.jsonl", keep=["id"])[1] == [{"input_id": 7}]

    def test_that_stand_twice_are_an_error(self, here):
        Path("a.csv").write_text("text,a,a,b\nx,1,2,3\n")
        with pytest.raises(InputError, match=r"2 columns 'a'; which one is meant is unknown; name the columns to keep"):
            kept("a.csv")
        assert kept("a.csv", keep=["b"])[1] == [{"b": "3"}]

    def test_chosen_ones_have_to_be_there(self, here):
        write("a.jsonl", [{"text": "t", "label": "x", "n": 1}])
        assert kept("a.jsonl", keep=["n"]) == ({"n": "int64"}, [{"n": 1}])
        assert kept("a.jsonl", keep=[])[0] == {}
        with pytest.raises(InputError, match=r"no column 'lable'; .*; give the name as it stands there: 'label'$"):
            kept("a.jsonl", keep=["lable"])
        Path("a.txt").write_text("one\n")
        with pytest.raises(InputError, match=r"a\.txt has no column 'label'; its columns are none$"):
            kept("a.txt", keep=["label"])

    def test_that_are_no_utf8_are_an_error(self, here):
        Path("a.csv").write_bytes("text;gr\xf6\xdfe\nx;1\n".encode("latin-1"))
        with pytest.raises(
            InputError, match=r"the column 'gr\\udcf6\\udcdfe' has a name that is not valid UTF-8; it may"
        ):
            kept("a.csv")
        assert kept("a.csv", keep=[])[0] == {}


class TestFolders:
    def test_all_shards_have_one_schema(self, here):
        write("a.jsonl", [{"text": f"a {n}", "n": n, "label": "x"} for n in range(5)])
        write("b.parquet", {"text": ["b"], "n": [0.5], "day": pa.array([date(2020, 1, 1)])})
        Path("c.txt").write_text("c\n")
        table = folder(["a.jsonl", "b.parquet", "c.txt"])
        assert [str(table.schema.field(name).type) for name in ("n", "label", "day")] == [
            "double",
            "string",
            "date32[day]",
        ]
        rows = {row["text"]: (row["n"], row["label"], row["day"]) for row in table.to_pylist()}
        assert len(rows) == 7
        assert (rows["a 4"], rows["b"], rows["c"]) == ((4.0, "x", None), (0.5, None, date(2020, 1, 1)), (None,) * 3)
        assert len({str(pq.read_schema(path)) for path in Path("out").glob("*.parquet")}) == 1

    def test_what_is_kept_is_settled_when_the_job_begins(self, here):
        write("a.jsonl", [{"text": "a", "n": 1}])
        write("b.jsonl", [{"text": "b", "n": 2, "more": "x"}])
        write("c.jsonl", [{"text": "c", "n": "three"}])
        folder("a.jsonl", keep=["n"])
        assert KeptColumns.from_record(read_manifest(Path("out"))["kept"]).names == ("n",)
        with pytest.warns(
            UserWarning, match=r"^b\.jsonl has the columns 'more', which out does not keep: it was begun"
        ):
            table = folder(["a.jsonl", "b.jsonl"])
        assert sorted(table["n"].to_pylist()) == [1, 2]
        with pytest.raises(
            InputError, match=r"c\.jsonl: column 'n' holds string, and in out it holds int64; convert it"
        ):
            folder(["a.jsonl", "c.jsonl"])
        with pytest.raises(
            OutputError, match=r"\(there against here\): keep \['n'\] against \['more'\]; give the same or"
        ):
            folder(["a.jsonl", "b.jsonl"], keep=["more"])

    def test_a_job_of_an_earlier_version_keeps_nothing_and_goes_on(self, here):
        write("a.jsonl", [{"text": f"a {n}", "n": n} for n in range(4)])
        folder("a.jsonl", keep=[])
        assert "kept" not in read_manifest(Path("out"))
        sorted(Path("out").glob("*.parquet"))[0].unlink()
        assert folder("a.jsonl").schema.names == ["id", "file", "row", "text", "embedding"]

    def test_a_late_value_that_does_not_fit_is_null_with_a_warning(self, here, monkeypatch):
        monkeypatch.setattr("valuembed.data.compression._BUFFER", 64)
        monkeypatch.setattr("valuembed.corpus.manifest.LOOKED_AT", 9000)
        # More than is looked at, and than is read at a time.
        rows = [{"text": f"a {n}", "n": n, "pad": "x" * 1000} for n in range(20)]
        write("a.jsonl", [*rows, {"text": "b", "n": "x", "late": 1}])
        with pytest.warns(UserWarning, match=r"a\.jsonl: column 'n' has values that are no int64"):
            table = folder("a.jsonl")
        assert "late" not in table.schema.names
        assert sorted(table["n"].to_pylist(), key=str) == sorted([*range(20), None], key=str)

    def test_types_that_do_not_go_together_are_an_error(self, here):
        write("a.jsonl", [{"text": "a", "tags": "x"}])
        write("b.parquet", {"text": ["b"], "tags": [["x"]]})
        message = r"column 'tags' holds string in a\.jsonl and list<.*> in b\.parquet, which cannot be one column; name"
        with pytest.raises(InputError, match=message):
            folder(["a.jsonl", "b.parquet"])
        assert len(folder(["a.jsonl", "b.parquet"], keep=[])) == 2


def test_a_record_gives_the_same_columns_again(here):
    write("a.parquet", {"text": ["a"], "at": pa.array([1], pa.timestamp("us", "UTC")), "tags": [["x"]]})
    found = find_columns([Path("a.parquet")])
    again = KeptColumns.from_record(json.loads(json.dumps(found.to_record())))
    assert (again.names, again.schema) == (found.names, found.schema)
