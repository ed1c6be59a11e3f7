"""Joined readouts: each part as it is alone, centred and of length 1, in every way of reading them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_models import assert_close
from sentence_transformers import SentenceTransformer
from some_texts import some_texts

import valuembed
from valuembed.backbone.checkpoints import locate
from valuembed.errors import CheckpointError, ReadingError, RecipeError
from valuembed.execution.executor import SHARED_FROM
from valuembed.models import centring
from valuembed.models.multi_readout import MultiReadout
from valuembed.models.text_encoder import load_text_encoder
from valuembed.recipes import METHODS, Recipe

TEXTS = some_texts(SHARED_FROM + 3)

OWN = Recipe(
    signal="hidden",
    weights="mean",
    layers=[1],
    query_template="Q: {text}",
    weight=0.5,
    joined=(
        Recipe(signal="value", weights="last", alignment="projection", layers=[2, 3], template="prompt_eol"),
        Recipe(signal="value", weights="mean", layers=[0], centring="general", query_template="Q: {text}", weight=3),
    ),
)
"""Parts of another width each; the first and the last feed the same tokens."""


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_parts(folder: Path, recipe: Recipe, texts: list[str], name: str = "encode") -> np.ndarray:
    """The joined vectors from loads of each part alone, with numpy."""
    found = []
    for part in recipe.parts:
        alone = valuembed.load(folder, replace(part, centring="none"))
        vectors = unit(getattr(alone, name)(texts))
        if part.centring != "none":
            vectors = unit(vectors - alone.encode(list(centring.general_sentences())).mean(axis=0))
        found.append(part.weight**0.5 * vectors)
    return unit(np.concatenate(found, axis=1))


@pytest.mark.parametrize("name", ["encode", "encode_query", "encode_document"])
@pytest.mark.parametrize("recipe", [METHODS["joined"], OWN], ids=["joined", "own"])
def test_each_part_is_what_it_is_alone(recipe, name, folder):
    model = valuembed.load(folder, recipe)
    vectors = getattr(model, name)(TEXTS)
    assert vectors.shape == (len(TEXTS), sum(valuembed.load(folder, part).reader.plan.width for part in recipe.parts))
    assert_close(vectors, by_parts(folder, recipe, TEXTS, name))
    # With few texts nothing is shared.
    assert_close(getattr(model, name)(TEXTS[:2]), vectors[:2])


def test_layers_with_windows(sliding):
    recipe = METHODS["joined"]
    assert_close(valuembed.load(sliding, recipe).encode(TEXTS), by_parts(sliding, recipe, TEXTS))


def test_a_single_recipe_is_centred_too(folder):
    recipe = replace(METHODS["va"], centring="general")
    assert_close(valuembed.load(folder, recipe).encode(TEXTS), by_parts(folder, recipe, TEXTS))


def test_packed_texts_give_the_same(folder):
    model = valuembed.load(folder, OWN)
    padded = model.encode(TEXTS)
    model.reader.executor.layout = "packed"
    with torch.no_grad():
        assert model.reader.executor.packed_up_to() > 0
    assert_close(model.encode(TEXTS), padded)


def test_without_sentence_transformers_and_among_others_it_is_the_same(folder):
    expected = valuembed.load(folder, OWN).encode(TEXTS)
    light = load_text_encoder(folder, OWN)
    assert light is not None
    assert_close(light.encode(TEXTS), expected)
    together = MultiReadout.load(folder, {"own": OWN, "joined": "joined", "va": "va"})
    assert together.groups() == [["own"], ["joined"], ["va"]]
    found = together.encode(TEXTS)
    assert_close(unit(found["own"]), expected)
    assert_close(unit(found["joined"]), valuembed.load(folder, "joined").encode(TEXTS))


def test_features_and_forward_give_the_same(folder):
    model = valuembed.load(folder, OWN)
    features = model.preprocess(TEXTS)
    assert features["sequence_ends"].shape == (len(TEXTS), 2)
    assert_close(model(features)["sentence_embedding"].detach().numpy(), model.encode(TEXTS))


def test_a_part_after_the_final_norm_keeps_the_whole_decoder(folder):
    recipe = replace(METHODS["wva"], layers=[0], joined=(METHODS["hidden_mean"],))
    model = valuembed.load(folder, recipe)
    assert len(model.reader.model.layers) == 4
    assert_close(model.encode(TEXTS), by_parts(folder, recipe, TEXTS))


def test_saved_it_is_the_same_also_as_a_plain_sentence_transformer(folder, tmp_path, monkeypatch):
    model = valuembed.load(folder, OWN)
    expected = model.encode(TEXTS)
    saved = tmp_path / "saved"
    model.save_pretrained(str(saved))
    # Whatever is read from now on is not needed.
    monkeypatch.setattr(centring, "read_means", lambda reader, parts: {}[parts[0]] if parts else {})
    assert_close(valuembed.load(saved).encode(TEXTS), expected)
    assert_close(SentenceTransformer(str(saved), trust_remote_code=True).encode(TEXTS), expected)
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "| part 3: centred by | the mean of general sentences |" in card
    assert "| part 2: weight | 1 |" in card


def test_saved_over_a_centred_model_nothing_is_left_of_its_means(folder, tmp_path):
    saved = tmp_path / "saved"
    valuembed.load(folder, OWN).save_pretrained(str(saved))
    assert (saved / centring.MEANS_FILE).is_file()
    valuembed.load(folder, "va").save_pretrained(str(saved))
    assert not (saved / centring.MEANS_FILE).exists()


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("joined") / "saved"
    valuembed.load(folder, OWN).save_pretrained(str(path))
    return path


def test_another_method_of_a_saved_folder_is_centred_anew(saved, folder):
    recipe = replace(METHODS["wva"], layers=[1], centring="general")
    assert_close(valuembed.load(saved, recipe).encode(TEXTS), valuembed.load(folder, recipe).encode(TEXTS))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "has no centring.safetensors, with the mean that its recipe takes away; save it"),
        (lambda file: file.write_bytes(b"cut"), "centring.safetensors is damaged: "),
        (
            lambda file: centring.save_file({"2": torch.zeros(5)}, file),
            "centring.safetensors is damaged: a mean of shape [16] is needed, and it holds [5]",
        ),
        (
            lambda file: centring.save_file({"0": torch.zeros(16)}, file),
            "centring.safetensors is damaged: a mean of shape [16] is needed, and it holds none",
        ),
    ],
    ids=["missing", "cut", "width", "other part"],
)
def test_a_saved_folder_without_its_means_is_refused(damage, message, saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    damage(copy / centring.MEANS_FILE)
    with pytest.raises(CheckpointError) as caught:
        valuembed.load(copy)
    assert message in str(caught.value)
    assert str(copy) in str(caught.value)


def test_means_are_kept_on_disk_and_taken_from_there(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path))
    read = []
    real = centring.read_means

    def counted(reader, parts):
        read.append(len(parts))
        return real(reader, parts)

    monkeypatch.setattr(centring, "read_means", counted)
    first = valuembed.load(folder, OWN).encode(TEXTS)
    (kept,) = (tmp_path / "means").iterdir()
    assert_close(valuembed.load(folder, OWN).encode(TEXTS), first)
    assert read == [1, 0]
    # Another precision has other means; a file that is cut is made anew.
    valuembed.load(folder, OWN, dtype="bfloat16")
    kept.write_bytes(b"cut")
    assert_close(valuembed.load(folder, OWN).encode(TEXTS), first)
    assert read == [1, 0, 1, 1]
    assert len(list((tmp_path / "means").iterdir())) == 2


def test_nothing_is_kept_where_the_disk_does_not_allow_it(folder, tmp_path, monkeypatch):
    (tmp_path / "means").write_text("in the way")
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path))
    assert valuembed.load(folder, OWN).encode(TEXTS[:1]).shape == (1, valuembed.load(folder, OWN).reader.plan.width)


def test_a_plan_without_its_mean_is_not_read(folder):
    reader = valuembed.load(folder, "va").reader
    plan = replace(reader.plan, recipe=replace(reader.recipe, centring="general", method="mine"))
    with pytest.raises(ReadingError) as caught:
        reader.read(reader.features(reader.tokenize_texts(TEXTS, None, None)), [plan])
    assert str(caught.value) == "method 'mine' takes a mean away, which this decoder was not read for"


def test_general_sentences_are_many_and_varied():
    sentences = centring._GENERAL.read_text(encoding="utf-8").splitlines()
    assert len(set(sentences)) == len(sentences) == 480
    assert all(sentence == sentence.strip() for sentence in sentences)
    assert min(len(sentence.split()) for sentence in sentences) >= 3
    assert max(len(sentence.split()) for sentence in sentences) <= 40


def test_info_tells_what_a_text_costs(folder):
    found = valuembed.info(folder, "joined")
    assert (found.sequences, found.copies) == (2, 3)
    # Both parts of Echo feed the same.
    # 'This sentence : "" means in one word:"' and 'Rewrite the sentence: , rewritten sentence: '
    assert found.template_characters == 38 + 44
    assert found.width == valuembed.load(folder, "joined").get_embedding_dimension()
    assert valuembed.info(folder, "va").sequences == 1


def test_explained_is_the_first_part_that_has_weights(folder):
    joined = valuembed.load(folder, "joined")
    found = valuembed.models.explain(joined, TEXTS[0])
    alone = valuembed.models.explain(valuembed.load(folder, "aligned_wva"), TEXTS[0])
    assert len(found.sequences) == 1
    np.testing.assert_allclose(found.sequences[0].weights, alone.sequences[0].weights, atol=1e-6)


def test_layers_are_chosen_of_a_part_by_itself(folder):
    with pytest.raises(RecipeError) as caught:
        valuembed.models.inspect_checkpoint(folder, "joined")
    assert str(caught.value) == (
        "method 'joined' joins 3 parts, each with layers of its own; look at one by itself: name its method, or a "
        "recipe file without 'joined'"
    )


def test_where_code_of_the_checkpoints_own_runs_nothing_is_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VALUEMBED_CACHE", str(tmp_path))
    reader = valuembed.load(folder, "va").reader
    checkpoint = replace(locate(folder), trust_remote_code=True)
    assert centring._places(reader, [reader.recipe], checkpoint) == {}
