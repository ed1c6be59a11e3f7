"""The tiny models and tokenizers are what their names say; every other test builds on that."""

from __future__ import annotations

import json

import pytest
import torch
from once import EVERY_FAMILY
from safetensors.torch import load_file
from saved_models import assert_close, assert_same_weights
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from valuembed.errors import UnsupportedModelError
from valuembed.testing import (
    HYBRIDS,
    TOKENIZERS,
    tiny_causal_lm,
    tiny_checkpoint,
    tiny_config,
    tiny_decoder,
    tiny_tokenizer,
)

pytestmark = pytest.mark.slow

# Families whose query heads all have a value head of their own, and the one that has a single value head for all.
MLA = {"deepseek_v2", "deepseek_v3", "mistral4", "youtu"}
UNGROUPED = {"biogpt", "gpt2", "gpt_neox", "opt", "persimmon", *MLA}
ONE_HEAD = {"gpt_bigcode"}
TEXT = "The harbour, naïve café 漢字 🙂 — two  spaces\nand a line."


def forward(model: torch.nn.Module, tokens: int = 12) -> torch.Tensor:
    ids = torch.arange(3, 3 + tokens)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state


# Models


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_every_architecture_runs_and_depends_on_the_seed_alone(architecture):
    one, same, other = (tiny_decoder(architecture, seed=seed) for seed in (0, 0, 1))
    assert not one.training
    assert one.config.model_type == architecture
    out = forward(one)
    assert out.shape == (1, 12, 32)
    assert out.isfinite().all()
    assert torch.equal(out, forward(same))
    assert (out - forward(other)).abs().max() > 0.1


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_no_weight_is_trivial(architecture):
    for name, weight in tiny_decoder(architecture).named_parameters():
        assert weight.isfinite().all(), name
        assert not (weight == 0).any(), name
        assert not (weight == 1).any(), name


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_sizes(architecture):
    config = tiny_config(architecture)
    groups = 1 if architecture in ONE_HEAD else getattr(config, "num_key_value_heads", config.num_attention_heads)
    expected = 4 if architecture in UNGROUPED else 1 if architecture in ONE_HEAD else 2
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (4, 32, 512)
    assert (config.num_attention_heads, groups) == (4, expected)


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
def test_the_number_of_layers_can_be_overridden_alone(architecture):
    model = tiny_decoder(architecture, num_hidden_layers=3)
    assert model.config.num_hidden_layers == 3
    assert forward(model).isfinite().all()


@pytest.mark.parametrize("architecture", sorted(HYBRIDS - {"falcon_h1"}))
def test_hybrids_have_two_attention_layers_and_two_others(architecture):
    # falcon_h1 has both side by side in every layer.
    names = [name for name, _ in tiny_decoder(architecture).named_modules()]
    assert [layer for layer in range(4) if f"layers.{layer}.self_attn.v_proj" in names and layer % 2] == [1, 3]
    kinds = tiny_config(architecture).layer_types
    assert [kind == "full_attention" for kind in kinds] == [False, True, False, True]


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss", "ministral", "qwen2", "smollm3", "cohere2", "exaone4"])
def test_windows_are_short_and_mixed_with_full_layers(architecture):
    config = tiny_config(architecture)
    assert config.sliding_window == 8
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2


def test_dtype_and_attention_are_passed_on():
    model = tiny_decoder("llama", dtype=torch.bfloat16, attn_implementation="eager")
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    exact = tiny_decoder("llama")
    assert torch.equal(model.norm.weight, exact.norm.weight.to(torch.bfloat16))


def test_building_leaves_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    tiny_decoder("llama")
    assert torch.equal(before, torch.random.get_rng_state())


def test_overrides_may_use_the_common_names():
    assert tiny_config("gpt2", num_hidden_layers=2).n_layer == 2
    # A config completes its RoPE settings in place, and the table must not change by it.
    assert tiny_config("apertus").rope_parameters == tiny_config("apertus").rope_parameters


def test_unknown_architecture():
    with pytest.raises(UnsupportedModelError, match=r"'lama'; known: .*gpt_oss, .*llama, .*qwen3"):
        tiny_decoder("lama")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "llama4_text", "opt", "gpt_neox", "biogpt"])
def test_the_lm_head_takes_nothing_from_the_decoder(architecture):
    ids = torch.arange(3, 15)[None]
    whole = tiny_causal_lm(architecture, seed=3)
    with torch.no_grad():
        hidden = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(hidden, forward(tiny_decoder(architecture, seed=3)))


# Tokenizers


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_text_comes_back(kind):
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer(TEXT).input_ids
    assert len(tokenizer) <= 512
    assert max(ids) < 512
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    assert set(tokenizer(TEXT)) == {"input_ids", "attention_mask"}
    assert tiny_tokenizer(kind)(TEXT).input_ids == ids


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_offsets_cover_the_text(kind):
    encoded = tiny_tokenizer(kind)(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    covered = {place for first, end in encoded["offset_mapping"] for place in range(first, end)}
    assert covered == set(range(len(TEXT)))


@pytest.mark.parametrize(
    ("kind", "bos", "eos"),
    [
        ("byte_level", False, False),
        ("byte_level_bos", True, False),
        ("metaspace_bos", True, False),
        ("metaspace_first", False, False),
        ("adds_eos", False, True),
        ("bos_eos", True, True),
        ("no_pad", False, False),
        ("chat", False, False),
    ],
)
def test_what_is_added_around_a_text(kind, bos, eos):
    tokenizer = tiny_tokenizer(kind)
    plain = tokenizer("The mill", add_special_tokens=False).input_ids
    before = [tokenizer.bos_token_id] if bos else []
    after = [tokenizer.eos_token_id] if eos else []
    assert tokenizer("The mill").input_ids == before + plain + after
    assert (tokenizer.bos_token_id is not None) == bos
    assert tokenizer.eos_token_id is not None
    assert (tokenizer.pad_token_id is None) == (kind == "no_pad")
    assert (tokenizer.chat_template is not None) == (kind == "chat")


def test_spaces_before_words():
    # "always" puts a space before the text; after a special token too, where "first" does not.
    assert tiny_tokenizer("metaspace_bos").tokenize("The bread")[0] == "▁The"
    assert tiny_tokenizer("metaspace_first").tokenize("The bread")[0] == "▁The"
    assert tiny_tokenizer("metaspace_bos").tokenize("</s>The bread")[1].startswith("▁")
    assert not tiny_tokenizer("metaspace_first").tokenize("</s>The bread")[1].startswith("▁")
    assert not tiny_tokenizer("byte_level").tokenize("The bread")[0].startswith("Ġ")


def test_the_chat_template_is_chatml():
    tokenizer = tiny_tokenizer("chat")
    message = [{"role": "user", "content": "Bread?"}]
    rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(rendered).input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>") != tokenizer.unk_token_id
    assert tokenizer.eos_token == "<|im_end|>"
    assert ids.count(tokenizer.eos_token_id) == 1


def test_unknown_tokenizer():
    with pytest.raises(UnsupportedModelError, match=r"'bytes'; known: byte_level, .*chat"):
        tiny_tokenizer("bytes")


# Checkpoints


@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt_oss", "mixtral", "olmoe", "jamba", "llama4_text"])
@pytest.mark.parametrize("shards", [None, 3])
def test_a_checkpoint_gives_the_same_decoder(tmp_path, architecture, shards):
    folder = tiny_checkpoint(tmp_path / "model", architecture, shards=shards)
    model = AutoModel.from_pretrained(folder, local_files_only=True)
    config = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.config.eos_token_id == config.eos_token_id
    made = tiny_decoder(architecture)
    assert_same_weights(model, made)
    assert_close(forward(model), forward(made))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_checkpoint_holds_its_tokenizer(tmp_path, kind):
    folder = tiny_checkpoint(tmp_path, tokenizer=kind, num_hidden_layers=1)
    loaded, made = AutoTokenizer.from_pretrained(folder), tiny_tokenizer(kind)
    assert loaded(TEXT).input_ids == made(TEXT).input_ids
    assert loaded.padding_side == made.padding_side
    assert loaded.chat_template == made.chat_template
    assert loaded.pad_token_id == made.pad_token_id == AutoModel.from_pretrained(folder).config.pad_token_id


def test_shards_and_index(tmp_path):
    folder = tiny_checkpoint(tmp_path, shards=5, dtype=torch.bfloat16)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-00005.safetensors" for number in range(1, 6)]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {name: file for file in files for name in load_file(folder / file)}
    assert held == index["weight_map"]
    assert "lm_head.weight" in held
    assert all(tensor.dtype == torch.bfloat16 for file in files for tensor in load_file(folder / file).values())
    head = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    assert torch.equal(head, tiny_causal_lm("qwen3", dtype=torch.bfloat16).lm_head.weight)


def test_without_lm_head(tmp_path):
    folder = tiny_checkpoint(tmp_path, lm_head=False, num_hidden_layers=1)
    assert not [name for name in load_file(folder / "model.safetensors") if "lm_head" in name]
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3Model"]


def test_too_many_shards(tmp_path):
    with pytest.raises(ValueError, match=r"shards=100: legal are 1 to 1\d"):
        tiny_checkpoint(tmp_path, shards=100, num_hidden_layers=1)
