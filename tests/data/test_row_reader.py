"""One pass over a file with rows taken and passed over, and files that are compressed."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from valuembed.data.text_rows import Rejected, Row, RowReader, check_input, count_rows, look_for_text, read_rows
from valuembed.errors import InputError

TEXTS = [f"text {n}" for n in range(25)]


def written(folder, kind):
    """25 texts in a file of a kind."""
    path = folder / f"in{kind}"
    plain = {
        ".txt": "\n".join(TEXTS),
        ".jsonl": "\n".join(json.dumps({"text": text}) for text in TEXTS),
        # Records of two lines: what is passed over are rows, not lines.
        ".csv": "n,text\r\n" + "".join(f'"{n}\r\n",{text}\r\n' for n, text in enumerate(TEXTS)),
    }
    packed = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress, "": bytes}
    if kind == ".parquet":
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=4)
    else:
        name, _, packing = kind[1:].partition(".")
        path.write_bytes(packed[f".{packing}" if packing else ""](plain[f".{name}"].encode()))
    return path


def taken(reader, count):
    return [(index, row) for index, _, row in reader.take(count)]


KINDS = [".txt", ".jsonl", ".csv", ".txt.gz", ".jsonl.zst", ".csv.gz", ".parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_taken_and_passed_over(tmp_path, kind):
    path = written(tmp_path, kind)
    with RowReader(path) as reader:
        assert taken(reader, 2) == [(0, Row(0, "text 0")), (1, Row(1, "text 1"))]
        # To the middle of a row group, within one, and over several to the beginning of another.
        assert (reader.skip(3), taken(reader, 1)) == (3, [(5, Row(5, "text 5"))])
        assert (reader.skip(1), taken(reader, 1)) == (1, [(7, Row(7, "text 7"))])
        assert (reader.skip(8), taken(reader, 2)) == (8, [(16, Row(16, "text 16")), (17, Row(17, "text 17"))])
        assert (reader.skip(100), reader.read, reader.share) == (7, 25, 1.0)
        assert (taken(reader, 3), reader.skip(1)) == ([], 0)
    assert [row.text for row in read_rows(path)] == TEXTS


def test_rows_have_the_numbers_that_a_person_gives_them(tmp_path):
    for kind, expected in ((".txt", [1, 2, 3]), (".csv", [2, 4, 6]), (".parquet", [1, 2, 3])):
        with RowReader(written(tmp_path, kind)) as reader:
            assert [line for _, line, _ in reader.take(3)] == expected


def test_the_share_that_is_behind_grows(tmp_path):
    (tmp_path / "in.txt").write_text("a line\n" * 1_000_000)
    with RowReader(tmp_path / "in.txt") as reader:
        reader.skip(500_000)
        # A buffer's length of 7 MB may have been read ahead.
        assert 0.5 <= reader.share <= 0.75
    with RowReader(written(tmp_path, ".parquet")) as reader:
        reader.skip(5)
        assert reader.share == 0.2
    (tmp_path / "empty.txt").touch()
    with RowReader(tmp_path / "empty.txt") as reader:
        assert reader.share == 1.0


def test_a_row_passed_over_is_not_looked_at(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{broken\n{"text": "x"}\n{broken\n')
    with RowReader(path) as reader:
        assert reader.skip(1) == 1
        assert taken(reader, 1) == [(1, Row(1, "x"))]
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet", row_group_size=5, compression="zstd")
    data = bytearray((tmp_path / "in.parquet").read_bytes())
    at = data.index(b"text 0")
    data[at - 20 : at + 20] = bytes(40)
    (tmp_path / "in.parquet").write_bytes(data)
    with RowReader(tmp_path / "in.parquet") as reader:
        assert reader.skip(5) == 5
        assert [row.text for *_, row in reader.take()] == TEXTS[5:]
    with pytest.raises(InputError, match=r"in\.parquet is damaged after row 0: "):
        list(read_rows(tmp_path / "in.parquet"))


def test_a_text_may_be_longer_where_it_will_be_cut(tmp_path):
    (tmp_path / "in.txt").write_text("x" * 1_000_000)
    with RowReader(tmp_path / "in.txt") as reader:
        assert list(reader.take()) == [
            (0, 1, Rejected(1, "1,000,000 bytes long; a text has to be shorter than 1,000,000 bytes"))
        ]
    with RowReader(tmp_path / "in.txt", max_bytes=2_000_000) as reader:
        assert list(reader.take()) == [(0, 1, Row(0, "x" * 1_000_000))]


@pytest.mark.parametrize(("kind", "compress"), [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)])
def test_compressed_files(tmp_path, kind, compress):
    path = tmp_path / f"in.txt.{kind}"
    content = "".join(f"line {n} of many\n" for n in range(50_000)).encode()
    # Two members, or frames, one after the other.
    path.write_bytes(compress(content) + compress(b"the end\n"))
    assert list(read_rows(path))[-1] == Row(50_000, "the end")
    assert count_rows(path) == 50_001
    whole = compress(content)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"in\.txt\.{kind} is damaged after row \d+: Truncated compressed stream"):
        list(read_rows(path))
    path.write_bytes(b"no such thing")
    named = {"gz": "gzip", "zst": "zstd"}[kind]
    with pytest.raises(InputError, match=rf"in\.txt\.{kind} is no readable \.{kind} file: it is not {named}; if it is"):
        list(read_rows(path))
    path.write_bytes(whole[:30] + b"\xff" * 200_000)
    with pytest.raises(InputError, match=rf"in\.txt\.{kind} is damaged after row 0: (?i:{named}) decompress failed"):
        list(read_rows(path))
    path.write_bytes(b"")
    assert list(read_rows(path)) == []


def test_kinds_that_are_compressed_inside_or_unknown_are_refused(tmp_path):
    for name, shown in (("a.parquet.gz", r"\.parquet\.gz"), ("a.tar.gz", r"\.tar\.gz"), ("a.gz", r"\.gz")):
        (tmp_path / name).touch()
        with pytest.raises(
            InputError, match=rf"'{shown}'; legal: .*; all but the last also with \.gz or \.zst behind it"
        ):
            check_input(tmp_path / name)


def test_columns_are_looked_for_before_the_work(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"body": "x"}\n{"text": "y"}\n')
    look = look_for_text(path)
    assert (look.rows, look.has_text, look.ended, look.first, look.is_empty) == (2, True, False, None, False)
    with pytest.raises(InputError, match=r"in\.jsonl has no column 'title'; its columns are 'body', 'text'$"):
        look_for_text(path, "title")
    path.write_text('{"body": "x"}\n' * 1000 + '{"text": "y"}\n')
    with pytest.raises(InputError, match=r"in\.jsonl has no column 'text'; its columns are 'body'$"):
        look_for_text(path, most_rows=1000)
    assert look_for_text(path).rows == 1001
    (tmp_path / "in.csv").write_text("body\nx\n")
    with pytest.raises(InputError, match=r"in\.csv has no column 'text'"):
        look_for_text(tmp_path / "in.csv")


def test_a_look_tells_files_that_are_empty_from_those_that_cannot_be_used(tmp_path):
    path = tmp_path / "in.jsonl"
    for content in ("", "\n\n", '{"text": " "}\n'):
        path.write_text(content)
        look = look_for_text(path)
        assert look.is_empty
        look.check()
    path.write_text("\n{broken\n{more\n")
    look = look_for_text(path)
    assert (look.rows, look.is_empty, look.first.row) == (3, False, 2)
    with pytest.raises(InputError, match=r"none of its 3 rows can be used; the first, in line 2: not valid JSON: "):
        look.check()
    # What comes further down is not known.
    look_for_text(path, most_rows=2).check()
