"""Sets of layers scored from pieces score as the recipes that average those layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import paired_cosine_distances
from some_texts import some_texts

from valuembed.analysis.objectives import CHOSEN_ON, HELD_OUT, LabelledPairs, NextSegments, halves_of_pairs, read_dev
from valuembed.analysis.segments import cut, match
from valuembed.errors import InputError, ReadingError
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.methods import METHODS

pytestmark = pytest.mark.slow

SETS = [(0,), (3,), (0, 1), (0, 2, 3), (0, 1, 2, 3)]
TEXTS = some_texts(60)


@pytest.fixture
def write(tmp_path):
    def to_file(rows, name="pairs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def rows_of(first, second, scores=None, **more):
    scores = range(len(first)) if scores is None else scores
    keys = ("sentence1", "sentence2", "score")
    return [{**dict(zip(keys, row, strict=True)), **more} for row in zip(first, second, scores, strict=True)]


PAIRS = rows_of(TEXTS[:30], TEXTS[30:], [(7 * i) % 11 for i in range(30)])


def layers_apart(folder, method):
    recipes = {str(layer): {**METHODS[method].to_dict(), "layers": [layer]} for layer in range(4)}
    return MultiReadout.load(folder, recipes)


def averaged(folder, method, texts):
    """The vectors of the recipes that average each of the sets."""
    recipes = {str(layers): {**METHODS[method].to_dict(), "layers": layers} for layers in SETS}
    return MultiReadout.load(folder, recipes).encode(texts)


class TestLabelledPairs:
    @pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "hidden_mean"])
    def test_a_set_scores_as_the_recipe_that_averages_it(self, folder, write, method):
        file = read_dev(write(PAIRS))
        evidence = LabelledPairs(layers_apart(folder, method), [[0, 1, 2, 3]], file, progress=False)
        first, second = (averaged(folder, method, texts) for texts in (file.sentences1, file.sentences2))
        for layers in SETS:
            cosines = 1 - paired_cosine_distances(first[str(layers)], second[str(layers)])
            for half, rows in enumerate(halves_of_pairs(file)):
                expected = 100 * spearmanr(cosines[rows], np.array(file.scores)[rows]).statistic
                assert evidence.scores([layers], half)[0, 0] == pytest.approx(expected, abs=1e-9)

    def test_many_sets_at_once_are_scored_as_each_alone(self, folder, write, monkeypatch):
        evidence = LabelledPairs(layers_apart(folder, "va"), [[0, 1, 2, 3]], read_dev(write(PAIRS)), progress=False)
        together = evidence.scores(SETS, HELD_OUT)
        assert together.shape == (5, 1)
        alone = np.concatenate([evidence.scores([one], HELD_OUT) for one in SETS])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-9)
        # Room for one set at a time.
        monkeypatch.setattr("valuembed.analysis.objectives._BLOCK", 1)
        np.testing.assert_allclose(evidence.scores(SETS, HELD_OUT), together, rtol=0, atol=1e-9)

    def test_groups_of_layers_are_kept_apart(self, folder, write):
        file = read_dev(write(PAIRS))
        readouts = layers_apart(folder, "va")
        apart = LabelledPairs(readouts, [[0, 2], [1, 3]], file, progress=False)
        together = LabelledPairs(readouts, [[0, 1, 2, 3]], file, progress=False)
        for layers in [(0, 2), (1, 3), (3,)]:
            expected = together.scores([layers], CHOSEN_ON)
            np.testing.assert_allclose(apart.scores([layers], CHOSEN_ON), expected, rtol=0, atol=1e-9)

    def test_equal_texts_are_equally_similar(self, folder, write):
        # Two levels of gold: pairs of equal texts, and pairs of different ones. With the equal ones tied, the
        # correlation is perfect only if every cosine of equal texts is the same number.
        rows = rows_of(TEXTS[:20], TEXTS[:20], [5.0] * 20) + rows_of(TEXTS[20:24], TEXTS[24:28], [0.0] * 4)
        file = read_dev(write(rows))
        evidence = LabelledPairs(layers_apart(folder, "va"), [[0, 1, 2, 3]], file, progress=False)
        # Ranks of one half: 2 different pairs, whose cosines differ, then 10 alike. Gold ties the 2 as well.
        expected = 100 * spearmanr([1, 2] + [3] * 10, [1, 1] + [3] * 10).statistic
        assert evidence.scores([(0, 1, 2, 3)], CHOSEN_ON)[0, 0] == pytest.approx(expected, abs=1e-9)

    def test_says_what_was_read(self, folder, write):
        path = write([{**row, "split": "dev"} for row in PAIRS])
        data = LabelledPairs(layers_apart(folder, "va"), [[0, 1, 2, 3]], read_dev(path), progress=False).data
        assert (data["file"], data["split"], data["chosen_on"], data["held_out"]) == ("pairs.jsonl", "dev", 15, 15)

    def test_not_finite(self, folder, write):
        readouts = layers_apart(folder, "va")
        readouts.reader.model.layers[2].self_attn.v_proj.weight.data.fill_(float("nan"))
        with pytest.raises(ReadingError, match=r"^layer 2: some vectors are not finite .* try dtype='float32'$"):
            LabelledPairs(readouts, [[0, 1, 2, 3]], read_dev(write(PAIRS)), progress=False)


class TestNextSegments:
    @pytest.mark.parametrize("method", ["va", "aligned_wva"])
    def test_a_set_scores_as_the_recipe_that_averages_it(self, folder, method):
        readouts = layers_apart(folder, method)
        segments = cut([" ".join(TEXTS[i : i + 8]) for i in range(0, 48, 8)], readouts.reader.texts.tokenizer, 16)
        evidence = NextSegments(readouts, segments, "docs.txt", progress=False)
        vectors = averaged(folder, method, segments.texts)
        for layers in SETS:
            for half, rows in enumerate(segments.halves()):
                score = match(vectors[str(layers)][rows], segments.documents[rows])
                found = evidence.scores([layers], half)[0]
                np.testing.assert_allclose(found, [100 * score.mrr, 100 * score.accuracy], atol=1e-9)
        # Scoring does not use vectors up.
        np.testing.assert_allclose(evidence.scores(SETS[-1:], HELD_OUT)[0], found, rtol=0, atol=1e-9)
        assert (evidence.data["documents"], evidence.data["halves"]) == (6, "every other document")


class TestHalves:
    def test_no_text_is_in_both(self, write):
        # A chain of 8 pairs through shared texts, and 24 pairs alone.
        chain = rows_of([f"c{i}" for i in range(8)], [f"c{i + 1}" for i in range(8)])
        alone = rows_of([f"a{i}" for i in range(24)], [f"b{i}" for i in range(24)])
        file = read_dev(write(chain + alone))
        halves = halves_of_pairs(file)
        texts = [{side[row] for row in rows for side in (file.sentences1, file.sentences2)} for rows in halves]
        assert not texts[0] & texts[1]
        assert sorted(np.concatenate(halves)) == list(range(32))
        assert [len(rows) for rows in halves] == [16, 16]

    def test_do_not_depend_on_the_order_of_rows_or_sides(self, write):
        def chosen_on(rows):
            file = read_dev(write(rows))
            return {frozenset((file.sentences1[i], file.sentences2[i])) for i in halves_of_pairs(file)[CHOSEN_ON]}

        turned = [{**row, "sentence1": row["sentence2"], "sentence2": row["sentence1"]} for row in PAIRS[::-1]]
        assert chosen_on(turned) == chosen_on(PAIRS)

    def test_pairs_that_all_hang_together(self, write):
        rows = rows_of(["hub"] * 30, [f"b{i}" for i in range(30)])
        with pytest.raises(
            InputError, match="shared texts tie 30 of 30 pairs together, which leaves 0 to hold out; at"
        ):
            halves_of_pairs(read_dev(write(rows)))

    def test_equal_scores_in_one_half(self, write):
        rows = rows_of([f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)], [1.0] * 19 + [2.0])
        with pytest.raises(InputError, match="the 10 pairs of one half all have the score 1; a correlation needs at"):
            halves_of_pairs(read_dev(write(rows)))


class TestReadDev:
    @pytest.mark.parametrize("prefix", ["", "sts:", "sts: "])
    def test_takes_a_path_or_a_task(self, write, prefix):
        assert len(read_dev(f"{prefix}{write(PAIRS)}").scores) == 30

    @pytest.mark.parametrize(
        ("splits", "asked", "expected"),
        [
            (["test", "train", "dev"], None, "dev"),
            (["test", "train"], None, "train"),
            (["train", "validation"], None, "validation"),
            (["dev", "train"], "train", "train"),
            (["headlines"], None, "headlines"),
        ],
    )
    def test_split(self, write, splits, asked, expected):
        path = write([row for split in splits for row in rows_of(TEXTS[:20], TEXTS[20:40], split=split)])
        assert read_dev(path, asked).split == expected

    def test_split_behind_the_file(self, write):
        path = write([row for split in ("dev", "x") for row in rows_of(TEXTS[:20], TEXTS[20:40], split=split)])
        assert read_dev(f"sts:{path}@x").split == "x"
        with pytest.raises(InputError, match="layers are never chosen on test data"):
            read_dev(f"sts:{path}@test")

    @pytest.mark.parametrize("name", ["test.jsonl", "STSBenchmark.en.test.jsonl", "sts_test.jsonl", "TEST-2.jsonl"])
    def test_a_file_named_test_is_refused(self, write, name):
        with pytest.raises(InputError, match="layers are never chosen on test data; give a file for development"):
            read_dev(write(PAIRS, name))

    @pytest.mark.parametrize("name", ["latest.jsonl", "contest.jsonl", "testimony.jsonl"])
    def test_a_word_that_holds_test_is_not(self, write, name):
        assert read_dev(write(PAIRS, name)).scores

    def test_rows_of_a_test_split_are_refused(self, write):
        path = write([{**row, "split": "test"} for row in PAIRS])
        with pytest.raises(InputError, match="has rows of the split 'test' alone: layers are never chosen on test"):
            read_dev(path)
        with pytest.raises(InputError, match="split 'test': layers are never chosen on test data"):
            read_dev(path, "test")

    def test_several_unknown_splits(self, write):
        path = write(rows_of(TEXTS[:20], TEXTS[20:40], split="a") + rows_of(TEXTS[:20], TEXTS[20:40], split="b"))
        with pytest.raises(InputError, match=r"has the splits 'a', 'b'; name one with split$"):
            read_dev(path)

    def test_too_few(self, write):
        with pytest.raises(InputError, match="19 pairs are too few to choose on; at least 20 are needed"):
            read_dev(write(PAIRS[:19]))
