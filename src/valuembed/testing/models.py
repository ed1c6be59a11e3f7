"""Tiny random decoders, tokenizers and checkpoints, made in memory: for our tests and for yours.

Everything is a function of its arguments, needs no network and takes a fraction of a second::

    from valuembed.testing import tiny_checkpoint

    folder = tiny_checkpoint(tmp_path / "model", "qwen3", tokenizer="chat", shards=3)

The weights are random on purpose: biases, norm weights, attention sinks and per-head scalars are all drawn, and large
enough that forgetting one of them shows in the result.
"""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from valuembed._utils.torch_settings import building
from valuembed.errors import UnsupportedModelError
from valuembed.testing.families import FAMILIES, HYBRIDS
from valuembed.testing.tokenizers import TOKENIZERS, tiny_tokenizer

__all__ = [
    "ARCHITECTURES",
    "HYBRIDS",
    "TOKENIZERS",
    "tiny_causal_lm",
    "tiny_checkpoint",
    "tiny_config",
    "tiny_decoder",
    "tiny_tokenizer",
]

ARCHITECTURES: tuple[str, ...] = tuple(sorted(FAMILIES))
"""Every decoder family (``model_type`` of transformers) a tiny model can be built for."""


def tiny_config(architecture: str, **overrides: Any) -> PreTrainedConfig:
    """A config with 4 layers, m = 32, h = 4, g = 2 (where the family knows groups), d = 8 (MLA: 12) and 512 tokens.

    Families with sliding or chunked windows get windows of 8 tokens, beside full layers where the family mixes them.

    Args:
        architecture: one of `ARCHITECTURES`.
        overrides: settings of the family's own config. Lists with an entry per layer follow ``num_hidden_layers``.

    Raises:
        UnsupportedModelError: the family is not in `ARCHITECTURES`.
    """
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"no tiny model for the architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}"
        )
    config_class: Any = CONFIG_MAPPING[architecture]
    # Families name their sizes differently (gpt2: n_layer); overrides may use either name.
    own_names = config_class.attribute_map
    given = {own_names.get(key, key): value for key, value in overrides.items()}
    settings = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Copied, because a config completes its RoPE settings in place.
    settings |= copy.deepcopy({**FAMILIES[architecture], **given})
    layers = settings[own_names.get("num_hidden_layers", "num_hidden_layers")]
    config: PreTrainedConfig = config_class(
        **{key: value(layers) if callable(value) else value for key, value in settings.items()}
    )
    return config


def tiny_decoder(
    architecture: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """A random decoder without LM head, in eval mode; the same for the same arguments.

    Its weights are those of `tiny_causal_lm` at the same seed.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the weights.
        dtype: of the weights, which are drawn in float32 and then rounded.
        attn_implementation: as in transformers; ``None`` is its own choice.
        overrides: settings of the config, as in `tiny_config`.

    Raises:
        UnsupportedModelError: the family is not in `ARCHITECTURES`.
    """
    return _build(AutoModel, architecture, seed, dtype, attn_implementation, overrides)


def tiny_causal_lm(
    architecture: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """`tiny_decoder` with its LM head, as checkpoints on a hub have it. Arguments and errors are the same."""
    return _build(AutoModelForCausalLM, architecture, seed, dtype, attn_implementation, overrides)


def tiny_checkpoint(
    folder: str | Path,
    architecture: str = "qwen3",
    *,
    tokenizer: str = "byte_level",
    seed: int = 0,
    shards: int | None = None,
    lm_head: bool = True,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """A folder as it comes from a hub: config, safetensors weights, tokenizer.

    Args:
        folder: made if it does not exist.
        architecture: one of `ARCHITECTURES`.
        tokenizer: one of `TOKENIZERS`; the config's token ids are the tokenizer's.
        seed: of the weights.
        shards: number of weight files, with an index; ``None`` is one file without.
        lm_head: save the model with its LM head, as `tiny_causal_lm` builds it.
        dtype: of the saved weights.
        overrides: settings of the config, as in `tiny_config`.

    Returns:
        The folder.

    Raises:
        UnsupportedModelError: the family or the tokenizer is unknown.
        ValueError: more shards than tensors, or less than one.
    """
    folder = Path(folder)
    words = tiny_tokenizer(tokenizer)
    token_ids = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    # A config wants some BOS even where the tokenizer has none; checkpoints then repeat the EOS.
    token_ids["bos_token_id"] = words.eos_token_id if words.bos_token_id is None else words.bos_token_id
    build = tiny_causal_lm if lm_head else tiny_decoder
    model = build(architecture, seed=seed, dtype=dtype, **{**token_ids, **overrides})
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    if shards is not None:
        _split_weights(folder, shards)
    return folder


@building()
def _build(
    auto_class: Any,
    architecture: str,
    seed: int,
    dtype: torch.dtype,
    attn_implementation: str | None,
    overrides: dict[str, Any],
) -> PreTrainedModel:
    config = tiny_config(architecture, **overrides)
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class.from_config(config, attn_implementation=attn_implementation)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decoder_class: Any = MODEL_MAPPING[type(config)]
    path = next(name for name, module in model.named_modules() if isinstance(module, decoder_class))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *_drawn_buffers(model)]:
            # A generator per name, so that the LM head takes no numbers away from the decoder's weights.
            own_name = name.removeprefix(path).lstrip(".")
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {own_name}".encode()))
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            center, scale = _law(name, tensor, id(tensor) in embeddings)
            tensor.copy_(center + scale * noise)
    model.config.dtype = dtype
    nn.Module.to(model, dtype)
    model.train(False)
    return model


def _law(name: str, stock: torch.Tensor, embedding: bool) -> tuple[torch.Tensor | float, float]:
    """Mean and standard deviation of a tensor's random entries, given what transformers put there."""
    if name.endswith("sinks"):
        return 0.0, 1.0
    if name.endswith("bias"):
        return 0.0, 0.1
    if name.endswith("A_log") or stock.ndim < 2 or bool((stock == 1).all()):
        # Norm weights, decay rates and learned scalars: near what the family starts from, but never exactly that.
        return stock.clone(), 0.2
    if embedding or "conv" in name:
        return 0.0, 0.5
    return 0.0, 0.15


def _drawn_buffers(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """The buffers that are learned (a router's correction); the others hold constants such as RoPE frequencies."""
    return [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("correction_bias")]


def _split_weights(folder: Path, shards: int) -> None:
    """Replace the one weight file by `shards` files of about equally many tensors, and their index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"shards={shards!r}: legal are 1 to {len(tensors)}, the number of tensors")
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    whole.unlink()
