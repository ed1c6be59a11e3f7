"""Files of which no row can be used say what to do."""

import gzip
import json

import pytest

from valuembed.data.text_rows import check_input, look_for_text
from valuembed.errors import InputError

RECORDS = [{"text": f"text {n}", "id": n} for n in range(3)]


@pytest.mark.parametrize(
    ("name", "content", "first", "advice"),
    [
        (
            "a.jsonl",
            "\n".join(json.dumps(record, indent=2) for record in RECORDS),
            r"none of its 12 rows can be used; the first, in line 1: not valid JSON: Expecting property name",
            r"its objects span several lines; write one object a line: jq -c \. a\.jsonl > a-lines\.jsonl$",
        ),
        (
            "a.jsonl",
            json.dumps(RECORDS),
            "its one row cannot be used; the first, in line 1: a JSON list, not an object with keys",
            r"it is one JSON array; write one object a line: jq -c '\.\[\]' a\.jsonl > a-lines\.jsonl$",
        ),
        (
            "my file.ndjson",
            json.dumps(RECORDS, indent=1),
            "none of its 14 rows can be used; the first, in line 1: not valid JSON: Expecting value",
            r"it is one JSON array; write .*: jq -c '\.\[\]' 'my file\.ndjson' > 'my file-lines\.jsonl'$",
        ),
        (
            "a.jsonl",
            "".join(f"{json.dumps(record)},\n" for record in RECORDS),
            "none of its 3 rows can be used; the first, in line 1: not valid JSON: Extra data",
            r"its lines end in commas; take these away: sed 's/,\[\[:space:\]\]\*\$//' a\.jsonl > a-lines\.jsonl$",
        ),
        (
            "a.jsonl",
            "".join(map(json.dumps, RECORDS)),
            "its one row cannot be used; the first, in line 1: not valid JSON: Extra data",
            r"it has several objects on one line; write one object a line: jq -c \. a\.jsonl > a-lines\.jsonl$",
        ),
        (
            "a.jsonl",
            "\n".join(map(repr, RECORDS)),
            "none of its 3 rows can be used; the first, in line 1: not valid JSON: Expecting property name",
            r"its objects are Python's, with single quotes, and no JSON; write them with json\.dumps$",
        ),
        (
            "a.jsonl",
            "\n".join(map(json.dumps, RECORDS)).encode("utf-16-le"),
            "none of its 3 rows can be used; the first, in line 1: not valid",
            r"it looks like UTF-16 without a byte order mark; convert it to UTF-8 first$",
        ),
        (
            "a.txt",
            "é\nà\n".encode("latin-1"),
            "none of its 2 rows can be used; the first, in line 1: not valid UTF-8: byte 0xe9 at byte 0",
            r"it may be Latin-1, which iconv -f ISO-8859-1 -t UTF-8 a\.txt converts$",
        ),
        (
            "a.csv",
            'id,text\n1,"never\n2,closed\n',
            "its one row cannot be used; the first, in line 2: malformed CSV up to line 3: unexpected end of data",
            "a quotation mark is opened and not closed$",
        ),
        (
            "a.jsonl",
            "plain text\nmore\n",
            "none of its 2 rows can be used; the first, in line 1: not valid JSON: Expecting value",
            r"\(char 0\)$",
        ),
    ],
)
def test_what_to_do(tmp_path, name, content, first, advice):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    look = look_for_text(path)
    assert not look.has_text
    with pytest.raises(InputError, match=f"{first}.*{advice}"):
        look.check()


def test_a_packed_file_is_unpacked_in_the_advice(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORDS).encode()))
    with pytest.raises(InputError, match=r"line: gunzip -c a\.jsonl\.gz \| jq -c '\.\[\]' > a-lines\.jsonl$"):
        look_for_text(path).check()


def test_an_object_larger_than_what_is_looked_at(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x", "more": ["word"] * 200_000}, indent=1))
    with pytest.raises(InputError, match=r"its objects span several lines; write one object a line: jq -c \. "):
        look_for_text(path).check()


def test_json_by_its_name(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    message = (
        r"unknown extension '\.json'; legal: .*; JSON is read as JSON Lines, one object a line: jq -c '\.\[\]' makes"
    )
    with pytest.raises(InputError, match=message):
        check_input(tmp_path / "a.json")
