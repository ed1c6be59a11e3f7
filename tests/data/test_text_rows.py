import errno
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from valuembed.data import tables
from valuembed.data.text_rows import Rejected, Row, check_input, count_rows, read_rows
from valuembed.data.validation import MAX_TEXT_BYTES, check_text
from valuembed.errors import InputError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a text", None),
        ("", None),
        ("x" * (MAX_TEXT_BYTES - 1), None),
        (3, "not a string but int"),
        (None, "missing (None)"),
        (b"bytes", "not a string but bytes"),
        ("ab\ud800", "not valid Unicode: lone surrogate U+D800 at character 2"),
        ("ab\0c", "not text: NUL character at character 2"),
        ("é" * (MAX_TEXT_BYTES // 2), "1,000,000 bytes long; a text has to be shorter than 1,000,000 bytes"),
    ],
)
def test_check_text(text, reason):
    assert check_text(text) == reason


def test_txt_is_one_text_a_line_with_the_rest_set_aside(tmp_path):
    content = b"\xef\xbb\xbffirst\r\nsecond\n\n  \nbad \xff byte\nnul \0 here\nline\x0bone\xe2\x80\xa8still one\nlast"
    assert list(read_rows(write(tmp_path, "a.TXT", content))) == [
        Row(0, "first"),
        Row(1, "second"),
        Rejected(3, "blank"),
        Rejected(4, "blank"),
        Rejected(5, "not valid UTF-8: byte 0xff at byte 4"),
        Rejected(6, "not text: NUL character at character 4"),
        # Only a line feed ends a line: other separators of Unicode are part of a text.
        Row(6, "line\x0bone\u2028still one"),
        Row(7, "last"),
    ]


def test_a_line_too_long_to_hold_is_skipped_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE_BYTES", 10)
    path = write(tmp_path, "a.txt", "x" * 10 + "\n" + "y" * 11 + "\n" + "z" * 35 + "\nend\n")
    assert list(read_rows(path)) == [
        Row(0, "x" * 10),
        Rejected(2, "a line of more than 10 bytes"),
        Rejected(3, "a line of more than 10 bytes"),
        Row(3, "end"),
    ]


def test_jsonl(tmp_path):
    lines = [
        '{"text": "one", "id": "a"}',
        "",
        "{broken",
        "[1]",
        '"just a string"',
        '{"id": "b"}',
        '{"text": null, "id": "c"}',
        '{"text": 5, "id": "d"}',
        '{"text": ["x"], "id": "e"}',
        r'{"text": "half \ud83d pair", "id": "f"}',
        r'{"text": "nul \u0000", "id": "g"}',
        '{"text": " ", "id": "h"}',
        '{"text": "no id"}',
        '{"text": "null id", "id": null}',
        '{"text": "odd id", "id": 1.5}',
        '{"text": "true id", "id": true}',
        '{"text": "number id", "id": 17}',
        "[" * 100_000,
    ]
    found = list(read_rows(write(tmp_path, "a.jsonl", "\n".join(lines)), id_column="id"))
    assert [row for row in found if isinstance(row, Row)] == [Row("a", "one"), Row("17", "number id")]
    reasons = {row.row: row.reason for row in found if isinstance(row, Rejected)}
    assert reasons.pop(3).startswith("not valid JSON: Expecting property name")
    assert reasons.pop(18).startswith("not valid JSON: ")
    assert reasons == {
        2: "blank line",
        4: "a JSON list, not an object with keys",
        5: "a JSON str, not an object with keys",
        6: "no key 'text'",
        7: "null, not a text",
        8: "not a string but int",
        9: "not a string but list",
        10: "not valid Unicode: lone surrogate U+D83D at character 5",
        11: "not text: NUL character at character 4",
        12: "blank",
        13: "no key 'id'",
        14: "id 'id' is null, not a string or a whole number",
        15: "id 'id' is a float, not a string or a whole number",
        16: "id 'id' is a bool, not a string or a whole number",
    }


def test_jsonl_numbers_rows_from_zero_without_an_id_column(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"body": "x"}\n{}\n{"body": "y"}\n')
    assert list(read_rows(path, "body")) == [Row(0, "x"), Rejected(2, "no key 'body'"), Row(2, "y")]


@given(texts=st.lists(st.text(st.characters(codec=None)), max_size=8))
def test_jsonl_gives_back_every_text_it_can_and_rejects_the_others(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = list(read_rows(path))
    usable = [check_text(text) is None and bool(text.strip()) for text in texts]
    assert [isinstance(row, Row) for row in found] == usable
    assert [row.text for row in found if isinstance(row, Row)] == [t for t, ok in zip(texts, usable, strict=True) if ok]


def test_csv(tmp_path):
    content = (
        b"\xef\xbb\xbfid,text\r\n"
        b'a,"two\r\nlines, one ""text"""\r\n'
        b"b,plain\r\n"
        b"c,an unquoted, comma\r\n"
        b"d\r\n"
        b"\r\n"
        b"e,\r\n"
        b"f,bad \xff byte\r\n"
        b'g,"stray" quote\r\n'
        b"h,fine\r\n"
        b'i,"never closed\r\nmore\r\n'
    )
    path = write(tmp_path, "a.csv", content)
    assert list(read_rows(path, id_column="id")) == [
        Row("a", 'two\r\nlines, one "text"'),
        Row("b", "plain"),
        Rejected(5, "3 fields where the header has 2"),
        Rejected(6, "1 field where the header has 2"),
        Rejected(7, "blank line"),
        Rejected(8, "blank"),
        Rejected(9, "not valid UTF-8"),
        Rejected(10, "malformed CSV: ',' expected after '\"'"),
        Row("h", "fine"),
        Rejected(12, "malformed CSV up to line 13: unexpected end of data: a quotation mark is opened and not closed"),
    ]
    assert [row.id for row in read_rows(path) if isinstance(row, Row)] == [0, 1, 8]


def test_csv_takes_texts_longer_than_the_modules_own_limit(tmp_path):
    text = "word " * 50_000
    assert list(read_rows(write(tmp_path, "a.csv", f"text\n{text}\n"))) == [Row(0, text)]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    table = pa.table({"n": pa.array([7, 8, 9, None]), "text": pa.array(["x", None, " ", "y"]).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    assert count_rows(tmp_path / "a.parquet") == 4
    assert list(read_rows(tmp_path / "a.parquet")) == [
        Row(0, "x"),
        Rejected(2, "null, not a text"),
        Rejected(3, "blank"),
        Row(3, "y"),
    ]
    assert list(read_rows(tmp_path / "a.parquet", id_column="n"))[::3] == [
        Row("7", "x"),
        Rejected(4, "id 'n' is null, not a string or a whole number"),
    ]


def test_parquet_rejects_only_the_row_whose_bytes_are_no_utf8(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == [Row(0, "a"), Rejected(2, "not valid UTF-8"), Row(2, "b")]


def test_a_damaged_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(5000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[100:2000] = bytes(1900)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet is damaged after row \d+: "):
        list(read_rows(path))
    path.write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.parquet is no readable Parquet file: "):
        list(read_rows(path))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_an_empty_file_has_no_rows(tmp_path, suffix):
    assert list(read_rows(write(tmp_path, f"a{suffix}", ""))) == []


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        (
            "a.jsonl",
            '{"body": "x", "n": 1}\n{"title": "y"}',
            {},
            "no column 'text'; its columns are 'body', 'n', 'title'$",
        ),
        ("a.jsonl", '{"text": "x"}', {"id_column": "key"}, "no column 'key'; its columns are 'text'$"),
        ("a.csv", "body,title\nx,y\n", {}, "no column 'text'; its columns are 'body', 'title'$"),
        ("a.csv", "body,title\nx,y\n", {"text_column": "text2"}, "no column 'text2'; its columns are 'body', 'title'$"),
        ("a.csv", "text,text\nx,y\n", {}, "2 columns 'text'; which one is meant is unknown"),
        ("a.csv", '"te"xt\nx\n', {}, "no readable header line: "),
        ("a.txt", "x", {"text_column": "body"}, "plain text, one text a line: it has no columns, so no column 'body'"),
        ("a.txt", "x", {"id_column": "n"}, "it has no columns, so no column 'n'"),
        ("a.txt", "x".encode("utf-16"), {}, r"a\.txt is UTF-16; convert it to UTF-8 first"),
        ("a.docx", "x", {}, r"unknown extension '\.docx'; legal: \.txt, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet"),
        ("a", "x", {}, r"unknown extension ''; legal: \.txt, "),
    ],
)
def test_what_is_wrong_with_the_whole_file_is_an_error(tmp_path, name, content, columns, message):
    with pytest.raises(InputError, match=message):
        list(read_rows(write(tmp_path, name, content), **columns))


def test_columns_of_another_type_are_an_error_that_lists_the_fitting_ones(tmp_path):
    table = pa.table({"text": [True], "body": ["x"], "n": [3]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' holds bool, not text; columns that do: 'body'$"):
        list(read_rows(tmp_path / "a.parquet"))
    with pytest.raises(
        InputError, match=r"'text' holds bool, not strings or whole numbers; columns that do: 'body', 'n'"
    ):
        list(read_rows(tmp_path / "a.parquet", "body", "text"))
    with pytest.raises(InputError, match=r"no column 'missing'; its columns are 'text', 'body', 'n'$"):
        list(read_rows(tmp_path / "a.parquet", "missing"))


def test_missing_input_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"input .*nothing\.txt does not exist"):
        list(read_rows(tmp_path / "nothing.txt"))
    with pytest.raises(InputError, match=r"is a folder; give one file \(\.txt, \.jsonl, \.ndjson, \.csv, \.tsv, \.pa"):
        list(read_rows(tmp_path))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, "a.txt", "x")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    for read in (read_rows, count_rows):
        with pytest.raises(InputError, match=r"^cannot read \S+a\.txt: Permission denied$"):
            list(read(path))


def test_reading_is_a_stream(tmp_path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "text {n}"}}\n' for n in range(50_000))
    stream = read_rows(path)
    assert next(stream) == Row(0, "text 0")
    # What comes later has not been looked at: the file may be cut behind the reader's back.
    path.write_text("")
    assert len(list(stream)) < 49_999


def test_texts_in_memory_are_no_file():
    with pytest.raises(
        InputError, match=r"^list where the path of a file is expected; for texts in memory, call model"
    ):
        check_input(["a text"])
