"""Pairs in windows, many rank correlations at once, and what can be read from a checkpoint."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.stats import spearmanr
from some_texts import some_texts

import valuembed
from valuembed._utils.version import __version__, versions
from valuembed.errors import LayerError, RecipeError, TruncationWarning
from valuembed.evaluation.metrics import spearman
from valuembed.execution.report import EncodeReport
from valuembed.models.checks import described, warn_truncated
from valuembed.models.inspection import inspect_checkpoint
from valuembed.models.multi_readout import MultiReadout
from valuembed.models.pair_windows import pair_windows, read_pair_windows
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import tiny_checkpoint

TEXTS = some_texts(12)
WORD = st.text("ab", max_size=4)


class TestSpearman:
    def test_by_hand(self):
        columns = np.array([[1, 2, 3], [30, 20, 10], [1, 1, 2], [5, 5, 5]])
        # Ranks of the third are 1.5, 1.5, 3: about their mean -0.5, -0.5, 1; wanted's are -1, 0, 1.
        # (0.5 + 0 + 1) / sqrt(1.5 * 2) = sqrt(3) / 2. Equal numbers have no rank correlation.
        np.testing.assert_allclose(spearman(columns, np.array([1, 2, 4])), [1, -1, 3**0.5 / 2, np.nan], atol=1e-15)

    def test_is_scipys(self):
        generator = np.random.default_rng(0)
        columns, wanted = generator.integers(0, 9, (5, 40)), generator.integers(0, 5, 40)
        expected = [spearmanr(column, wanted).statistic for column in columns]
        np.testing.assert_allclose(spearman(columns, wanted), expected, atol=1e-12)


class TestPairWindows:
    @given(st.lists(st.tuples(WORD, WORD), max_size=30), st.integers(0, 9))
    def test_every_pair_is_in_one_window_with_its_texts(self, pairs, most):
        first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        windows = list(pair_windows(first, second, most))
        assert sorted(row for window in windows for row in window.rows) == list(range(len(pairs)))
        for window in windows:
            assert len(set(window.texts)) == len(window.texts) <= max(most, 2)
            for row, one, other in zip(window.rows, window.first, window.second, strict=True):
                assert (window.texts[one], window.texts[other]) == pairs[row]

    def test_by_hand(self):
        first, second = ["a", "ccc", "bb", "a"], ["bb", "ccc", "a", "dddd"]
        # By their longer text: row 3 (4), row 1 (3), rows 0 and 2 (2). Row 1 would make three texts in the first.
        windows = list(pair_windows(first, second, 2))
        assert [window.rows for window in windows] == [[3], [1], [0, 2]]
        assert [window.texts for window in windows] == [["a", "dddd"], ["ccc"], ["a", "bb"]]
        assert (windows[2].first, windows[2].second) == ([0, 1], [1, 0])
        assert [window.rows for window in pair_windows(first, second, 4)] == [[3, 1, 0, 2]]


class TestReading:
    def test_tensors_are_the_panels_vectors(self, folder):
        readouts = MultiReadout.load(folder, {name: name for name in METHODS})
        found, report = readouts.tensors(TEXTS)
        expected = readouts.encode(TEXTS)
        assert report == readouts.report
        assert found.keys() == expected.keys()
        for name, vectors in found.items():
            assert vectors.dtype == torch.float32
            np.testing.assert_array_equal(vectors.numpy(), expected[name])

    def test_a_text_is_computed_once_in_a_window(self, folder):
        readouts = MultiReadout.load(folder, {"va": "va"})
        first, second = [TEXTS[0]] * 5, [*TEXTS[1:5], TEXTS[0]]
        made = list(read_pair_windows(readouts, first, second, 1 << 20, progress=False))
        assert [report.texts for _, _, report in made] == [5]
        # Room for 3 texts: TEXTS[0] and two others in each window, the pair of TEXTS[0] with itself in any.
        made = list(read_pair_windows(readouts, first, second, 3 * 4 * readouts.widths()["va"], progress=False))
        assert [len(window.texts) for window, _, _ in made] == [3, 3]
        for window, vectors, _ in made:
            alone = readouts.encode(window.texts)["va"]
            np.testing.assert_allclose(vectors["va"].numpy(), alone, atol=1e-6)


class TestLook:
    def test_a_whole_checkpoint(self, folder):
        whole = inspect_checkpoint(folder, "aligned_va", template="{text}!", cleaning="sentence")
        assert (whole.decoder_spec.num_layers, whole.origin.num_layers, whole.has_final_norm) == (4, 4, True)
        assert (whole.recipe.template, whole.recipe.cleaning) == (("{text}!",), "sentence")
        assert whole.legal(whole.recipe) == [0, 1, 2, 3]
        assert whole.resolve(whole.recipe, "half") == (2, 3)
        # 2/3 <= l/4
        assert whole.resolve(whole.recipe, None) == (3,)

    def test_a_folder_that_was_saved_cut(self, folder, tmp_path):
        valuembed.load(folder, "va", layers=[0, 1]).save_pretrained(str(tmp_path / "cut"))
        whole = inspect_checkpoint(tmp_path / "cut")
        assert (whole.recipe.method, whole.has_final_norm, whole.legal(whole.recipe)) == ("va", False, [0, 1])
        assert whole.resolve(whole.recipe, [1]) == (1,)
        with pytest.raises(LayerError, match=r"^layers 2-3 are not in this folder, which was saved without them$"):
            whole.resolve(whole.recipe, "half")

    def test_a_folder_that_was_saved_whole_keeps_its_norm(self, folder, tmp_path):
        valuembed.load(folder, "hidden_mean").save_pretrained(str(tmp_path / "whole"))
        assert inspect_checkpoint(tmp_path / "whole", "va").has_final_norm

    def test_hidden_states_follow_every_layer(self, folder):
        recipe = Recipe(signal="hidden", weights="last", layers=[9])
        assert inspect_checkpoint(folder, recipe).legal(recipe) == [0, 1, 2, 3]

    def test_unknown_method(self, folder):
        with pytest.raises(RecipeError, match="method 'vaa' is unknown; give one of va, "):
            inspect_checkpoint(folder, "vaa")


def test_figures_say_what_gave_them(monkeypatch, tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny", "qwen3", tokenizer="byte_level_bos")
    reader = MultiReadout.load(folder, {"va": "va"}, max_tokens=9, dtype="bfloat16").reader
    reader.origin = replace(reader.origin, revision="c0ffee")
    found = described(reader)
    assert (found["origin"]["revision"], found["dtype"], found["max_tokens"]) == ("c0ffee", "bfloat16", 9)
    assert found["versions"] == versions("torch") == {"valuembed": __version__, "torch": version("torch")}


def test_cut_texts_are_warned_of(folder):
    reader = MultiReadout.load(folder, {"va": "va"}, max_tokens=7).reader
    with pytest.warns(TruncationWarning, match=r"^2 of 3 texts were cut to fit max_tokens=7 \(template included\)$"):
        warn_truncated(EncodeReport(texts=3, tokens=21, truncated=2, blank=0), reader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_truncated(EncodeReport(texts=3, tokens=21, truncated=0, blank=0), reader)
