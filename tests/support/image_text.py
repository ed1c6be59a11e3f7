"""Settings of tiny models that read images beside text."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}

# Family -> settings of its text part, of its vision part and of the whole.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {
            "model_type": "gemma3_text",
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        {"model_type": "siglip_vision_model"},
        {"mm_tokens_per_image": 4},
    ),
    "idefics3": ({"model_type": "llama"}, {}, {}),
    "llama4": (
        {"model_type": "llama4_text", "intermediate_size_mlp": 48, "num_local_experts": 2},
        {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32},
        {},
    ),
    "llava": ({"model_type": "llama"}, {"model_type": "clip_vision_model"}, {}),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral"}, {}),
    "qwen2_5_vl": (MROPE, QWEN_VISION, {}),
    "qwen3_5": (
        {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
        QWEN_VISION,
        {},
    ),
    "qwen3_vl": (MROPE, {**QWEN_VISION, "deepstack_visual_indexes": [0]}, {}),
}
