import dataclasses
import datetime
import gzip
import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from valuembed.data.labelled_rows import digest_of
from valuembed.data.pairs import DUPLICATE, IDENTICAL, LAYOUTS, OTHER_SPLIT, check_batch, overlap, read_training_pairs
from valuembed.errors import InputError

PAIR = {"anchor": "a", "positive": "b"}
KINDS = [".jsonl", ".csv", ".parquet", ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".csv.zst"]


def encoded(rows, kind):
    """Rows as the bytes of a file of this kind."""
    if kind == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if kind.startswith(".jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        content = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\n" for line in lines)
        content = content.encode()
    if kind.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return pa.compress(content, codec="zstd", asbytes=True) if kind.endswith(".zst") else content


@pytest.fixture
def write(tmp_path):
    """Write rows, or bytes as they are, to a file of this test."""

    def to_file(content, kind=".jsonl"):
        path = tmp_path / f"data{kind}"
        path.write_bytes(content if isinstance(content, bytes) else encoded(content, kind))
        return path

    return to_file


def refusal(path, columns=None):
    with pytest.raises(InputError) as caught:
        read_training_pairs(path, columns)
    return str(caught.value)


class TestReading:
    @pytest.mark.parametrize("kind", KINDS)
    def test_gives_back_the_pairs_in_the_order_of_the_file(self, write, kind):
        rows = [
            {"id": "7", "anchor": "é, one", "positive": 'he "said"\nso', "negative": " no "},
            {"id": "8", "anchor": "b", "positive": "a", "negative": "c"},
        ]
        path = write(rows, kind)
        pairs = read_training_pairs(str(path))
        assert pairs.texts == {
            "anchor": ["é, one", "b"],
            "positive": ['he "said"\nso', "a"],
            "negative_1": [" no ", "c"],
        }
        assert list(pairs.texts) == ["anchor", "positive", "negative_1"]
        assert (pairs.path, pairs.columns) == (path, ("anchor", "positive", "negative"))
        assert (len(pairs), pairs.dropped, pairs.split) == (2, {}, None)
        # Of a packed file it is the packed bytes that count: the file as a user can check it.
        assert pairs.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(dataclasses.FrozenInstanceError):
            pairs.split = "train"

    @pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
    @pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
    def test_finds_the_columns_of_each_layout(self, write, layout, kind):
        other = {"title": "t", layout[1]: "b", layout[0]: "a"}
        pairs = read_training_pairs(write([other], kind))
        assert (pairs.columns, pairs.texts) == (layout, {"anchor": ["a"], "positive": ["b"]})

    def test_takes_the_first_layout_that_is_there_whole(self, write):
        row = {"text1": "x", "text2": "y", "question": "q", "answer": "r", "query": "no document"}
        assert read_training_pairs(write([row])).columns == ("question", "answer")

    def test_numbered_negatives_count_by_number(self, write):
        row = {"query": "q", "negative_10": "n10", "negative_2": "n2", "negative_1": "n1", "positive": "p"}
        pairs = read_training_pairs(write([row]))
        assert pairs.columns == ("query", "positive", "negative_1", "negative_2", "negative_10")
        assert [pairs.texts[f"negative_{number}"] for number in (1, 2, 3)] == [["n1"], ["n2"], ["n10"]]

    def test_a_third_sentence_is_no_negative(self, write):
        row = {"sentence1": "a", "sentence2": "b", "sentence3": "c", "negatives": "d", "hard_negative": "e"}
        assert read_training_pairs(write([row])).columns == ("sentence1", "sentence2")

    @pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
    def test_named_columns_are_anchor_positive_and_negatives(self, write, kind):
        row = {"anchor": "other", "positive": "other too", "c": "no", "b": "yes", "a": "x", "d": "nor this"}
        pairs = read_training_pairs(write([row], kind), columns=["a", "b", "d", "c"])
        assert pairs.texts == {
            "anchor": ["x"],
            "positive": ["yes"],
            "negative_1": ["nor this"],
            "negative_2": ["no"],
        }
        assert pairs.columns == ("a", "b", "d", "c")

    def test_understands_crlf_a_byte_order_mark_and_blank_lines(self, write):
        expected = {"anchor": ["a", "c"], "positive": ["b", "d"]}
        lines = [b"\xef\xbb\xbf" + json.dumps(PAIR).encode(), b" ", b'{"anchor": "c", "positive": "d"}', b"", b""]
        assert read_training_pairs(write(b"\r\n".join(lines))).texts == expected
        lines = [b"\xef\xbb\xbfanchor,positive", b"a,b", b"", b"c,d", b"", b""]
        assert read_training_pairs(write(b"\r\n".join(lines), ".csv")).texts == expected

    def test_packed_in_several_parts_is_read_to_the_end(self, write):
        parts = [gzip.compress(b"anchor,positive\na,b\n", mtime=0), gzip.compress(b"c,d\n", mtime=0)]
        assert read_training_pairs(write(b"".join(parts), ".csv.gz")).texts["anchor"] == ["a", "c"]

    def test_parquet_of_many_row_groups_and_categories(self, tmp_path):
        names = [f"text {number}" for number in range(3000)]
        table = pa.table({"anchor": names, "positive": pa.array(["a", "b", "c"] * 1000).dictionary_encode()})
        pq.write_table(table, tmp_path / "many.parquet", row_group_size=700)
        pairs = read_training_pairs(tmp_path / "many.parquet")
        assert pairs.texts == {"anchor": names, "positive": ["a", "b", "c"] * 1000}


class TestSplits:
    ROWS = (PAIR | {"split": "test", "positive": "t"}, PAIR | {"split": "train"}, PAIR | {"split": "dev"})

    @pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
    def test_of_a_file_that_mixes_them_train_counts(self, write, kind):
        path = write(self.ROWS, kind)
        pairs = read_training_pairs(path)
        assert (pairs.split, pairs.texts, pairs.dropped) == (
            "train",
            {"anchor": ["a"], "positive": ["b"]},
            {OTHER_SPLIT: 2},
        )
        named = read_training_pairs(f"{path}@test")
        assert (named.path, named.split, named.texts["positive"]) == (path, "test", ["t"])
        assert named.digest == digest_of(pairs.digest, "test")

    def test_a_mixture_without_train_is_refused(self, write):
        path = write([self.ROWS[0], self.ROWS[2]])
        assert refusal(path) == (
            f"{path} mixes splits and has no 'train': its splits are 'test', 'dev'; name the one that counts behind "
            "the file, as in data.jsonl@test"
        )
        assert "has no rows of the split 'trian'; its splits are 'test', 'dev'" in refusal(f"{path}@trian")


class TestWhatTeachesNothing:
    def test_identical_sides_and_repeated_rows_are_left_out_and_counted(self, write):
        rows = [
            PAIR,
            {"anchor": "two  words ", "positive": "\ttwo words"},
            PAIR,
            {"anchor": "b", "positive": "a"},
            {"anchor": "A", "positive": "a"},
            PAIR,
        ]
        pairs = read_training_pairs(write(rows))
        # The same pair the other way round, or in capitals, is another one.
        assert pairs.texts == {"anchor": ["a", "b", "A"], "positive": ["b", "a", "a"]}
        assert pairs.dropped == {IDENTICAL: 1, DUPLICATE: 2}

    def test_rows_with_other_negatives_are_no_repetition(self, write):
        rows = [PAIR | {"negative": "n"}, PAIR | {"negative": "m"}, PAIR | {"negative": "n"}]
        pairs = read_training_pairs(write(rows))
        assert (pairs.texts["negative_1"], pairs.dropped) == (["n", "m"], {DUPLICATE: 1})

    def test_nothing_but_identical_sides_is_refused(self, write):
        path = write([{"query": "x", "document": "x"}] * 3)
        assert refusal(path) == (
            f"{path}: all 3 pairs have the same text on both sides, which teaches nothing; expected pairs of different "
            "texts in 'query' and 'document'"
        )


class TestRefusals:
    @pytest.mark.parametrize("pairs", [[("a", "b")], {"anchor": ["a"]}, pa.table({"anchor": ["a"]})])
    def test_of_pairs_in_memory(self, pairs):
        with pytest.raises(InputError, match=r"where the path of a file is expected; write pairs in memory to"):
            read_training_pairs(pairs)

    def test_of_files(self, tmp_path, write):
        legal = "expected .jsonl, .csv, .tsv, .parquet, or one of the first three packed as .gz or .zst"
        missing, unknown, packed = tmp_path / "no.jsonl", tmp_path / "a.txt", tmp_path / "a.parquet.gz"
        unknown.touch()
        packed.touch()
        assert refusal(missing) == f"cannot read {missing}: No such file or directory; {legal}"
        # What looks like the id of a data set on the hub is first of all no file.
        assert refusal("someone/pairs") == f"cannot read someone/pairs: No such file or directory; {legal}"
        assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory; {legal}"
        assert refusal(unknown) == f"{unknown} has the unknown extension '.txt'; {legal}"
        assert refusal(packed) == f"{packed} has the unknown extension '.gz'; {legal}"

    @pytest.mark.parametrize(
        ("content", "kind", "message"),
        [
            (b"", ".jsonl", " is empty; expected one JSON object a line"),
            (b"\n \n", ".jsonl", " is empty; expected one JSON object a line"),
            (b"", ".csv", " is empty; expected a header line, then a line for each pair"),
            (b"\na,b\n", ".csv", " has a blank first line; expected a header line, then a line for each pair"),
            (b"anchor,positive\n\n", ".csv", " is empty below its header; expected a line for each pair"),
            (gzip.compress(b"", mtime=0), ".jsonl.gz", " is empty; expected one JSON object a line"),
            ("{}".encode("utf-16"), ".jsonl", " is UTF-16; convert it to UTF-8 first"),
            ("a,b".encode("utf-16"), ".csv", " is UTF-16; convert it to UTF-8 first"),
            (b"PK", ".parquet", " is no readable Parquet file: "),
            (b"PK", ".csv.gz", " is no readable .gz file: "),
            (
                gzip.compress(b"anchor,positive\na,b\n" * 9, mtime=0)[:-12],
                ".csv.gz",
                " is damaged after row 1: Truncated",
            ),
            (b"PK", ".jsonl.zst", " is no readable .zst file: "),
        ],
    )
    def test_of_empty_and_unreadable_content(self, write, content, kind, message):
        path = write(content, kind)
        assert f"{path}{message}" in refusal(path)

    def test_of_parquet_without_rows(self, write):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"anchor": pa.array([], pa.string()), "positive": pa.array([], pa.string())}), sink)
        path = write(sink.getvalue().to_pybytes(), ".parquet")
        assert refusal(path) == f"{path} is empty; expected a row for each pair"

    @pytest.mark.parametrize(("kind", "where"), [(".jsonl", ", line 1"), (".csv", ", line 1"), (".parquet", "")])
    def test_of_other_columns_says_which_there_are_and_which_are_legal(self, write, kind, where):
        path = write([{"anchor": "a", "sentence2": "b"}], kind)
        assert refusal(path) == (
            f"{path}{where}: the columns are 'anchor', 'sentence2'; expected one of: anchor, positive; sentence1, "
            "sentence2; query, document; query, positive; question, answer; text1, text2; each also with negative, or "
            "negative_1, negative_2, ...; or name the columns that hold the pairs"
        )

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (".jsonl", "{}, line 1: no field 'x'; its fields are 'anchor', 'positive'; expected anchor, x"),
            (".csv", "input {} has no column 'x'; its columns are 'anchor', 'positive'"),
            (".parquet", "input {} has no column 'x'; its columns are 'anchor', 'positive'"),
        ],
    )
    def test_of_named_columns_that_are_not_there(self, write, kind, message):
        path = write([PAIR], kind)
        assert refusal(path, ("anchor", "x")) == message.format(path)

    @pytest.mark.parametrize("columns", ["ab", (), ("a",), ("a", "a"), ("a", "b", "b"), ("a", 1)])
    def test_of_columns_that_are_no_names_of_pairs(self, write, columns):
        expected = "expected at least two different names: the anchor's, the positive's, then those of hard negatives"
        assert refusal(write([PAIR]), columns) == f"columns {columns!r}: {expected}"

    def test_of_a_column_that_stands_twice(self, write):
        path = write(b"anchor,positive,anchor\na,b,c\n", ".csv")
        assert refusal(path) == f"input {path} has 2 columns 'anchor'; which one is meant is unknown"

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"{broken", "line 3: not valid JSON: Expecting property name"),
            (b'"a"', "line 3: a JSON str, not an object with keys; expected one JSON object a line"),
            (b'{"anchor": "\xff"}', "line 3: not valid UTF-8: byte 0xff at byte 12; expected one JSON object a line"),
            (b'{"anchor": "c"}', "line 3: no field 'positive'; its fields are 'anchor'; expected anchor, positive"),
            (b'{"anchor": "c", "positive": 5}', "line 3: 'positive' is not a string but int; expected a text"),
            (b'{"anchor": ["c"], "positive": "d"}', "line 3: 'anchor' is not a string but list; expected a text"),
            (b'{"anchor": "c", "positive": "nul \\u0000"}', "line 3: 'positive' is not text: NUL character"),
            (
                b'{"anchor": "c", "positive": "  "}',
                "line 3: 'positive' is \"  \": a one-sided pair; expected a text on both sides",
            ),
            (
                b'{"anchor": null, "positive": "c"}',
                "line 3: 'anchor' is null: a one-sided pair; expected a text on both sides",
            ),
            (
                b'{"anchor": "c", "positive": "d", "negative": "e"}',
                "line 3: 'negative' is \"e\"; expected no such field, as in line 1: all rows have a negative, or none",
            ),
        ],
    )
    def test_of_lines_of_json(self, write, line, message):
        path = write(json.dumps(PAIR).encode() + b"\n\n" + line + b"\n")
        assert refusal(path).startswith(f"{path}, {message}")

    @pytest.mark.parametrize(
        ("negative", "message"),
        [
            ({}, "no field 'negative'; its fields are 'anchor', 'positive'; expected anchor, positive, negative"),
            ({"negative": None}, "'negative' is null; expected a text: all rows have all negatives, or none has any"),
            ({"negative": " "}, "'negative' is \" \"; expected a text: all rows have all negatives, or none has any"),
            ({"negative": " b\t"}, "'negative' is \" b\\t\"; expected another text than 'positive': one to tell apart"),
            ({"negative": ["c"]}, "'negative' is [\"c\"]; expected one text; several negatives stand in columns "),
            ({"negative": 1}, "'negative' is not a string but int; expected a text"),
        ],
    )
    def test_of_negatives(self, write, negative, message):
        path = write([PAIR | {"negative": "n"}, PAIR | negative])
        assert refusal(path).startswith(f"{path}, line 2: {message}")

    def test_of_the_one_of_several_negatives_that_is_the_positive(self, write):
        path = write([PAIR | {"negative_1": "n", "negative_2": "b"}])
        assert f"{path}, line 1: 'negative_2' is \"b\"" in refusal(path)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"c\n", "line 4: 1 field where the header has 2; expected a field for each column of the header"),
            (b"c,d,e\n", "line 4: 3 fields where the header has 2; expected a field for each column of the header"),
            (b'c,"d\n', "line 4: malformed CSV"),
            (b"c,d\xff\n", "line 4: 'positive' is not valid UTF-8; expected a text"),
            (b"c, \n", "line 4: 'positive' is \" \": a one-sided pair; expected a text on both sides"),
            (b",d\n", "line 4: 'anchor' is \"\": a one-sided pair; expected a text on both sides"),
        ],
    )
    def test_of_lines_of_csv_counted_with_the_line_ends_in_texts(self, write, line, message):
        path = write(b'anchor,positive\na,"b\nb"\n' + line, ".csv")
        assert refusal(path).startswith(f"{path}, {message}")

    def test_of_rows_of_parquet(self, write):
        path = write([PAIR, {"anchor": "c", "positive": None}], ".parquet")
        assert refusal(path) == f"{path}, row 2: 'positive' is null: a one-sided pair; expected a text on both sides"
        path = write([PAIR | {"positive": 5, "id": "x"}], ".parquet")
        assert refusal(path) == (
            f"input {path}: column 'positive' holds int64, not text; columns that do: 'anchor', 'id'"
        )

    def test_of_bytes_in_parquet_that_are_no_text(self, write):
        bad = pa.Array.from_buffers(pa.utf8(), 2, pa.array([b"ok", b"\xff\xfe"], pa.binary()).buffers())
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"anchor": ["a", "b"], "positive": bad}), sink)
        path = write(sink.getvalue().to_pybytes(), ".parquet")
        assert refusal(path) == f"{path}, row 2: 'positive' is not valid UTF-8; expected a text"


class TestLabels:
    """Scored or labelled pairs look like pairs that all belong together, and would be trained as such in silence."""

    ROW = {"sentence1": "a", "sentence2": "b"}  # noqa: RUF012

    @pytest.mark.parametrize("value", [1, 1.0, True, "1", "1.0"])
    def test_ones_are_pairs(self, write, value):
        assert len(read_training_pairs(write([self.ROW | {"label": value}]))) == 1

    @pytest.mark.parametrize(
        ("value", "shown"), [(0, "0"), (4.2, "4.2"), (None, "null"), ("same", '"same"'), (10**400, "1000")]
    )
    @pytest.mark.parametrize("name", ["label", "score"])
    def test_others_are_refused(self, write, name, value, shown):
        path = write([self.ROW | {name: 1}, self.ROW | {name: value}])
        assert re.fullmatch(
            rf"{path}, line 2: '{name}' is {shown}.*; expected 1, for each pair is taken for texts that belong "
            r"together; leave the others out, or, if they all belong together, name the columns: sentence1, sentence2",
            refusal(path),
        )

    @pytest.mark.parametrize("kind", [".csv", ".parquet"])
    def test_others_are_refused_in_tables(self, write, kind):
        assert "'label' is \"0\"; expected 1" in refusal(write([self.ROW | {"label": "0"}], kind))

    def test_values_that_json_has_no_words_for_are_shown(self, write):
        path = write([self.ROW | {"label": datetime.date(2020, 1, 2)}], ".parquet")
        assert "row 1: 'label' is \"2020-01-02\"; expected 1" in refusal(path)

    @pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
    def test_do_not_count_where_the_columns_say_what_is_meant(self, write, kind):
        assert len(read_training_pairs(write([self.ROW | {"label": 0}], kind), ("sentence1", "sentence2"))) == 1
        assert len(read_training_pairs(write([PAIR | {"score": 0.5}], kind))) == 1


def test_overlap_is_what_stands_on_any_side_but_for_white_space_and_case(write):
    pairs = read_training_pairs(write([{"anchor": "One  Text", "positive": "Straße", "negative": "n"}]))
    texts = ["other", "N", "one text\n", "STRASSE", "N", "one", ""]
    assert overlap(pairs, texts) == ["N", "one text\n", "STRASSE"]
    assert overlap(pairs, iter(["other"])) == []


class TestBatch:
    def test_is_filled(self, write):
        pairs = read_training_pairs(
            write([PAIR, PAIR, {"anchor": "c", "positive": "d"}, {"anchor": "e", "positive": "e"}])
        )
        check_batch(pairs, 2)
        with pytest.raises(InputError) as caught:
            check_batch(pairs, 2048)
        assert str(caught.value) == (
            f"{pairs.path} has 2 pairs, fewer than one batch of 2,048; take a batch size of at most 2, or give more "
            "pairs; left out as the same text on both sides: 1; left out as the same row as an earlier one: 1"
        )
        with pytest.raises(InputError, match=r"batch size 0: expected a whole number of pairs, 1 or more"):
            check_batch(pairs, 0)

    def test_of_one_pair_needs_a_hard_negative(self, write):
        pairs = read_training_pairs(write([PAIR]))
        with pytest.raises(InputError, match=r"so a batch of 1 pair holds nothing .* a batch size of at least 2"):
            check_batch(pairs, 1)
        check_batch(read_training_pairs(write([PAIR | {"negative": "n"}])), 1)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_header_tells_what_separates_the_columns(tmp_path, mark):
    path = tmp_path / "a.csv"
    path.write_text(f"anchor{mark}positive\na, one{mark}b\nc{mark}d\n")
    assert read_training_pairs(path).texts == {"anchor": ["a, one", "c"], "positive": ["b", "d"]}
    path.write_text(f'"my anchor"{mark}other\na{mark}b\n')
    assert read_training_pairs(path, ["my anchor", "other"]).texts["positive"] == ["b"]


def test_an_array_of_pairs_says_what_to_do(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('[{"anchor": "a", "positive": "b"}]')
    with pytest.raises(
        InputError, match=r"a JSON list, not an object .*; it is one JSON array; write one object a line: jq -c"
    ):
        read_training_pairs(path)
