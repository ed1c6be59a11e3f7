"""One row per decoder family: the settings of a decoder small enough for a unit test.

The rows are what `models.py` builds from. They lean towards what goes wrong silently: grouped value heads,
windows shorter than a test's texts, biases where a family may have them, values of another width than the keys (MLA),
and at least two attention layers in every hybrid.

A setting that holds one entry per layer is written as a function of the number of layers, so that
``num_hidden_layers`` can be overridden alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PerLayer = Callable[[int], list[Any]]

SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 8
MAX_POSITIONS = 256


def _cycle(*kinds: str) -> PerLayer:
    """The layer kinds repeated over all layers, the first layer being the first kind."""
    return lambda layers: [kinds[index % len(kinds)] for index in range(layers)]


def _odd(layers: int) -> list[int]:
    return list(range(1, layers, 2))


def _even_flags(layers: int) -> list[int]:
    return [1 - index % 2 for index in range(layers)]


_MIXED: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": _cycle(SLIDING, FULL)}
_WINDOW: dict[str, Any] = {"sliding_window": WINDOW}

_PLAIN: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "num_key_value_heads": 2}
_HEAD: dict[str, Any] = {**_GROUPED, "head_dim": 8}
_GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": MAX_POSITIONS}
_TOP2: dict[str, Any] = {"num_experts_per_tok": 2}
_EXPERTS: dict[str, Any] = {**_TOP2, "num_experts": 4, "moe_intermediate_size": 16}
_LOCAL_EXPERTS: dict[str, Any] = {**_TOP2, "num_local_experts": 4}
_ROUTED: dict[str, Any] = {
    **_TOP2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MLA: dict[str, Any] = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
_LINEAR: dict[str, Any] = {
    "layer_types": _cycle("linear_attention", FULL),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
_GATED_ROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
}
_YARN: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
    }
}
_SCALED_YARN: dict[str, Any] = {
    # Queries grow with their position, from the 64th on.
    "rope_parameters": {**_YARN["rope_parameters"], "llama_4_scaling_beta": 0.1}
}
_LLAMA3_ROPE: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "afmoe": {**_HEAD, **_EXPERTS, **_MIXED, "num_shared_experts": 1, "num_dense_layers": 1},
    "apertus": {**_GROUPED, **_LLAMA3_ROPE},
    "arcee": _HEAD,
    "bamba": {**_GROUPED, **_MAMBA, "attn_layer_indices": _odd},
    "biogpt": _PLAIN,
    "bitnet": _GROUPED,
    "cohere": {**_GROUPED, "use_qk_norm": True},
    "cohere2": {**_GROUPED, **_MIXED},
    "cwm": {**_HEAD, **_MIXED, **_LLAMA3_ROPE},
    "deepseek_v2": {**_MLA, **_ROUTED},
    "deepseek_v3": {**_MLA, **_ROUTED},
    "doge": {**_GROUPED, "keep_window_size": WINDOW, "attention_bias": True},
    "dots1": {**_GROUPED, **_ROUTED, **_MIXED},
    "ernie4_5": {**_HEAD, "use_bias": True},
    "ernie4_5_moe": {
        **_GROUPED,
        "use_bias": True,
        "moe_intermediate_size": 16,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
    "exaone4": {**_GROUPED, **_MIXED},
    "exaone_moe": {**_GROUPED, **_EXPERTS, **_MIXED, "num_shared_experts": 1},
    "falcon_h1": {
        **_GROUPED,
        **_MAMBA,
        "mamba_d_ssm": 64,
        "key_multiplier": 1.25,
        "attention_in_multiplier": 1.5,
        "attention_out_multiplier": 0.75,
    },
    "flex_olmo": {**_GROUPED, **_TOP2, "num_experts": 4},
    "gemma": _HEAD,
    "gemma2": {**_HEAD, **_MIXED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5},
    "gemma3_text": {**_HEAD, **_MIXED, "query_pre_attn_scalar": 8},
    "glm": {**_HEAD, "attention_bias": True},
    "glm4": {**_HEAD, "attention_bias": True},
    "glm4_moe": {**_GROUPED, **_ROUTED, "use_qk_norm": True, "attention_bias": True},
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "gpt_neox": _PLAIN,
    "gpt_oss": {**_HEAD, **_LOCAL_EXPERTS, **_MIXED, **_YARN},
    "granite": {**_GROUPED, "attention_multiplier": 0.25, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {**_GROUPED, **_LOCAL_EXPERTS, "attention_multiplier": 0.25},
    "granitemoehybrid": {
        **_GROUPED,
        **_LOCAL_EXPERTS,
        **_MAMBA,
        "shared_intermediate_size": 16,
        "attention_multiplier": 0.25,
        "layer_types": _cycle("linear_attention", FULL),
    },
    "granitemoeshared": {
        **_GROUPED,
        **_LOCAL_EXPERTS,
        "shared_intermediate_size": 16,
        "attention_multiplier": 0.25,
    },
    "helium": _HEAD,
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": {**_HEAD, "num_experts": 4, "moe_topk": 2},
    "jamba": {
        **_GROUPED,
        **_TOP2,
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_offset": 0,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "lfm2": {**_GROUPED, "layer_types": _cycle("conv", FULL), "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_GROUPED, **_EXPERTS, "layer_types": _cycle("conv", FULL), "num_dense_layers": 1},
    "llama": {**_HEAD, "attention_bias": True},
    "llama4_text": {
        **_HEAD,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": WINDOW,
        "layer_types": _cycle("chunked_attention", FULL),
        "no_rope_layers": _even_flags,
        "floor_scale": 4,
    },
    "minimax": {**_HEAD, **_LOCAL_EXPERTS, "layer_types": _cycle("linear_attention", FULL), "block_size": 16},
    "minimax_m2": {**_HEAD, **_LOCAL_EXPERTS},
    "ministral": {**_HEAD, **_MIXED},
    "ministral3": {**_HEAD, **_WINDOW, **_SCALED_YARN},
    "mistral": {**_HEAD, **_WINDOW},
    "mistral4": {**_MLA, **_ROUTED},
    "mixtral": {**_HEAD, **_LOCAL_EXPERTS, **_WINDOW},
    "nanochat": _GROUPED,
    "nemotron": {**_HEAD, "attention_bias": True},
    "olmo": {**_GROUPED, "clip_qkv": 0.5},
    "olmo2": {**_GROUPED, "attention_bias": True},
    "olmo3": {**_GROUPED, **_MIXED},
    "olmo_hybrid": {**_GROUPED, **_LINEAR},
    "olmoe": {**_GROUPED, **_TOP2, "num_experts": 4, "clip_qkv": 0.5},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": MAX_POSITIONS,
    },
    "persimmon": _PLAIN,
    "phi": {**_GROUPED, "qk_layernorm": True},
    "phi3": {**_GROUPED, **_WINDOW, "original_max_position_embeddings": MAX_POSITIONS},
    "phimoe": {**_GROUPED, **_LOCAL_EXPERTS, **_WINDOW, "attention_bias": True},
    "qwen2": {**_GROUPED, **_MIXED, "use_sliding_window": True},
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": _HEAD,
    "qwen3_5_moe_text": {
        **_HEAD,
        **_LINEAR,
        **_GATED_ROPE,
        **_EXPERTS,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_5_text": {**_HEAD, **_LINEAR, **_GATED_ROPE},
    "qwen3_moe": {**_GROUPED, **_EXPERTS},
    "qwen3_next": {**_HEAD, **_LINEAR, **_GATED_ROPE, **_EXPERTS, "shared_expert_intermediate_size": 16},
    "seed_oss": {**_HEAD, "attention_bias": True, "attention_out_bias": True},
    "smollm3": {**_GROUPED, **_MIXED, "use_sliding_window": True, "attention_bias": True},
    "solar_open": {**_HEAD, **_ROUTED},
    "stablelm": {**_GROUPED, "use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": {**_GROUPED, **_WINDOW},
    "vaultgemma": {**_HEAD, **_MIXED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.5},
    "youtu": _MLA,
}

HYBRIDS: frozenset[str] = frozenset(
    {
        "bamba",
        "falcon_h1",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "lfm2_moe",
        "minimax",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_next",
    }
)
"""Families with recurrent, linear-attention or convolution layers: their state runs on across a row of tokens."""
