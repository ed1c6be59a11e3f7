import dataclasses
import gzip
import hashlib
import json
import re

import pytest

from valuembed.data.labelled import (
    read_labelled,
    read_pairs,
    read_reranking,
    read_retrieval,
    read_scored,
    read_sts,
    splits_of,
)
from valuembed.data.labelled_rows import digest_of
from valuembed.errors import InputError

STS = {"sentence1": "a", "sentence2": "b", "score": 1}
PAIR = {"sentence1": "a", "sentence2": "b", "label": 1}
ANSWER = {"question": "who?", "answer": "me", "label": 1}


@pytest.fixture
def write(tmp_path):
    """Write rows, or bytes as they are, to a file of this test."""

    def to_file(content, name="data.jsonl"):
        if not isinstance(content, bytes):
            content = "".join(json.dumps(row) + "\n" for row in content).encode()
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return to_file


class TestSts:
    def test_gives_back_the_pairs_in_the_order_of_the_file(self, write):
        path = write([STS, {"sentence1": "é", "sentence2": "", "score": 2.5, "subset": "ignored"}])
        data = read_sts(str(path))
        assert (data.sentences1, data.sentences2, data.scores) == (["a", "é"], ["b", ""], [1.0, 2.5])
        assert data.paths == (path,)
        assert data.split is None
        with pytest.raises(dataclasses.FrozenInstanceError):
            data.split = "test"

    def test_digest_is_that_of_the_bytes(self, write):
        content = json.dumps(STS).encode() + b"\n" + json.dumps({**STS, "score": 2}).encode()
        assert read_sts(write(content)).digest == hashlib.sha256(content).hexdigest()
        # Another line end, the same pairs: another file.
        assert read_sts(write(content + b"\n")).digest != hashlib.sha256(content).hexdigest()

    def test_understands_crlf_a_byte_order_mark_and_blank_lines(self, write):
        lines = [b"\xef\xbb\xbf" + json.dumps(STS).encode(), b"", b"  ", json.dumps({**STS, "score": 0}).encode(), b""]
        assert read_sts(write(b"\r\n".join(lines))).scores == [1.0, 0.0]

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ("4", '"4"'),
            (None, "null"),
            (True, "true"),
            (float("nan"), "NaN"),
            (float("inf"), "Infinity"),
            (10**400, "10{56}\\.\\.\\."),
            ([1], r"\[1\]"),
        ],
    )
    def test_refuses_scores_that_are_no_finite_numbers(self, write, value, shown):
        path = write([STS, {**STS, "score": value}])
        with pytest.raises(InputError, match=rf"{path}, line 2: 'score' is {shown}; expected a finite number"):
            read_sts(path)

    def test_refuses_scores_that_are_all_equal(self, write):
        with pytest.raises(InputError, match=r"all 2 scores are 1; a correlation needs at least two different scores"):
            read_sts(write([STS, STS]))
        with pytest.raises(InputError, match=r"there is a single row; a correlation needs"):
            read_sts(write([STS]))

    def test_two_pairs_are_too_few_to_measure(self, write):
        other = {**STS, "score": 2}
        with pytest.raises(InputError, match=r"\.jsonl: 2 pairs; a correlation says nothing below 3, give more pairs$"):
            read_scored(write([STS, other]))
        assert read_scored(write([STS, other, STS])).scores == [1.0, 2.0, 1.0]

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (5, "not a string but int"),
            (None, r"missing \(None\)"),
            ("nul \0", "not text: NUL character at character 4"),
            ("half \ud83d", "not valid Unicode: lone surrogate U\\+D83D at character 5"),
        ],
    )
    def test_refuses_what_is_no_text(self, write, value, reason):
        path = write([STS, {**STS, "sentence2": value, "score": 2}])
        with pytest.raises(InputError, match=rf"{path}, line 2: 'sentence2' is {reason}; expected a text"):
            read_sts(path)

    def test_refuses_other_columns_and_lists_those_there_are(self, write):
        path = write([STS, {"text": "a", "label": "x"}])
        with pytest.raises(
            InputError,
            match=rf"{path}, line 2: no field 'sentence1'; its fields are 'text', 'label'; "
            "expected sentence1, sentence2, score",
        ):
            read_sts(path)
        with pytest.raises(InputError, match="line 1: no field 'sentence1'; its fields are none"):
            read_sts(write([{}]))


class TestAnyFile:
    def test_refuses_what_cannot_be_read(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read .*none\.jsonl: No such file or directory; expected a JSON"):
            read_sts(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match=r"cannot read .*: Is a directory; expected a JSON Lines file"):
            read_sts(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", " is empty; expected one JSON object a line"),
            (b"\n \n", " is empty; expected one JSON object a line"),
            (
                b'{"a": 1}\n{broken',
                r", line 2: not valid JSON: Expecting property name .*; expected one JSON object a line$",
            ),
            (
                b"sentence1,sentence2,score\n",
                r", line 1: not valid JSON: Expecting value.*; expected one JSON object a line$",
            ),
            (b"[" * 100_000, r", line 1: not valid JSON: .*recursion.*; expected one JSON object a line"),
            (b'{"a": 1}\n[1, 2]', ", line 2: a JSON list, not an object with keys; expected one JSON object a line$"),
            (
                b'"' + b"x" * 99 + b'"',
                ", line 1: a JSON str, not an object with keys; expected one JSON object a line$",
            ),
            (b'{"a": "\xff"}', ", line 1: not valid UTF-8: byte 0xff at byte 7; expected one JSON object a line"),
            (b"\xff\xfe{\x00", " is UTF-16; convert it to UTF-8 first"),
            (b'{"split": 3}', r", line 1: 'split' is 3; expected the name of a split, a string"),
        ],
    )
    def test_refuses_other_content(self, write, content, message):
        path = write(content)
        with pytest.raises(InputError, match=re.escape(str(path)) + message):
            read_sts(path)

    def test_message_can_be_printed_whatever_stands_in_the_file(self, write):
        path = write(rb'{"sentence1": "a", "sentence2": "b", "score": "\ud83d"}')
        with pytest.raises(InputError, match=r"'score' is \"\\ud83d\"; expected a finite number") as raised:
            read_sts(path)
        assert str(raised.value).encode()


class TestSplits:
    ROWS = tuple(
        {**STS, "score": score, "split": split} for score, split in enumerate(["train", "test", "dev", "test"])
    )

    def test_of_several_only_test_counts(self, write):
        data = read_sts(write(self.ROWS))
        assert (data.split, data.scores) == ("test", [1.0, 3.0])

    def test_rows_of_other_splits_are_not_looked_at(self, write):
        assert read_sts(write([{"split": "train"}, *self.ROWS])).scores == [1.0, 3.0]

    def test_without_test_one_has_to_be_named(self, write):
        rows = [{**STS, "score": n, "split": ("train", "dev")[n % 2]} for n in range(4)]
        path = write(rows)
        with pytest.raises(
            InputError,
            match=rf"^{path} mixes splits and has no 'test': its splits are 'train', 'dev'; name the one that counts "
            r"behind the file, as in data\.jsonl@train$",
        ):
            read_sts(path)
        with pytest.raises(InputError, match="its splits are 'train', besides rows without one; name the one"):
            read_sts(write([*rows[::2], STS]))

    def test_named_behind_the_file(self, write):
        rows = [{**STS, "score": n, "split": ("test", "dev")[n % 2]} for n in range(4)]
        path = write(rows)
        default, dev = read_sts(path), read_sts(f"{path}@dev")
        assert (dev.split, dev.scores, dev.paths) == ("dev", [1.0, 3.0], (path,))
        # The digest tells them apart, for figures that are kept under it.
        assert default.digest == read_sts(f"{path}@test").digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert default.digest != dev.digest == read_sts(path, "dev").digest
        with pytest.raises(InputError, match="has no rows of the split 'x'; its splits are 'test', 'dev'"):
            read_sts(f"{path}@x")

    def test_a_file_whose_name_has_the_sign(self, write):
        path = write([STS, {**STS, "score": 9}], "a@b.jsonl")
        assert read_sts(path).scores == [STS["score"], 9]

    def test_the_only_one_is_named(self, write):
        assert read_sts(write([{**row, "split": "dev"} for row in self.ROWS])).split == "dev"

    def test_rows_without_one_are_of_no_split(self, write):
        data = read_sts(write([STS, *self.ROWS, {**STS, "split": None}]))
        assert (data.split, data.scores) == ("test", [1.0, 3.0])

    def test_another_can_be_asked_for(self, write):
        path = write([*self.ROWS, {**STS, "score": 9, "split": "train"}])
        data = read_sts(path, "train")
        assert (data.split, data.scores) == ("train", [0.0, 9.0])
        with pytest.raises(
            InputError, match=rf"{path} has no rows of the split 'x'; its splits are 'train', 'test', 'dev'"
        ):
            read_sts(path, "x")
        with pytest.raises(
            InputError, match=r"no rows of the split 'x'; its splits are none, for no row has the field"
        ):
            read_sts(write([STS]), "x")

    def test_an_error_about_one_of_several_names_it(self, write):
        with pytest.raises(InputError, match=r"data\.jsonl, split 'train': there is a single row"):
            read_sts(write(self.ROWS), "train")

    def test_are_listed_in_the_order_of_the_file(self, write):
        assert splits_of(write([STS, *self.ROWS])) == ["train", "test", "dev"]
        assert splits_of(write([STS])) == []
        assert splits_of(f"{write(self.ROWS)}@dev") == ["dev"]


class TestLabelled:
    def test_labels_are_strings_or_whole_numbers(self, write):
        data = read_labelled(write(b'{"text": "one", "label": "x"}\n\n{"text": "two", "label": "y"}\n'))
        assert (data.texts, data.labels, data.lines) == (["one", "two"], ["x", "y"], [1, 3])
        assert read_labelled(write([{"text": "one", "label": 7}, {"text": "two", "label": 0}])).labels == [7, 0]

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            (True, "'label' is true; expected the class as a string or a whole number"),
            (1.5, r"'label' is 1\.5; expected the class as a string or a whole number"),
            (None, "'label' is null; expected the class"),
            ("", "'label' is \"\"; expected the class"),
            (3, "'label' is 3; expected a string, as the label \"x\" in line 1"),
            ("a\0", "'label' is not text: NUL character at character 1; expected a text"),
        ],
    )
    def test_refuses_other_labels(self, write, label, message):
        path = write([{"text": "one", "label": "x"}, {"text": "two", "label": label}])
        with pytest.raises(InputError, match=rf"{path}, line 2: {message}"):
            read_labelled(path)

    def test_refuses_a_string_among_numbers(self, write):
        rows = [{"text": "one", "label": 1}, {"text": "two", "label": "1"}]
        with pytest.raises(
            InputError, match="line 2: 'label' is \"1\"; expected a whole number, as the label 1 in line 1"
        ):
            read_labelled(write(rows))

    def test_refuses_one_class(self, write):
        with pytest.raises(InputError, match=r"the only label is \"x\"; at least two classes are needed"):
            read_labelled(write([{"text": "one", "label": "x"}, {"text": "two", "label": "x"}]))

    def test_default_split_can_be_another(self, write):
        rows = [{"text": str(n), "label": n % 2, "split": "train" if n < 2 else "test"} for n in range(6)]
        path = write(rows)
        assert read_labelled(path).texts == ["2", "3", "4", "5"]
        assert read_labelled(path, default="train").texts == ["0", "1"]
        with pytest.raises(InputError, match="has no 'dev'"):
            read_labelled(path, default="dev")


class TestPairs:
    def test_reads_both_ways_to_name_the_columns(self, write):
        data = read_pairs(write([PAIR, {"sentence1": "c", "sentence2": "d", "label": 0.0}]))
        assert (data.sentences1, data.sentences2, data.labels) == (["a", "c"], ["b", "d"], [1, 0])
        data = read_pairs(write([ANSWER, {"question": "how?", "answer": "so", "label": 0}]))
        assert (data.sentences1, data.sentences2, data.labels) == (["who?", "how?"], ["me", "so"], [1, 0])

    @pytest.mark.parametrize("label", [2, -1, 0.5, True, "1", None])
    def test_refuses_other_labels(self, write, label):
        path = write([PAIR, {**PAIR, "label": label}])
        with pytest.raises(
            InputError, match=f"{path}, line 2: 'label' is {json.dumps(label)}; expected the number 0 or 1"
        ):
            read_pairs(path)

    def test_refuses_one_kind_of_pairs(self, write):
        with pytest.raises(InputError, match="all 3 labels are 1; pairs of both kinds, 1 and 0, are needed"):
            read_pairs(write([PAIR] * 3))

    def test_names_both_ways_when_columns_are_missing(self, write):
        expected = r"expected sentence1, sentence2, label \(or question, answer, label\)"
        with pytest.raises(InputError, match=rf"no field 'sentence1'; its fields are 'text'; {expected}"):
            read_pairs(write([{"text": "a"}]))
        with pytest.raises(InputError, match=r"no field 'answer'; .*; expected question, answer, label$"):
            read_pairs(write([{"question": "a", "label": 1}]))


class TestRetrieval:
    DOCS = (
        {"id": "1", "title": "Wings", "text": "of birds"},
        {"id": 2, "title": None, "text": "no title"},
        {"id": "3", "title": "A title .", "text": "a title . And more"},
        {"id": "4", "title": "A title .", "text": "A title . And more"},
        {"id": "5", "title": "", "text": ""},
        {"id": "6", "title": "Only a title", "text": ""},
    )
    QUERIES = ({"id": "q", "text": "birds?"}, {"id": "none", "text": "?"}, {"id": "r", "text": "more?"})
    QRELS = (
        {"query_id": "q", "doc_id": "1", "relevant": 1},
        {"query_id": "q", "doc_id": 2, "relevant": 0},
        {"query_id": "r", "doc_id": "4", "relevant": 1},
        {"query_id": "none", "doc_id": "4", "relevant": 0},
    )

    @pytest.fixture
    def read(self, write):
        def read(docs=self.DOCS, queries=self.QUERIES, qrels=self.QRELS, split=None):
            names = [(docs, "docs.jsonl"), (queries, "queries.jsonl"), (qrels, "qrels.jsonl")]
            return read_retrieval(*(write(rows, name) for rows, name in names), split)

        return read

    def test_reads_three_files(self, read):
        data = read()
        # A title goes in front, unless the text begins with it: in row 3 it does not quite.
        assert data.documents == {
            "1": "Wings of birds",
            "2": "no title",
            "3": "A title . a title . And more",
            "4": "A title . And more",
            "5": "",
            "6": "Only a title",
        }
        assert data.queries == {"q": "birds?", "r": "more?"}
        assert data.relevance == {"q": {"1": 1, "2": 0}, "r": {"4": 1}}
        assert (data.blank_documents, data.dropped_queries) == (1, 1)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in data.paths]
        assert [path.name for path in data.paths] == ["docs.jsonl", "queries.jsonl", "qrels.jsonl"]
        assert data.digest == digest_of(*digests) == hashlib.sha256("".join(digests).encode()).hexdigest()

    def test_a_score_is_a_grade_and_goes_before_relevant(self, read):
        rows = [{**row, "score": grade} for row, grade in zip(self.QRELS, [3, 0, 2.0, 0], strict=True)]
        assert read(qrels=rows).relevance == {"q": {"1": 3, "2": 0}, "r": {"4": 2}}

    def test_the_split_is_that_of_the_judgements(self, read):
        rows = [{**row, "split": split} for row, split in zip(self.QRELS, ["test", "test", "dev", "dev"], strict=True)]
        data = read(qrels=rows)
        assert (data.split, list(data.queries), data.dropped_queries) == ("test", ["q"], 2)
        assert list(read(qrels=rows, split="dev").queries) == ["r"]

    def test_a_judgement_may_stand_twice_but_not_contradict_itself(self, read):
        assert read(qrels=[*self.QRELS, self.QRELS[0]]).relevance["q"] == {"1": 1, "2": 0}
        with pytest.raises(
            InputError,
            match=r"line 5: 'relevant' is 0; expected 1, as an earlier line says for query 'q' and document '1'",
        ):
            read(qrels=[*self.QRELS, {**self.QRELS[0], "relevant": 0}])

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"query_id": "x"}, "'query_id' is \"x\"; expected the id of one of the 3 queries in .*queries.jsonl"),
            ({"doc_id": 9}, "'doc_id' is 9; expected the id of one of the 6 documents in .*docs.jsonl"),
            ({"doc_id": None}, "'doc_id' is null; expected an id: a string or a whole number"),
            ({"relevant": 2}, "'relevant' is 2; expected the number 0 or 1"),
        ],
    )
    def test_refuses_judgements_of_what_is_not_there(self, read, row, message):
        with pytest.raises(InputError, match=rf"qrels\.jsonl, line 5: {message}"):
            read(qrels=[*self.QRELS, {**self.QRELS[0], **row}])

    @pytest.mark.parametrize("grade", [-1, 1.5])
    def test_refuses_grades_that_are_no_counts(self, read, grade):
        rows = [{"query_id": "q", "doc_id": "1", "score": grade}]
        with pytest.raises(InputError, match=f"'score' is {grade}; expected a whole number, 0 or more"):
            read(qrels=rows)

    @pytest.mark.parametrize("identity", [None, True, 1.5, ""])
    def test_refuses_ids_that_are_none(self, read, identity):
        with pytest.raises(
            InputError, match=r"queries\.jsonl, line 1: 'id' is .*; expected an id: a string or a whole"
        ):
            read(queries=[{"id": identity, "text": "?"}])

    def test_refuses_an_id_twice(self, read):
        with pytest.raises(
            InputError, match=r"docs\.jsonl, line 7: 'id' is 1; expected an id that no earlier line has"
        ):
            read(docs=[*self.DOCS, {"id": 1, "text": "the id of the first, as a number"}])

    def test_refuses_when_nothing_is_relevant(self, read):
        with pytest.raises(
            InputError, match=r"qrels\.jsonl: no document is relevant to any query; at least one relevant"
        ):
            read(qrels=[row for row in self.QRELS if not row["relevant"]])

    def test_refuses_other_columns(self, read):
        with pytest.raises(
            InputError, match=r"qrels\.jsonl, line 1: no field 'relevant'; .* \(or query_id, doc_id, score\)"
        ):
            read(qrels=[{"query_id": "q", "doc_id": "1"}])
        with pytest.raises(InputError, match=r"docs\.jsonl, line 1: no field 'id'; .*expected id, text"):
            read(docs=[{"text": "a"}])


class TestReranking:
    def test_groups_by_qid_and_leaves_out_what_cannot_be_wrong(self, write):
        rows = [
            {"qid": "a", "question": "Same?", "answer": "yes", "label": 1},
            {"qid": "b", "question": "Same?", "answer": "yes", "label": 0},
            {"qid": "a", "question": "Same?", "answer": "no", "label": 0},
            {"qid": "c", "question": "All right?", "answer": "yes", "label": 1},
        ]
        data = read_reranking(write(rows))
        assert data.questions == {"a": "Same?"}
        assert data.answers == {"a": [("yes", 1), ("no", 0)]}
        assert data.skipped == 2

    def test_groups_by_the_question_without_qid(self, write):
        data = read_reranking(write([ANSWER, {**ANSWER, "answer": "you", "label": 0}]))
        assert data.answers == {"who?": [("me", 1), ("you", 0)]}
        assert data.skipped == 0

    def test_refuses_two_questions_of_one_qid(self, write):
        rows = [{**ANSWER, "qid": 1}, {**ANSWER, "qid": 1, "question": "how?"}]
        with pytest.raises(
            InputError, match='line 2: \'question\' is "how\\?"; expected "who\\?", as in the lines before'
        ):
            read_reranking(write(rows))

    def test_refuses_when_no_question_is_left(self, write):
        message = r"none of the 2 questions has both a right answer \(1\) and a wrong one \(0\)"
        with pytest.raises(InputError, match=message):
            read_reranking(write([ANSWER, {"question": "how?", "answer": "so", "label": 0}]))

    def test_refuses_other_labels_and_columns(self, write):
        with pytest.raises(InputError, match="line 1: 'label' is \"right\"; expected the number 0 or 1"):
            read_reranking(write([{**ANSWER, "label": "right"}]))
        with pytest.raises(InputError, match=r"line 2: no field 'qid'; .*; expected question, answer, label, qid"):
            read_reranking(write([{**ANSWER, "qid": "a"}, ANSWER]))


class TestFilesThatAreNoJsonLines:
    ROWS = (
        {"sentence1": "a", "sentence2": "b", "score": 1},
        {"sentence1": "c", "sentence2": "d", "score": 2},
    )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                json.dumps(ROWS),
                r"line 1: a JSON list, not an object with keys; .*; it is one JSON array; write .*: jq -c",
            ),
            (json.dumps(ROWS, indent=1), r"line 1: not valid JSON: .*; it is one JSON array; write one object a line"),
            (
                json.dumps(ROWS[0], indent=1),
                r"line 1: not valid JSON: .*; its objects span several lines; write",
            ),
            (json.dumps(ROWS[0]) + ",\n", r"line 1: not valid JSON: .*; its lines end in commas; take these away: sed"),
            (
                '{"sentence1": "\xe9"}'.encode("latin-1"),
                r"line 1: not valid UTF-8: byte 0xe9 at byte 15; .*; it may be Latin-1",
            ),
        ],
    )
    def test_say_what_to_do(self, tmp_path, content, message):
        path = tmp_path / "a.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=message):
            read_sts(path)

    def test_any_line_end_and_packing_will_do(self, tmp_path):
        content = "\r".join(map(json.dumps, self.ROWS)).encode()
        (tmp_path / "a.jsonl").write_bytes(content)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content) + b"\0" * 100)
        plain, packed = read_sts(tmp_path / "a.jsonl"), read_sts(tmp_path / "a.jsonl.gz")
        assert plain.scores == packed.scores == [1.0, 2.0]
        (tmp_path / "b.jsonl").write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match=r"b\.jsonl is gzip, which its name does not say; name it b\.jsonl\.gz$"):
            read_sts(tmp_path / "b.jsonl")

    def test_ids_may_be_whole_numbers_as_floats(self, tmp_path):
        for name, rows in (
            ("docs", [{"id": 1.0, "text": "a"}, {"id": 2, "text": "b"}]),
            ("queries", [{"id": 7.0, "text": "q"}]),
            ("qrels", [{"query_id": 7, "doc_id": 1.0, "score": 1.0}]),
        ):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = read_retrieval(*(tmp_path / f"{name}.jsonl" for name in ("docs", "queries", "qrels")))
        assert (list(found.documents), found.relevance) == (["1", "2"], {"7": {"1": 1}})
        labelled = [{"text": "a", "label": 0.0}, {"text": "b", "label": 1.0}]
        (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, labelled)))
        assert read_labelled(tmp_path / "labels.jsonl").labels == [0, 1]
