"""Lines, records and columns: line ends, separators, names that are nearly right."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from valuembed.data import tables
from valuembed.data.text_rows import Rejected, Row, count_rows, read_rows
from valuembed.errors import InputError


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_in_any_of_three_ways_and_in_no_other(tmp_path, end):
    texts = ["one\x0bstill\x0cone", "two\x85\x1cstill two", "three\u2028still\u2029three"]
    path = written(tmp_path, "a.txt", "".join(f"{text}{end}" for text in texts))
    assert [row.text for row in read_rows(path)] == texts
    assert count_rows(path) == 3
    records = written(tmp_path, "a.jsonl", "".join(f'{{"text": "{n}"}}{end}' for n in range(3)))
    assert [row.text for row in read_rows(records)] == ["0", "1", "2"]
    table = written(tmp_path, "a.csv", f'id,text{end}1,"a{end}b"{end}2,c{end}')
    assert list(read_rows(table, id_column="id")) == [Row("1", f"a{end}b"), Row("2", "c")]


def test_line_ends_may_be_mixed_and_cut_by_a_block():
    content = b"a\rb\nc\r\nd\r\r\ne"
    lines = [line for _, line in tables.numbered_lines(Path("a"), io.BytesIO(content))]
    assert lines == [b"a\r", b"b\n", b"c\r\n", b"d\r", b"\r\n", b"e"]
    assert tables.count_lines(io.BytesIO(content)) == 5
    # A block ends between the two halves of a line end.
    assert tables.count_lines(io.BytesIO(b"x" * ((1 << 20) - 1) + b"\r\ny\n")) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id;text\n1;Hello, you\n2;"Two; three"\n'),
        ("a.csv", '"id";"text"\n"1";"Hello, you"\n"2";"Two; three"\n'),
        ("a.csv", "id\ttext\n1\tHello, you\n2\tTwo; three\n"),
        ("a.csv", "id|text\n1|Hello, you\n2|Two; three\n"),
        ("a.tsv", "id\ttext\n1\tHello, you\n2\tTwo; three\n"),
        ("a.tsv", "\ufeffid\ttext\r\n1\tHello, you\r\n2\tTwo; three\r\n"),
        ("a.csv", 'id,text\n1,"Hello, you"\n2,Two; three\n'),
    ],
)
def test_the_header_tells_what_separates_the_columns(tmp_path, name, content):
    rows = list(read_rows(written(tmp_path, name, content), id_column="id"))
    assert rows == [Row("1", "Hello, you"), Row("2", "Two; three")]


def test_a_header_of_several_lines_and_the_lines_behind_it(tmp_path):
    path = written(tmp_path, "a.csv", '"the\nid";text\n1;x\n2\n')
    assert list(read_rows(path)) == [Row(0, "x"), Rejected(4, "1 field where the header has 2")]


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("a.csv", "id;body\n1;x\n", "its columns are 'id;body', which seems to be several separated by ';'$"),
        ("a.csv", "id, text\n1,x\n", "give the name as it stands there, blanks included: ' text'$"),
        ("a.csv", "id,text \n1,x\n", "give the name as it stands there, blanks included: 'text '$"),
        ("a.csv", "id,Text\n1,x\n", "give the name as it stands there: 'Text'$"),
        ("a.csv", "id,texts\n1,x\n", "give the name as it stands there: 'texts'$"),
        ("a.jsonl", '{"TEXT": "x"}', "give the name as it stands there: 'TEXT'$"),
        ("a.csv", "id,body\n1,x\n", "its columns are 'id', 'body'$"),
        (
            "a.csv",
            "text\nx\n".encode("utf-16-le"),
            "it looks like UTF-16 without a byte order mark; convert it to UTF-8",
        ),
    ],
)
def test_a_name_that_is_nearly_right_is_named(tmp_path, name, content, advice):
    with pytest.raises(InputError, match=rf"has no column 'text'; .*{advice}"):
        list(read_rows(written(tmp_path, name, content)))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string_view()])
def test_text_in_bytes_is_read_where_it_is_utf8(tmp_path, kind):
    texts = pa.array(["naïve", "plain"]).cast(pa.string() if "binary" not in str(kind) else pa.binary()).cast(kind)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    assert [row.text for row in read_rows(tmp_path / "a.parquet")] == ["naïve", "plain"]


def test_bytes_that_are_no_utf8_are_set_aside(tmp_path):
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"])}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [Row(0, "a"), Rejected(2, "not valid UTF-8")]


def test_a_column_of_lists_says_what_to_do(tmp_path):
    pq.write_table(pa.table({"text": [["a"], ["b"]], "body": ["x", "y"]}), tmp_path / "a.parquet")
    message = (
        "holds list<.*>, not text; columns that do: 'body'; join or flatten its values into a column of strings first"
    )
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / "a.parquet"))


def test_whole_numbers_as_floats_are_ids(tmp_path):
    path = written(
        tmp_path, "a.jsonl", '{"id": 1.0, "text": "x"}\n{"id": 1e300, "text": "y"}\n{"id": NaN, "text": "z"}\n'
    )
    assert [row.id if isinstance(row, Row) else row.reason[:20] for row in read_rows(path, id_column="id")] == [
        "1",
        "id 'id' is a float, ",
        "id 'id' is a float, ",
    ]
    pq.write_table(pa.table({"id": [7.0, None], "text": ["x", "y"]}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet", id_column="id")) == [
        Row("7", "x"),
        Rejected(2, "id 'id' is null, not a string or a whole number"),
    ]


def test_nan_is_no_text(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"text": NaN}\n{"text": "x"}\n')
    assert list(read_rows(path)) == [Rejected(1, "NaN, not a text"), Row(1, "x")]
