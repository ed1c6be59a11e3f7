"""The module: features, steps, templates averaged, and what it refuses."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from valuembed.errors import CheckpointError, InputError, RecipeError, UnsupportedModelError
from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.models.value_transformer import ValueTransformer
from valuembed.testing import tiny_checkpoint

pytestmark = pytest.mark.slow

TEXTS = ["one two three", "a much longer text than the first one, with more words in it", "x", "four five"]


def encoder(folder: Path, method: str = "va", **kwargs: Any) -> ValueEncoder:
    return load(folder, method, **kwargs)


def test_features_are_batch_first_and_padded_on_the_right(folder: Path) -> None:
    features = encoder(folder, "wva").preprocess(TEXTS)
    lengths = features["attention_mask"].sum(dim=1)
    assert {name: tensor.shape[0] for name, tensor in features.items()} == dict.fromkeys(features, 4)
    assert torch.equal(features["attention_mask"], (torch.arange(lengths.max()) < lengths[:, None]).long())
    assert (features["text_span"][:, 0, 0] > 0).all()
    assert (features["text_span"][:, 0, 1] < lengths).all()
    assert not features["truncated"].any()


def test_the_sequences_of_several_templates_stand_one_after_the_other(folder: Path) -> None:
    model = encoder(folder, "meta_eol")
    features = model.preprocess(TEXTS)
    assert features["text_span"].shape == (4, 8, 2)
    for row, text in enumerate(TEXTS):
        sequences = [
            model.tokenizer(template.replace("{text}", text))["input_ids"] for template in model.recipe.template
        ]
        fed = features["input_ids"][row][features["attention_mask"][row].bool()].tolist()
        assert fed == [token for sequence in sequences for token in sequence]
        assert features["sequence_ends"][row].tolist() == list(accumulate(map(len, sequences)))
    assert features["truncated"].shape == (4,)


def test_several_templates_give_the_mean_of_their_raw_vectors(folder: Path) -> None:
    templates = ["{text} means", "so: {text}", "{text}"]
    together = encoder(folder, "aligned_wva", template=templates, normalize=False).encode(TEXTS)
    each = [encoder(folder, "aligned_wva", template=one, normalize=False).encode(TEXTS) for one in templates]
    assert abs(together - sum(each) / 3).max() < 1e-6
    unit = encoder(folder, "aligned_wva", template=templates).encode(TEXTS)
    assert abs(unit - together / (together**2).sum(axis=1, keepdims=True) ** 0.5).max() < 1e-6


@pytest.mark.parametrize("method", ["va", "aligned_wva", "meta_eol", "echo"])
@pytest.mark.parametrize("budget", [1, 40, 10**6])
def test_steps_of_any_size_give_the_same_vectors(folder: Path, method: str, budget: int) -> None:
    model = encoder(folder, method)
    whole = model(model.preprocess(TEXTS))["sentence_embedding"]
    model.reader.executor.tokens_per_step = budget
    assert torch.allclose(model(model.preprocess(TEXTS))["sentence_embedding"], whole, atol=1e-6)


def test_slices_of_the_features_can_be_run_apart(folder: Path) -> None:
    model = encoder(folder, "meta_eol")
    features = model.preprocess(TEXTS)
    whole = model(dict(features))["sentence_embedding"]
    halves = [
        model({name: t[part] for name, t in features.items()})["sentence_embedding"] for part in (slice(2), slice(2, 4))
    ]
    assert torch.allclose(torch.cat(halves), whole, atol=1e-6)


def test_span_all_covers_every_token_fed(folder: Path) -> None:
    from dataclasses import replace

    from valuembed.recipes.methods import METHODS

    everything = encoder(folder, replace(METHODS["va"], span="all"), normalize=False)
    features = everything.preprocess(["one two"])
    without_span = {name: features[name] for name in ("input_ids", "attention_mask")}
    expected = encoder(folder, "va", normalize=False)(without_span)["sentence_embedding"]
    assert torch.allclose(everything(features)["sentence_embedding"], expected)
    text_only = encoder(folder, "va", normalize=False)(everything.preprocess(["one two"]))["sentence_embedding"]
    assert not torch.allclose(text_only, expected, atol=1e-3)


def test_a_chat_template_is_used_only_when_it_is_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "chat", "qwen3", tokenizer="chat")
    plain = encoder(folder)
    assert plain.tokenizer.chat_template
    ids = plain.preprocess(["hello"], prompt="p: ")["input_ids"][0].tolist()
    assert ids == plain.tokenizer("p: hello", add_special_tokens=False)["input_ids"]
    chat = encoder(folder, template="chat")
    rendered = chat.tokenizer.decode(chat.preprocess(["hello"])["input_ids"][0])
    assert rendered.startswith("<|im_start|>user\nhello<|im_end|>")
    assert rendered.rstrip().endswith("<|im_start|>assistant")


def test_max_seq_length_keeps_to_what_the_model_has_learned(tmp_path: Path) -> None:
    model = load(tiny_checkpoint(tmp_path / "gpt2", "gpt2", n_positions=64))
    model.max_seq_length = 32
    assert model.reader.max_tokens == 32
    with pytest.raises(RecipeError, match="max_tokens=100 is more than the 64 positions that gpt2 has learned"):
        model.max_seq_length = 100


def test_a_router_finds_its_modules_in_subfolders(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    parts = [encoder(folder, method).reader for method in ("aligned_va", "aligned_wva")]
    routed = SentenceTransformer(modules=[Router.for_query_document([parts[0]], [parts[1]])], device="cpu")
    expected = routed.encode_query(TEXTS), routed.encode_document(TEXTS)
    routed.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert abs(again.encode_query(TEXTS) - expected[0]).max() < 1e-6
    assert abs(again.encode_document(TEXTS) - expected[1]).max() < 1e-6


def test_max_length_of_the_trainer_cuts_texts_only(folder: Path) -> None:
    model = encoder(folder, "aligned_wva")
    whole = model.preprocess([TEXTS[1]])["input_ids"][0].tolist()
    cut = model.preprocess([TEXTS[1]], max_length=len(whole) - 5)
    assert cut["input_ids"].shape == (1, len(whole) - 5)
    assert cut["truncated"].tolist() == [True]
    assert cut["input_ids"][0].tolist()[-6:] == whole[-6:]
    assert model.max_seq_length == model.reader.max_tokens


def test_what_preprocess_does_not_know_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"preprocess\(\) does not take processing_kwargs"):
        encoder(folder).reader.preprocess(["a"], processing_kwargs={"text": {}})


def test_left_padded_features_are_refused(folder: Path) -> None:
    model = encoder(folder)
    features = {"input_ids": torch.tensor([[3, 4, 5]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(InputError, match="attention_mask pads on the left; this module wants rows padded on the right"):
        model(features)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_other_backends_are_refused_by_name(folder: Path, tmp_path: Path, backend: str) -> None:
    from sentence_transformers import SentenceTransformer

    encoder(folder).save_pretrained(str(tmp_path))
    with pytest.raises(
        UnsupportedModelError, match=f"backend='{backend}' cannot be used: attention values are read while"
    ):
        SentenceTransformer(str(tmp_path), trust_remote_code=True, backend=backend)
    with pytest.raises(RecipeError, match=f"model_kwargs: backend='{backend}' is not possible"):
        load(folder, model_kwargs={"backend": backend})


def test_only_its_own_folders_load_as_a_module(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no valuembed_config\.json: it was not saved by valuembed"):
        ValueTransformer.load(str(folder))


def test_pickled_weights_are_never_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="safe_serialization=False would write pickled weights"):
        encoder(folder).save_pretrained(str(tmp_path / "out"), safe_serialization=False)


@pytest.mark.parametrize(
    ("given", "message"), [(0, "max_tokens=0 has to be at least 1"), (-3, "max_tokens=-3 has to be")]
)
def test_a_limit_below_one_token_is_refused(folder: Path, given: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(folder, max_tokens=given)


def test_learned_positions_limit_what_can_be_fed(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "gpt2", "gpt2", n_positions=64)
    assert load(folder).max_seq_length == 64
    with pytest.raises(RecipeError, match="max_tokens=65 is more than the 64 positions that gpt2 has learned"):
        load(folder, max_tokens=65)


@pytest.mark.parametrize("template", ["auto", ["{text} means", "so: {text}"]])
def test_the_trainer_takes_one_template_or_several(folder: Path, tmp_path: Path, template: Any) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = encoder(folder, "va", template=template, device="cpu")
    before = model.encode(TEXTS)
    pairs = Dataset.from_dict({"anchor": TEXTS, "positive": TEXTS[::-1]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=0.1, report_to="none", use_cpu=True, save_strategy="no"
    )
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=2)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    assert abs(model.encode(TEXTS) - before).max() > 1e-3
    model.save_pretrained(str(tmp_path / "trained"))
    card = (tmp_path / "trained" / "README.md").read_text()
    assert "and then fine-tuned" in card
    assert "training-free" not in card
