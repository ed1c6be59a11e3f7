"""What each token of a text counts for: the weights that its vector is made with, token by token."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from saved_models import assert_close

import valuembed
from valuembed.analysis.token_signals import AT_TOKEN, TokenSignal, read_tokens
from valuembed.backbone import Plan
from valuembed.errors import InputError, LayerError, RecipeError
from valuembed.models.explanation import Explanation, Token, TokenWeights, explain
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.layers import describe
from valuembed.recipes.templates import PROMPT_EOL
from valuembed.testing import tiny_checkpoint

TEXT = "A good map is worth more than a fast car."


@pytest.fixture(scope="module")
def encoder(folder):
    return valuembed.load(folder, method="wva", layers=[1, 3], normalize=False)


def test_every_token_of_what_is_fed_has_its_place(encoder):
    found = explain(encoder, TEXT)
    assert (found.method, found.layers, found.by) == ("wva", (1, 3), "attention")
    assert found.model == encoder.reader.origin.name
    (sequence,) = found.sequences
    assert sequence.string == PROMPT_EOL.replace("{text}", TEXT)
    assert sequence.tokens[0] == Token("<s>", 0, 0, False)
    for token in sequence.tokens[1:]:
        assert sequence.string[token.start : token.end] == token.text != ""
    own = [token for token in sequence.tokens if token.is_text]
    # Its full stop and the quotation mark behind it are one token.
    assert sequence.string[own[0].start : own[-1].end] == TEXT + '"'
    assert sequence.weights.shape == (2, 4, len(sequence.tokens))
    assert sequence.weights.dtype == np.float32
    np.testing.assert_allclose(sequence.weights.sum(axis=2), 1, atol=1e-6)
    assert not sequence.truncated


def test_weights_and_values_make_the_vector(encoder):
    (sequence,) = explain(encoder, TEXT).sequences
    reader = encoder.reader
    (row,) = reader.texts.rows([TEXT], PROMPT_EOL, max_tokens=None)
    t, decoder_spec = len(row.ids), reader.plan.decoder_spec
    ((_, values),) = read_tokens(reader.model, decoder_spec, [1, 3], [row], [range(row.span[0], t)])
    ((_, before),) = read_tokens(reader.model, decoder_spec, [1, 3], [row], [range(row.span[0])])
    per_layer = []
    for layer, weights in zip((1, 3), torch.from_numpy(sequence.weights), strict=True):
        signal = TokenSignal("value", AT_TOKEN, layer)
        heads = torch.cat([before[signal], values[signal]]).unflatten(1, (2, -1)).repeat_interleave(2, dim=1)
        per_layer.append(torch.einsum("ht,thd->hd", weights, heads).flatten())
    np.testing.assert_allclose(torch.stack(per_layer).mean(dim=0), encoder.encode(TEXT), atol=1e-5)


def test_contributions_are_shares_of_attention_times_length_of_the_value(encoder):
    (plain,), (shares,) = (explain(encoder, TEXT, by=by).sequences for by in ("attention", "contribution"))
    assert shares.tokens == plain.tokens
    np.testing.assert_allclose(shares.by_layer().sum(axis=1), 1, atol=1e-5)
    reader = encoder.reader
    (row,) = reader.texts.rows([TEXT], PROMPT_EOL, max_tokens=None)
    ((_, values),) = read_tokens(reader.model, reader.plan.decoder_spec, [1], [row], [range(len(row.ids))])
    lengths = values[TokenSignal("value", AT_TOKEN, 1)].unflatten(1, (2, -1)).norm(dim=-1)
    # Query heads 0 and 1 read value head 0, heads 2 and 3 read value head 1.
    products = plain.weights[0] * lengths.T.numpy()[[0, 0, 1, 1]]
    np.testing.assert_allclose(shares.weights[0], 4 * products / products.sum(), rtol=1e-4, atol=1e-6)


def test_means_by_hand():
    # Two layers, two heads, three tokens.
    weights = np.array([[[0, 1, 3], [2, 3, 5]], [[4, 0, 0], [0, 0, 4]]], np.float32) / 8
    tokens = (Token("<s>", 0, 0, False), Token("\u4e2d", 0, 1, True), Token("", 1, 1, True))
    made = TokenWeights(tokens, (4, 7), weights, False)
    assert (8 * made.by_layer()).tolist() == [[1, 2, 4], [2, 0, 2]]
    assert (8 * made.mean()).tolist() == [1.5, 1, 3]
    assert made.string == "\u4e2d"
    assert made.visible() == [[0], [1, 2]]
    # Of the text's four weights 0, 2, 2, 4 (in eighths), 99 in 100 are below 2 + 0.97 * 2: the place is 0.99 * 3.
    assert made.full() == pytest.approx(3.94 / 8)
    assert made.to_dict() == {
        "truncated": False,
        "full": 0.4925,
        "tokens": [
            {"text": "<s>", "start": 0, "end": 0, "is_text": False, "weight": 0.1875, "by_layer": [0.125, 0.25]},
            {"text": "\u4e2d", "start": 0, "end": 1, "is_text": True, "weight": 0.125, "by_layer": [0.25, 0.0]},
            {"text": "", "start": 1, "end": 1, "is_text": True, "weight": 0.375, "by_layer": [0.5, 0.25]},
        ],
    }
    found = Explanation("some/model", "wva", (4, 7), "attention", (made,))
    assert found.title == "some/model, wva, layers 4, 7: attention of the last token, mean over heads"
    assert json.loads(json.dumps(found.to_dict())) == {
        "model": "some/model",
        "method": "wva",
        "layers": [4, 7],
        "by": "attention",
        "sequences": [made.to_dict()],
    }


def test_the_first_token_does_not_set_the_colours_unless_it_is_all_there_is():
    weights = np.array([[[0.9, 0.04, 0.06]]], np.float32)
    text = tuple(Token(letter, place, place + 1, True) for place, letter in enumerate("abc"))
    assert TokenWeights(text, (0,), weights, False).full() < 0.07
    hidden = np.array([[[0.9, 0.0, 0.0]]], np.float32)
    assert TokenWeights(text, (0,), hidden, False).full() == pytest.approx(0.9)
    alone = TokenWeights((Token("a", 0, 1, True),), (0,), np.ones((1, 1, 1), np.float32), False)
    assert alone.full() == 1


def test_each_template_has_a_sequence(folder):
    encoder = valuembed.load(folder, method="wva", layers=[0], template="meta_eol")
    found = explain(encoder, TEXT)
    assert len(found.sequences) == 8
    assert [sequence.string for sequence in found.sequences] == [
        template.replace("{text}", TEXT) for template in encoder.recipe.template
    ]


def test_prompt_role_and_cleaning_are_those_of_the_vector(folder):
    template = {"query": "Ask: {prompt}{text}", "default": "{text}"}
    encoder = valuembed.load(folder, method="wva", layers=[0], template=template, cleaning="sentence")
    (query,) = explain(encoder, 'Is it "so"?', role="query", prompt="now ").sequences
    assert query.string == "Ask: now Is it 'so'."
    assert explain(encoder, "It is").sequences[0].string == "It is."


def test_a_text_that_is_too_long_is_cut(folder):
    encoder = valuembed.load(folder, method="wva", layers=[0], template="Read {text} now", max_tokens=12)
    (sequence,) = explain(encoder, TEXT).sequences
    assert sequence.truncated
    assert len(sequence.tokens) == 12
    assert sequence.string.startswith("Read A good")
    assert sequence.string.endswith(" now")


def test_one_of_several_recipes_on_a_decoder(folder, encoder):
    readouts = MultiReadout.load(folder, {"va": "va", "mine": {**encoder.recipe.to_dict(), "layers": [1, 3]}})
    found = explain(readouts.reader, TEXT, plan=readouts.plans["mine"])
    np.testing.assert_allclose(found.sequences[0].weights, explain(encoder, TEXT).sequences[0].weights, atol=1e-6)


def test_windows_hide_what_is_beyond_them(sliding):
    """Layers 0 and 2 see 8 tokens, layer 1 sees all."""
    encoder = valuembed.load(sliding, method="wva", layers=[0, 1, 2])
    (sequence,) = explain(encoder, TEXT).sequences
    seen = (sequence.weights > 0).all(axis=1).sum(axis=1)
    assert seen.tolist() == [8, len(sequence.tokens), 8]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("va", "method 'va' gives the text's tokens the same weight each, so there is nothing to show; methods that"),
        (valuembed.Recipe(signal="value", weights="mean", span="all"), "method 'custom' gives all tokens the same"),
        ("prompt_eol", "method 'prompt_eol' reads hidden states, in which no weights of tokens can be told apart; met"),
    ],
)
def test_methods_without_weights_are_refused(folder, method, message):
    encoder = valuembed.load(folder, method=method)
    with pytest.raises(RecipeError, match=message) as caught:
        explain(encoder, TEXT)
    assert str(caught.value).endswith("methods that weigh tokens: wva, aligned_wva, joined")


def test_what_cannot_be_explained(encoder):
    with pytest.raises(RecipeError, match=r"^by='weight' is unknown; legal: attention, contribution$"):
        explain(encoder, TEXT, by="weight")
    with pytest.raises(InputError, match=r"^the text ' ' is blank, so there is nothing to explain$"):
        explain(encoder, " ")
    with pytest.raises(
        InputError, match=r"^the text cannot be explained: it is not a string but int; give one string$"
    ):
        explain(encoder, 7)
    with pytest.raises(InputError, match=r"it is not a string but list; give one string$"):
        explain(encoder, [TEXT])
    with pytest.raises(InputError, match=r"^prompt 7 cannot be embedded: it is not a string but int$"):
        explain(encoder, TEXT, prompt=7)


def test_layers_with_other_heads_are_refused(encoder):
    blocks = {1: SimpleNamespace(query_heads=4), 3: SimpleNamespace(query_heads=8)}
    plan = Plan(encoder.recipe, (1, 3), SimpleNamespace(block=blocks.__getitem__))
    message = rf"^layers {describe((1, 3))} have 4 or 8 heads, and cannot be shown together; choose layers of one kind$"
    with pytest.raises(LayerError, match=message):
        explain(encoder, TEXT, plan=plan)


def test_a_saved_model_is_explained_as_before(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path / "saved"))
    again = explain(valuembed.load(tmp_path / "saved"), TEXT)
    assert again.layers == (1, 3)
    assert_close(again.sequences[0].weights, explain(encoder, TEXT).sequences[0].weights)


def test_bytes_are_shown_once(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", tokenizer="metaspace_bos")
    (sequence,) = explain(valuembed.load(folder, method="wva", layers=[0]), "\U0001f600 F").sequences
    own = [token.text for token in sequence.tokens if token.is_text]
    assert own[own.index("\U0001f600") :][:4] == ["\U0001f600", "", "", ""]
    assert sequence.string == PROMPT_EOL.replace("{text}", "\U0001f600 F")


def test_the_figure_holds_tokens_and_layers(encoder):
    pytest.importorskip("matplotlib")
    found = explain(encoder, TEXT)
    figure = found.figure()
    axes = figure.axes[0]
    assert len(axes.get_xticklabels()) == len(found.sequences[0].tokens)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "1", "3"]
    assert figure.get_suptitle().replace("\n", " ") == found.title
    np.testing.assert_allclose(axes.images[0].get_array(), found.sequences[0].by_layer())
