"""Packed files read as the usual tools read them, and files whose names say something else than their content."""

import gzip
import io
import struct
import zipfile
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from valuembed.data.compression import open_stream
from valuembed.data.text_rows import Row, count_rows, read_rows
from valuembed.errors import InputError

# The time stays out of what names a test: workers that run the tests side by side have to agree on the names.
gz = partial(gzip.compress, mtime=0)
zstd = zstandard.ZstdCompressor().compress
LINES = b"one\ntwo\n"


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("padded.txt.gz", gz(LINES) + b"\0" * 1000),
        ("members.txt.gz", gz(LINES[:4]) + gz(LINES[4:])),
        ("padded-members.txt.gz", gz(LINES[:4]) + b"\0" * 512 + gz(LINES[4:]) + b"\0"),
        ("empty-member.txt.gz", gz(b"") + gz(LINES)),
        ("frames.txt.zst", zstd(LINES[:4]) + zstd(LINES[4:])),
        ("skippable.txt.zst", struct.pack("<II", 0x184D2A57, 5) + b"hello" + zstd(LINES)),
    ],
)
def test_packed_files_are_read_as_the_usual_tools_read_them(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert list(read_rows(path)) == [Row(0, "one"), Row(1, "two")]
    assert count_rows(path) == 2
    with open_stream(path) as stream:
        assert stream.file.read() == LINES


def test_what_stands_behind_gzip_content_is_ignored_with_a_warning(tmp_path):
    path = written(tmp_path, "a.txt.gz", gz(LINES) + b"trailing")
    with pytest.warns(UserWarning, match=r"a\.txt\.gz: what stands behind the end of its gzip content is no gzip, and"):
        assert [row.text for row in read_rows(path)] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gz(LINES)[:-9], "Truncated compressed stream"),
        (gz(LINES)[:-1], "Truncated compressed stream"),
        (gz(LINES)[:-8] + b"\1" * 8, "gzip decompress failed: CRC check failed"),
        (b"\0" * 100, "gzip decompress failed: Not a gzipped file"),
    ],
)
def test_damage_is_an_error(tmp_path, content, reason):
    path = written(tmp_path, "a.txt.gz", content)
    with pytest.raises(InputError, match=rf"a\.txt\.gz is damaged after row \d+: {reason}"):
        list(read_rows(path))


def zipped():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("sheet.xml", "x")
        return file.getvalue()


def parquet():
    with io.BytesIO() as file:
        pq.write_table(pa.table({"text": ["x"]}), file)
        return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", gz(LINES), r"a\.jsonl is gzip, which its name does not say; name it a\.jsonl\.gz$"),
        ("a.txt", zstd(LINES), r"a\.txt is zstd, which its name does not say; name it a\.txt\.zst$"),
        ("a.txt.zst", gz(LINES), r"a\.txt\.zst is gzip, .*; name it a\.txt\.gz$"),
        (
            "a.csv",
            zipped(),
            r"a\.csv is a zip archive, as \.xlsx and \.docx are, .*; unpack, convert or rename it first",
        ),
        ("a.jsonl", parquet(), r"a\.jsonl is Parquet, which its name does not say; unpack, convert or rename it first"),
        ("a.parquet", gz(LINES), r"a\.parquet is gzip, which its name does not say; unpack, convert or"),
        ("a.parquet", b"id,text\n", r"a\.parquet is no readable Parquet file: "),
        ("a.jsonl.gz", LINES, r"a\.jsonl\.gz is no readable \.gz file: it is not gzip; .*, rename it without \.gz$"),
    ],
)
def test_a_name_that_says_something_else_is_an_error_that_says_what_to_do(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        list(read_rows(written(tmp_path, name, content)))


def test_a_text_may_begin_as_parquet_does(tmp_path):
    assert list(read_rows(written(tmp_path, "a.txt", b"PAR1 is a gene"))) == [Row(0, "PAR1 is a gene")]


def test_a_stream_says_how_much_was_read(tmp_path):
    path = written(tmp_path, "a.txt.gz", gz(LINES))
    with open_stream(path) as stream:
        stream.file.read()
        assert stream.position == path.stat().st_size
