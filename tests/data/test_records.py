"""One reader for all: the same records of every kind of file, and the reasons of those that cannot be used."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from valuembed.data.records import FILE_KINDS, PLACE, Columns, InBatch
from valuembed.errors import InputError

ROWS = [{"text": f"text {n}", "id": n, "more": "x"} for n in range(7)]
COLUMNS = Columns(texts=("text",), ids=("id",))


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def path(request, tmp_path):
    path = tmp_path / f"a{request.param}"
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)
    elif path.suffix == ".csv":
        path.write_text("text,id,more\n" + "".join(f"{row['text']},{row['id']},x\n" for row in ROWS))
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def opened(path, columns=COLUMNS):
    return FILE_KINDS[path.suffix](path, columns, [["text", "id"]])


@pytest.mark.parametrize("passed", range(8))
def test_records_are_taken_from_anywhere(path, passed):
    with opened(path) as file:
        assert file.skip(passed) == passed
        found = list(file.take())
        assert (file.read, file.share, file.skip(1)) == (7, 1.0, 0)
    # A table of text has its header in line 1.
    first = 2 if path.suffix == ".csv" else 1
    assert [number for number, _ in found] == list(range(first + passed, first + 7))
    assert [(record["text"], int(record["id"])) for _, record in found] == [(f"text {n}", n) for n in range(passed, 7)]


def test_a_table_says_its_names_and_is_asked_for_what_it_has(path):
    asked = []

    def choose(names):
        asked.append(names)
        return Columns(rest=("more",))

    with opened(path, choose) as file:
        assert file.names == (None if path.suffix == ".jsonl" else ["text", "id", "more"])
        assert next(file.take(1))[1]["more"] == "x"
        assert file.unit == ("row" if path.suffix == ".parquet" else "line")
    assert asked == ([] if path.suffix == ".jsonl" else [["text", "id", "more"]])


def test_what_is_kept_is_handed_on_as_it_is(path):
    with opened(path, COLUMNS._replace(keep=("more", "none"))) as file:
        records = [record for _, record in file.take()]
    if path.suffix == ".parquet":
        places = [record[PLACE] for record in records]
        assert all(isinstance(place, InBatch) for place in places)
        assert [place.batch.column("more")[place.at].as_py() for place in places] == ["x"] * 7
    else:
        assert [record["more"] for record in records] == ["x"] * 7
        assert not any("none" in record for record in records)


def test_a_table_without_a_column_is_an_error_and_closed(path):
    if path.suffix == ".jsonl":
        with opened(path, Columns(texts=("title",))) as file:
            assert len(list(file.take())) == 7
        return
    with pytest.raises(InputError, match=r"has no column 'title'; its columns are 'text', 'id', 'more'$"):
        opened(path, Columns(texts=("title",)))


def test_reasons_stand_in_the_place_of_records(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": 1}\n\n[]\n{\n"\xff"\n')
    (tmp_path / "a.csv").write_bytes(b'text,id\na,1\n\nb\n"c\n')
    (tmp_path / "a.txt").write_bytes(b"a\n\n\xff\n")
    found = {}
    for suffix in (".jsonl", ".csv", ".txt"):
        with opened(tmp_path / f"a{suffix}") as file:
            found[suffix] = list(file.take())
    assert found[".jsonl"][:3] == [(1, {"text": 1}), (2, "blank line"), (3, "a JSON list, not an object with keys")]
    assert found[".jsonl"][3][1].startswith("not valid JSON: ")
    assert found[".jsonl"][4] == (5, "not valid UTF-8: byte 0xff at byte 1")
    assert found[".csv"][:3] == [
        (2, {"text": "a", "id": "1"}),
        (3, "blank line"),
        (4, "1 field where the header has 2"),
    ]
    assert found[".csv"][3][1].startswith("malformed CSV")
    assert found[".txt"] == [(1, {"text": "a"}), (2, {"text": ""}), (3, "not valid UTF-8: byte 0xff at byte 0")]
