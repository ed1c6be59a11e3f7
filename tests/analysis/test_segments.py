"""Documents cut into segments by hand-made tokens, and the next segment found among hand-made vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from some_texts import some_texts
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from valuembed.analysis import segments
from valuembed.analysis.segments import Documents, Segments, SegmentScore, cut, match
from valuembed.errors import InputError
from valuembed.testing import TOKENIZERS, tiny_tokenizer

A_WORD_A_TOKEN = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
A_WORD_A_TOKEN.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
WORDS = PreTrainedTokenizerFast(tokenizer_object=A_WORD_A_TOKEN)


class TestCut:
    def test_slices_of_the_document_and_no_rest(self):
        # 7 words, 3 a segment: two segments, each with the blanks that follow it, and "g" is dropped.
        found = cut(["a b  c\nd e f g"], WORDS, 3)
        assert found.texts == ("a b  c\n", "d e f ")
        assert found.documents.tolist() == [0, 0]
        assert (found.tokens, found.read, found.too_short, found.kept, len(found)) == (3, 1, 0, 1, 2)

    def test_the_last_segment_reaches_the_end(self):
        assert cut(["  a b c d \n"], WORDS, 2).texts == ("  a b ", "c d \n")

    def test_documents_of_fewer_than_two_segments_are_counted(self):
        found = cut(["a b c", "a b c d", "", "a", "a b c d e f"], WORDS, 2)
        assert found.texts == ("a b ", "c d", "a b ", "c d ", "e f")
        assert found.documents.tolist() == [1, 1, 4, 4, 4]
        assert (found.read, found.too_short, found.kept) == (5, 3, 2)

    def test_a_limit_ends_the_reading(self):
        read = []

        def documents():
            for number in range(100):
                read.append(number)
                yield "a b c d e f"

        # Three segments a document: two documents, then two segments of the third.
        found = cut(documents(), WORDS, 2, limit=8)
        assert found.documents.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
        assert read == [0, 1, 2]
        # One more would be a segment without a neighbour.
        assert len(cut(documents(), WORDS, 2, limit=7)) == 6

    def test_a_document_gives_its_first_segments(self):
        assert cut(["a b c d e f", "g h i j k l"], WORDS, 1, per_document=2).texts == ("a ", "b ", "g ", "h ")
        assert len(cut(["x " * 200], WORDS, 1)) == segments.PER_DOCUMENT
        assert len(cut(["x " * 200], WORDS, 1, per_document=None)) == 200

    @pytest.mark.parametrize("kind", TOKENIZERS)
    def test_segments_joined_are_the_document_whatever_the_tokenizer(self, kind):
        text = "Café owners in Zürich paid 3 € 日本語 <s> more.\n\n The wind turned 🙂🙂 and smoke. " * 3
        tokenizer = tiny_tokenizer(kind)
        found = cut([text], tokenizer, 9, per_document=None)
        assert text.startswith("".join(found.texts))
        tokens = len(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        assert len(found) == tokens // 9

    def test_a_blank_segment_ends_its_document(self):
        # Byte-level tokens: 60 line ends are far more than two segments of 8 by themselves.
        tokenizer = tiny_tokenizer("byte_level")
        text = "The harbour was quiet before the first boats came in. " * 2
        found = cut([text + "\n" * 60 + text], tokenizer, 8)
        assert len(found) >= 2
        assert "".join(found.texts).strip() == text[: len("".join(found.texts))].strip()
        assert all(segment.strip() for segment in found.texts)

    def test_the_same_every_time(self):
        tokenizer = tiny_tokenizer("byte_level")
        assert cut(some_texts(30), tokenizer, 10).texts == cut(some_texts(30), tokenizer, 10).texts

    def test_nothing_long_enough(self):
        message = (
            "none of 2 documents has two segments of 3 tokens: 6 tokens are needed, the longest document has 5; "
            "give longer documents or ask for shorter segments"
        )
        with pytest.raises(InputError, match=message):
            cut(["a b c d e", "f"], WORDS, 3)

    @pytest.mark.parametrize(("name", "number", "least"), [("tokens", 0, 1), ("limit", 1, 2), ("per_document", 1, 2)])
    def test_numbers_that_cannot_be_met(self, name, number, least):
        with pytest.raises(InputError, match=f"{name}={number} has to be at least {least}"):
            cut(["a b c d"], WORDS, **{name: number})


class TestHalves:
    def test_every_other_document(self):
        found = Segments(("",) * 7, np.array([3, 3, 5, 5, 5, 8, 8]), 1, 9, 6)
        first, second = found.halves()
        assert first.tolist() == [0, 1, 5, 6]
        assert second.tolist() == [2, 3, 4]

    def test_one_document(self):
        with pytest.raises(InputError, match="segments of one document cannot be halved by documents; give two"):
            cut(["a b c d"], WORDS, 2).halves()


def at(*degrees):
    angles = np.radians(degrees)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


class TestMatch:
    # Nearest is the smallest angle. Of document 0:
    #   0 -> wants 10; others 50, 20, 100 are farther: rank 1.
    #   10 -> wants 50, 40 away; 0 and 20 are 10 away, 100 is 90 away: rank 3.
    # Of document 1:
    #   20 -> wants 100, 80 away; 10, 0 and 50 are nearer: rank 4.
    VECTORS, DOCUMENTS = at(0, 10, 50, 20, 100), [0, 0, 0, 1, 1]

    def test_by_hand(self):
        found = match(self.VECTORS, self.DOCUMENTS)
        assert (found.queries, found.candidates) == (3, 4)
        assert found.accuracy == pytest.approx(1 / 3)
        assert found.mrr == pytest.approx((1 + 1 / 3 + 1 / 4) / 3)

    def test_lengths_do_not_count(self):
        scaled = self.VECTORS * np.array([[3], [0.01], [500], [1], [7]], np.float32)
        assert match(scaled, self.DOCUMENTS) == match(self.VECTORS, self.DOCUMENTS)

    def test_the_order_of_the_documents_does_not_count(self):
        generator = np.random.default_rng(0)
        vectors = generator.normal(size=(40, 8)).astype(np.float32)
        documents = np.repeat(np.arange(10), 4)
        order = generator.permutation(10)
        rows = np.concatenate([np.flatnonzero(documents == document) for document in order])
        assert match(vectors[rows], documents[rows]).accuracy == match(vectors, documents).accuracy
        assert match(vectors[rows], documents[rows]).mrr == pytest.approx(match(vectors, documents).mrr)

    def test_blocks_do_not_count(self, monkeypatch):
        vectors = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
        documents = np.arange(300) // 3
        whole = match(vectors, documents)
        # 300 similarities a query: no more than two queries at a time.
        monkeypatch.setattr(segments, "_BLOCK", 600)
        again = match(vectors, documents)
        assert (again.accuracy, again.queries) == (whole.accuracy, 200)
        assert again.mrr == pytest.approx(whole.mrr)

    def test_vectors_that_are_all_alike_find_nothing(self):
        # Each wanted one ties with the two other candidates, and comes last of 3.
        assert match(np.ones((4, 2), np.float32), [0, 0, 1, 1]) == SegmentScore(0.0, pytest.approx(1 / 3), 2, 3)

    def test_a_tie_counts_against(self):
        # 10 is wanted from 0, and a copy of it stands in another document: rank 2. The copy's own next, 100, is the
        # farthest of its 3 candidates: rank 3.
        found = match(at(0, 10, 10, 100), [0, 0, 1, 1])
        assert found.accuracy == 0
        assert found.mrr == pytest.approx((1 / 2 + 1 / 3) / 2)

    def test_a_vector_of_zeros_is_like_nothing(self):
        vectors = np.array([[1, 0], [1, 0.1], [0, 0], [0, 1]], np.float32)
        # 0 -> 1: rank 1. The zero vector has cosine 0 with all: its next ties with the two others, rank 3.
        assert match(vectors, [0, 0, 1, 1]).mrr == pytest.approx((1 + 1 / 3) / 2)

    def test_nothing_is_changed(self):
        vectors = self.VECTORS * 2
        kept = vectors.copy()
        match(vectors, self.DOCUMENTS)
        assert np.array_equal(vectors, kept)

    def test_chance(self):
        # Random vectors: accuracy 1/(n-1) and MRR H(n-1)/(n-1) on average; n = 400.
        vectors = np.random.default_rng(2).normal(size=(400, 16)).astype(np.float32)
        expected = sum(1 / rank for rank in range(1, 400)) / 399
        assert match(vectors, np.arange(400) // 4).mrr == pytest.approx(expected, rel=0.5)

    def test_perfect(self):
        documents = np.arange(20) // 2
        assert match(np.eye(10, dtype=np.float32)[documents], documents).accuracy == 1

    def test_shapes(self):
        with pytest.raises(InputError, match=r"vectors of shape \(2, 2\) and documents of shape \(3,\): \[n, width\]"):
            match(np.ones((2, 2), np.float32), [0, 0, 0])

    def test_no_next_one(self):
        with pytest.raises(InputError, match="none of 2 segments is followed by another one of its document"):
            match(np.ones((2, 2), np.float32), [0, 1])


class TestDocuments:
    def test_counts_what_it_gives_and_what_it_passes_over(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(map(json.dumps, [{"body": "One."}, {"body": " "}, {"body": "Two."}])) + "\nno json\n")
        documents = Documents(path, "body")
        assert (list(documents), documents.read, documents.rejected) == (["One.", "Two."], 2, 2)
        # A second reading counts anew.
        assert (list(documents), documents.read, documents.rejected) == (["One.", "Two."], 2, 2)

    def test_is_read_as_far_as_it_is_needed(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("a b c d\n" * 50)
        documents = Documents(path)
        cut(documents, WORDS, 2, limit=4)
        assert documents.read == 2

    def test_is_checked_at_once(self, tmp_path):
        with pytest.raises(InputError, match=r"input .*none\.txt does not exist"):
            Documents(tmp_path / "none.txt")

    def test_of_which_none_can_be_used_are_an_error(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_text('[{"text": "One."}]')
        with pytest.raises(
            InputError, match=r"a\.jsonl: its one row cannot be used; the first, .*; it is one JSON array"
        ):
            list(Documents(path))
        path.write_text("\n")
        with pytest.raises(InputError, match=r"a\.jsonl holds no text: its one row is blank$"):
            list(Documents(path))
