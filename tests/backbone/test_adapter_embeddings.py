"""Adapters whose base has to be resized first, made by peft as people make them: compared with peft's own model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import valuembed
from valuembed.backbone.checkpoints.location import BUNDLED, locate
from valuembed.errors import CheckpointError, VocabularyWarning
from valuembed.testing import tiny_checkpoint

peft = pytest.importorskip("peft", reason="peft is not installed")
# peft asks transformers for what that will rename, and tells of each way in which it saves the matrix.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]

ROWS, NEW = 512, 3
MAPS = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
TOKENS = [ROWS + number for number in range(NEW)]
TEXT = "a <new 0> cat <new 2>"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "base", "qwen3")


def made(base, folder, config, size=ROWS + NEW, **options):
    """An adapter on a resized base; the model that it was trained as, and the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<fill {number}>" for number in range(ROWS - len(tokenizer))])
    tokenizer.add_tokens([f"<new {number}>" for number in range(max(0, size - ROWS))])
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(size, mean_resizing=False)
    trained = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    trained.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return trained.eval(), tokenizer


def expected(trained, tokenizer, text):
    """The mean of the last hidden states, ``[m]``, by peft's own model."""
    with torch.no_grad():
        out = trained(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    return out.hidden_states[-1][0].mean(dim=0).numpy()


def loaded(folder):
    return valuembed.load(folder, "hidden_mean", template="none", normalize=False, device="cpu")


CONFIGS = {
    "matrix beside the maps": (peft.LoraConfig(**MAPS), {"save_embedding_layers": True}),
    "matrix to save": (peft.LoraConfig(**MAPS, modules_to_save=["embed_tokens"]), {}),
    "matrix and head to save": (peft.LoraConfig(**MAPS, modules_to_save=["embed_tokens", "lm_head"]), {}),
    "matrix adapted": (peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]), {}),
    "single rows": (peft.LoraConfig(**MAPS, trainable_token_indices=TOKENS), {"save_embedding_layers": False}),
    "single rows and matrix": (
        peft.LoraConfig(**MAPS, trainable_token_indices=TOKENS),
        {"save_embedding_layers": True},
    ),
    "rows alone": (
        peft.TrainableTokensConfig(token_indices=TOKENS, target_modules=["embed_tokens"]),
        {"save_embedding_layers": False},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_matrix_is_resized_as_the_adapter_says(base, tmp_path, name):
    config, options = CONFIGS[name]
    trained, tokenizer = made(base, tmp_path / "adapter", config, **options)
    model = loaded(tmp_path / "adapter")
    vector = model.encode(TEXT)
    np.testing.assert_allclose(vector, expected(trained, tokenizer, TEXT), atol=1e-6)
    assert valuembed.info(tmp_path / "adapter").tokens_without_embedding is None
    model.save(str(tmp_path / "saved"))
    np.testing.assert_allclose(valuembed.load(tmp_path / "saved", device="cpu").encode(TEXT), vector, atol=1e-6)


def test_a_smaller_matrix(base, tmp_path):
    trained, _ = made(base, tmp_path, peft.LoraConfig(**MAPS), size=ROWS - 12, save_embedding_layers=True)
    with pytest.warns(VocabularyWarning, match="knows 12 ids beyond the 500 rows of the embedding matrix"):
        model = loaded(tmp_path)
    plain = AutoTokenizer.from_pretrained(base)
    np.testing.assert_allclose(model.encode("a cat"), expected(trained, plain, "a cat"), atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
            "was trained on an embedding matrix of 515 rows, and its base has 512; it holds none: where it was",
        ),
        (
            peft.LoraConfig(**MAPS, trainable_token_indices=[3, ROWS + 1]),
            "matrix of at least 514 rows, and its base has 512; of the others it lacks 1, the first that of token",
        ),
    ],
)
def test_rows_that_nobody_holds_are_an_error_that_says_what_to_do(base, tmp_path, config, message):
    made(base, tmp_path, config, save_embedding_layers=False)
    with pytest.raises(CheckpointError) as raised:
        loaded(tmp_path)
    assert message in str(raised.value)
    assert "save_embedding_layers=True, or merge it into its base" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_larger_tokenizer_alone_is_told(base, tmp_path):
    made(base, tmp_path, peft.LoraConfig(**MAPS), save_embedding_layers=False)
    with pytest.warns(
        VocabularyWarning, match=r"knows 3 ids beyond the 512 rows of the embedding matrix: '<new 0>' \(id 5"
    ):
        model = loaded(tmp_path)
    assert np.isfinite(model.encode("a cat")).all()


def test_an_adapter_that_is_saved_without_its_base_keeps_the_matrix(tmp_path):
    where = locate(BUNDLED).location
    model = AutoModelForCausalLM.from_pretrained(where)
    tokenizer = AutoTokenizer.from_pretrained(where)
    tokenizer.add_tokens(["<new 0>"])
    model.resize_token_embeddings(model.config.vocab_size + 1, mean_resizing=False)
    trained = peft.get_peft_model(model, peft.LoraConfig(**MAPS))
    trained.peft_config["default"].base_model_name_or_path = BUNDLED
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = loaded(tmp_path / "adapter")
    assert model.reader.origin.fetchable
    vector = model.encode("a <new 0> cat")
    model.save(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    np.testing.assert_allclose(
        valuembed.load(tmp_path / "saved", device="cpu").encode("a <new 0> cat"), vector, atol=1e-6
    )
