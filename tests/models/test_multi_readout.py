"""Several recipes in one pass give what each gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from some_texts import some_texts

import valuembed
from valuembed.backbone.checkpoints.calibration_record import CalibrationRecord
from valuembed.errors import InputError, ReadingError, RecipeError
from valuembed.models.calibration import Calibration, Projection
from valuembed.models.multi_readout import SIGNALS, MultiReadout, every_layer
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

TEXTS = some_texts(20)
ALL = {**{name: name for name in METHODS}, "va all": Recipe(signal="value", weights="mean", layers="all")}


@pytest.fixture(scope="module")
def readouts(folder):
    return MultiReadout.load(folder, ALL)


@pytest.fixture(scope="module")
def together(readouts):
    return readouts.encode(TEXTS)


def passes(readouts, monkeypatch, texts, **options):
    """Count the steps that the decoder runs."""
    counted = []
    real = type(readouts.reader.model).forward

    def forward(self, *args, **kwargs):
        counted.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(readouts.reader.model), "forward", forward)
    readouts.encode(texts, **options)
    return len(counted)


@pytest.mark.parametrize("name", ALL)
def test_each_recipe_gives_what_it_gives_alone(together, folder, name):
    alone = valuembed.load(folder, ALL[name], normalize=False).encode(TEXTS)
    assert together[name].dtype == np.float32
    np.testing.assert_allclose(together[name], alone, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize("model", ["folder", "sliding"])
def test_every_layer_and_signal_in_one_pass(request, model):
    checkpoint = request.getfixturevalue(model)
    template = ('"{text}" in one word:"',)
    decoder_spec = MultiReadout.load(checkpoint, {"one": "va"}).plans["one"].decoder_spec
    recipes = every_layer(decoder_spec, template)
    readouts = MultiReadout.load(checkpoint, recipes)
    # 4 layers, 6 signals, one set of tokens.
    assert len(recipes) == 24
    assert [len(group) for group in readouts.groups()] == [24]
    together = readouts.encode(TEXTS)
    for signal, recipe in SIGNALS.items():
        alone = valuembed.load(checkpoint, recipe, layers=[2], template=template, normalize=False).encode(TEXTS)
        np.testing.assert_allclose(together[f"{signal}@2"], alone, atol=1e-5 * np.abs(alone).max())


def test_recipes_with_the_same_tokens_share_a_pass(readouts, monkeypatch):
    assert readouts.groups() == [
        ["va", "aligned_va", "hidden_mean", "hidden_last", "va all"],
        ["wva", "aligned_wva", "prompt_eol"],
        ["meta_eol"],
        ["echo"],
        ["joined"],
    ]
    assert passes(readouts, monkeypatch, ["One."], names=["va", "hidden_mean", "aligned_va"]) == 1
    assert passes(readouts, monkeypatch, ["One."], names=["va", "wva"]) == 2


def test_span_cleaning_and_role_keep_recipes_apart(folder):
    va = Recipe(signal="value", weights="mean")
    readouts = MultiReadout.load(
        folder,
        {
            "text": va,
            "all": Recipe(signal="value", weights="mean", span="all"),
            "cleaned": Recipe(signal="value", weights="mean", cleaning="sentence"),
            "queries": Recipe(signal="value", weights="mean", query_template="query: {text}"),
        },
    )
    assert readouts.groups() == [["text", "queries"], ["all"], ["cleaned"]]
    assert readouts.groups("query") == [["text"], ["all"], ["cleaned"], ["queries"]]
    assert readouts.by_role
    assert not MultiReadout(readouts.reader, {"text": readouts.plans["text"]}).by_role
    asked = readouts.encode(["A question?"], role="query", prompt="find: ")
    alone = valuembed.load(folder, readouts.recipes["queries"], normalize=False)
    expected = alone.encode_query(["A question?"], prompt="find: ")
    np.testing.assert_allclose(asked["queries"], expected, atol=1e-6)
    assert np.abs(asked["text"] - asked["cleaned"]).max() > 1e-3


def test_loads_no_deeper_than_the_deepest_recipe(folder):
    at = {name: Recipe(signal="value", weights="mean", layers=[layer]) for name, layer in (("a", 0), ("b", 2))}
    shallow = MultiReadout.load(folder, at)
    assert shallow.reader.model.config.num_hidden_layers == 3
    assert shallow.widths() == {"a": 16, "b": 16}


def test_reports_what_was_computed(readouts):
    readouts.encode(["One.", " ", "Two words."], names=["va"])
    once = readouts.report
    readouts.encode(["One.", " ", "Two words."], names=["va", "aligned_va"])
    # The second recipe costs no token.
    assert readouts.report == once
    assert (once.texts, once.blank, once.truncated) == (3, 1, 0)
    readouts.encode(["One.", " ", "Two words."], names=["va", "echo"])
    assert readouts.report.tokens > 2 * once.tokens


def test_truncation_is_counted_once_for_a_text(folder):
    readouts = MultiReadout.load(folder, {"va": "va", "echo": "echo"}, max_tokens=60)
    readouts.encode(["word " * 90, "One."])
    assert readouts.report.truncated == 1


def test_no_texts(readouts):
    vectors = readouts.encode([], names=["va", "aligned_wva"])
    assert {name: found.shape for name, found in vectors.items()} == {"va": (0, 16), "aligned_wva": (0, 32)}


def test_precision_and_device_are_as_asked(folder):
    readouts = MultiReadout.load(folder, {"va": "va"}, dtype="float64", device="cpu")
    assert readouts.reader.model.dtype == torch.float64
    assert readouts.encode(["One."])["va"].dtype == np.float32


class TestErrors:
    def test_no_recipe(self, folder):
        with pytest.raises(RecipeError, match="at least one recipe is needed to read"):
            MultiReadout.load(folder, {})

    def test_unknown_method(self, folder):
        with pytest.raises(RecipeError, match="method 'vaa' is unknown; give one of va, "):
            MultiReadout.load(folder, {"x": "vaa"})

    def test_unknown_name(self, readouts):
        with pytest.raises(RecipeError, match="no recipe is named 'vaa'; there are va, aligned_va"):
            readouts.encode(["One."], names=["vaa"])

    def test_one_text(self, readouts):
        with pytest.raises(InputError, match=r"str where texts are expected: .* give \['ab'\] to mean one text"):
            readouts.encode("ab")

    def test_no_text(self, readouts):
        with pytest.raises(InputError, match="1 of 2 texts cannot be embedded: row 1 is not a string but int"):
            readouts.encode(["One.", 2])

    def test_not_finite(self, folder):
        readouts = MultiReadout.load(folder, {"va": "va"})
        with torch.no_grad():
            readouts.reader.model.layers[2].self_attn.v_proj.weight.fill_(float("nan"))
        with pytest.raises(ReadingError, match=r"the embedding of 2 texts is not finite .* rows 0, 1"):
            readouts.encode(["One.", "Two."])


class TestCalibrations:
    def test_apply_to_their_recipe_alone(self, folder):
        recipe = MultiReadout.load(folder, {"va": "va"}).recipes["va"]
        # Keep the first 3 of 16 numbers, less 1.
        projection = Projection(torch.ones(16), torch.eye(16)[:, :3])
        record = CalibrationRecord(kind="centre", recipe=recipe, width=16, size=3, texts=2, corpus="0" * 16)
        readouts = MultiReadout.load(
            folder, {"va": "va", "centred": "va"}, calibrations={"centred": Calibration(projection, record)}
        )
        assert readouts.widths() == {"va": 16, "centred": 3}
        assert readouts.groups() == [["va", "centred"]]
        made = readouts.encode(TEXTS)
        unit = made["va"] / np.linalg.norm(made["va"], axis=1, keepdims=True)
        np.testing.assert_allclose(made["centred"], unit[:, :3] - 1, atol=1e-6)

    def test_for_another_recipe(self, folder):
        recipe = MultiReadout.load(folder, {"va": METHODS["va"]}).recipes["va"]
        record = CalibrationRecord(kind="centre", recipe=recipe, width=16, size=16)
        calibration = Calibration(Projection(torch.zeros(16), torch.eye(16)), record)
        with pytest.raises(
            RecipeError, match=r"was calibrated \(centre\) for va with weights 'mean', asked for is 'last'"
        ):
            MultiReadout.load(folder, {"x": "wva"}, calibrations={"x": calibration})
        with pytest.raises(RecipeError, match="no recipe is named 'y', as a calibration is; there are x"):
            MultiReadout.load(folder, {"x": "va"}, calibrations={"y": calibration})
