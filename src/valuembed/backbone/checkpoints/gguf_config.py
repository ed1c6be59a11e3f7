"""A GGUF file's settings as the configuration of a decoder, and which families are read at all.

Each family is written by llama.cpp in its own way; what is not listed here is refused by its name, since numbers that
are read in another way than they were written give vectors without an error.

Source: llama.cpp, ``convert_hf_to_gguf.py`` and ``gguf-py/gguf/constants.py``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

from valuembed._utils.text import counted, printable, shortened
from valuembed.backbone.checkpoints.gguf_file import GgufFile
from valuembed.backbone.checkpoints.gguf_types import TYPES, gguf_type_name
from valuembed.backbone.checkpoints.location import Checkpoint, first_line
from valuembed.errors import CheckpointError, UnsupportedModelError

GGUF_HEAD, GGUF_EMBEDDINGS = "output.weight", "token_embd.weight"
"""llama.cpp's names of the language model head, and of the input embeddings, which a tied head is."""
_ROPE_FACTORS = "rope_freqs.weight"

_ENCODERS = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"}
    | {"gemma-embedding", "t5", "t5encoder", "umt5", "llama-embed"}
)
_OTHERS = {
    **dict.fromkeys(("clip", "mmproj"), "it holds an image encoder alone; give the file of the language model"),
    **dict.fromkeys(
        ("flux", "sd1", "sd3", "sdxl", "sd", "wan", "ltxv", "hyvid", "aura", "lumina2", "qwen_image", "cosmos", "pig"),
        "it makes images or films; give the file of a language model",
    ),
    **dict.fromkeys(("whisper", "wavtokenizer-dec"), "it is made for speech; give the file of a language model"),
    **dict.fromkeys(
        ("deepseek2", "minicpm3", "plm", "kimi-linear", "glm-dsa"),
        "its attention compresses keys and values together (MLA), so that its values cannot be read",
    ),
    **dict.fromkeys(
        ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), "it has no attention whose values could be read"
    ),
}
"""Files that hold no decoder with values, and what to do."""

_INSTEAD = "give the model that it was made from, as a hub id or a folder with safetensors"

Settings = dict[str, Any]


def read_gguf_config(file: GgufFile) -> Settings:
    """The configuration of the decoder in a file, as transformers calls its fields.

    Args:
        file: what it says of itself.

    Raises:
        UnsupportedModelError: its family, or a choice of it, is none that is read.
        CheckpointError: a needed setting is missing or means nothing.
    """
    family = _FAMILIES.get(file.architecture)
    if family is None:
        raise _refused(file)
    if file.get("expert_count"):
        raise UnsupportedModelError(
            f"model {file.name!r}: its layers have {counted(file.get('expert_count'), 'expert')}, and mixtures of "
            f"experts are not read from GGUF files; {_INSTEAD}"
        )
    embeddings = file.tensors.get(GGUF_EMBEDDINGS)
    if embeddings is None or len(embeddings.shape) != 2:
        raise CheckpointError(
            f"model {file.name!r} holds no {GGUF_EMBEDDINGS}, so it is no whole model (an adapter, a part or an image "
            "encoder); give the file of the model"
        )
    try:
        config = _shared(file, embeddings.shape[0]) | family(file)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, struct.error) as error:
        if isinstance(error, (CheckpointError, UnsupportedModelError)):
            raise
        raise CheckpointError(
            f"model {file.name!r}: its settings are damaged: {first_line(error)}; download it again"
        ) from error
    if embeddings.shape[1] != config["hidden_size"]:
        raise CheckpointError(
            f"model {file.name!r}: {GGUF_EMBEDDINGS} is {embeddings.shape[1]:,} wide and its settings say "
            f"{config['hidden_size']:,}; download it again"
        )
    return config


def _shared(file: GgufFile, rows: int) -> Settings:
    """What every family's configuration says."""
    ids = {name: file.settings.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    known = {name: number for name, number in ids.items() if isinstance(number, int) and number < rows}
    return {
        "vocab_size": rows,
        "hidden_size": _number(file, "embedding_length"),
        "intermediate_size": _number(file, "feed_forward_length"),
        "num_hidden_layers": _number(file, "block_count"),
        "num_attention_heads": _number(file, "attention.head_count"),
        "num_key_value_heads": _number(file, "attention.head_count_kv", file.get("attention.head_count")),
        "rms_norm_eps": _number(file, "attention.layer_norm_rms_epsilon", kind=float),
        "max_position_embeddings": _number(file, "context_length"),
        "tie_word_embeddings": GGUF_HEAD not in file.tensors,
        "bos_token_id": known.get("bos"),
        "eos_token_id": known.get("eos"),
        "pad_token_id": known.get("padding"),
        "dtype": _dtype(file),
    }


def describe_gguf(checkpoint: Checkpoint) -> str | None:
    """How the matrices of a GGUF file are packed, in a few words; None where their numbers are plain.

    Args:
        checkpoint: whose model is such a file.
    """
    file = checkpoint.gguf_header()
    kinds = {gguf_type_name(tensor.code): TYPES.get(tensor.code) for tensor in file.tensors.values()}
    packed = [name for name in file.types() if (kind := kinds[name]) is None or not kind.is_plain]
    return f"GGUF ({', '.join(packed)}), turned back into plain numbers at load" if packed else None


def _refused(file: GgufFile) -> UnsupportedModelError:
    name = shortened(printable(file.architecture), 40)
    if name in _ENCODERS:
        why = "it is an encoder, and a decoder is needed"
    elif name in _OTHERS:
        why = _OTHERS[name]
    else:
        why = f"GGUF files are read of {', '.join(_FAMILIES)}; {_INSTEAD}"
    return UnsupportedModelError(f"model {file.name!r} is of the family {name!r}: {why}")


def _number(file: GgufFile, key: str, default: Any = None, kind: type = int) -> Any:
    value = file.get(key, default)
    if isinstance(value, list) and value and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        shown = "is missing" if value is None else f"is {shortened(repr(value), 40)}, and one number is read"
        raise CheckpointError(f"model {file.name!r}: its setting {file.architecture}.{key} {shown}")
    return kind(value)


def _dtype(file: GgufFile) -> str:
    """The precision that the file stands for: that of plain numbers, and for packed ones the one they were made from.

    No file says which that was; decoders are published in bfloat16.
    """
    kinds = file.types()
    return {"F32": "float32", "F16": "float16", "F64": "float64"}.get(kinds[0] if kinds else "", "bfloat16")


def _head_width(file: GgufFile, usual: int | None = None) -> int:
    heads, width = _number(file, "attention.head_count"), _number(file, "embedding_length")
    own = _number(file, "attention.key_length", usual or width // heads)
    if file.get("attention.value_length", own) != own:
        raise UnsupportedModelError(
            f"model {file.name!r}: its value heads are {file.get('attention.value_length')} wide and its keys {own}, "
            f"which is not read from a GGUF file; {_INSTEAD}"
        )
    return int(own)


def _rope(file: GgufFile, head_width: int) -> Settings:
    """How positions turn queries and keys, with what stretches them."""
    theta = file.get("rope.freq_base", file.get("rope.global.freq_base"))
    rope: Settings = {"rope_type": "default", "rope_theta": float(theta) if theta else 10_000.0}
    if (turned := file.get("rope.dimension_count", head_width)) != head_width:
        raise UnsupportedModelError(
            f"model {file.name!r}: positions turn {turned} of the {head_width} numbers of a head, which is not read "
            f"from a GGUF file; {_INSTEAD}"
        )
    kind, factor = file.get("rope.scaling.type"), file.get("rope.scaling.factor", file.get("rope.scale_linear"))
    if kind is None and factor and factor != 1:
        kind = "linear"
    if _ROPE_FACTORS in file.tensors:
        return rope | _llama3(file, rope["rope_theta"], head_width)
    if kind in (None, "none") or (kind == "linear" and factor in (None, 0, 1)):
        return rope
    if kind == "linear":
        return rope | {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn":
        more = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        held = {ours: file.get(f"rope.scaling.{theirs}") for ours, theirs in more.items()}
        return rope | {
            "rope_type": "yarn",
            "factor": float(factor),
            "original_max_position_embeddings": _number(file, "rope.scaling.original_context_length"),
            **{key: float(value) for key, value in held.items() if value is not None},
        }
    raise UnsupportedModelError(
        f"model {file.name!r}: it stretches positions by {shortened(repr(kind), 40)}, and linear and yarn are read "
        f"from GGUF files; {_INSTEAD}"
    )


def _llama3(file: GgufFile, theta: float, turned: int) -> Settings:
    """The stretching of Llama 3.1 and later, of which a file holds the outcome: one divisor for each frequency."""
    held = _floats(file, _ROPE_FACTORS)
    factor = max(held)
    for original in (8192, file.get("rope.scaling.original_context_length", 8192)):
        asked: Settings = {
            "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }  # fmt: skip
        expected = [_llama3_divisor(theta ** (-2 * at / turned), **asked) for at in range(turned // 2)]
        if len(held) == len(expected) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(held, expected, strict=True)
        ):
            return {"rope_type": "llama3", **asked}
    raise UnsupportedModelError(
        f"model {file.name!r}: its {_ROPE_FACTORS} stretches positions in another way than Llama 3.1, which is not "
        f"read from a GGUF file; {_INSTEAD}"
    )


def _llama3_divisor(
    frequency: float,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> float:
    turns = original_max_position_embeddings * frequency / (2 * math.pi)
    share = min(1.0, max(0.0, (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)))
    return 1 / ((1 - share) / factor + share)


def _floats(file: GgufFile, name: str) -> list[float]:
    tensor = file.tensors[name]
    if tensor.code != 0:
        raise CheckpointError(
            f"model {file.name!r}: {name} is of type {gguf_type_name(tensor.code)}, and F32 is read; download it again"
        )
    with open(tensor.path, "rb") as opened:
        opened.seek(tensor.offset)
        held = opened.read(tensor.size)
    return list(struct.unpack(f"<{math.prod(tensor.shape)}f", held))


def _has(file: GgufFile, *names: str) -> bool:
    return any(f"blk.0.{name}" in file.tensors for name in names)


def _llama(file: GgufFile) -> Settings:
    # Files say the width of a head by the part of it that positions turn, and older ones by nothing.
    width = _head_width(file, file.get("rope.dimension_count"))
    shared: Settings = {"head_dim": width, "rope_parameters": _rope(file, width)}
    named = " ".join(str(file.settings.get(f"general.{key}", "")) for key in ("name", "basename", "architecture"))
    if file.get("attention.sliding_window") or ("mistral" in named.lower() and not _has(file, "attn_q.bias")):
        return {"model_type": "mistral", "sliding_window": file.get("attention.sliding_window") or None, **shared}
    return {
        "model_type": "llama",
        "attention_bias": _has(file, "attn_q.bias"),
        "mlp_bias": _has(file, "ffn_gate.bias"),
        **shared,
    }


def _qwen2(file: GgufFile) -> Settings:
    width = _head_width(file)
    return {"model_type": "qwen2", "head_dim": width, "rope_parameters": _rope(file, width)}


def _qwen3(file: GgufFile) -> Settings:
    width = _head_width(file)
    return {
        "model_type": "qwen3",
        "head_dim": width,
        "attention_bias": _has(file, "attn_q.bias"),
        "rope_parameters": _rope(file, width),
    }


def _gemma(file: GgufFile) -> Settings:
    width = _head_width(file)
    return {"model_type": "gemma", "head_dim": width, "rope_parameters": _rope(file, width)}


def _gemma2(file: GgufFile) -> Settings:
    width = _head_width(file)
    return {
        "model_type": "gemma2",
        "head_dim": width,
        "rope_parameters": _rope(file, width),
        "sliding_window": file.get("attention.sliding_window", 4096),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _scaled_by(file, width, 46),
    }


def _gemma3(file: GgufFile) -> Settings:
    width = _head_width(file)
    local = file.get("rope.freq_base_swa", file.get("rope.local.freq_base", 10_000.0))
    pattern = file.get("attention.sliding_window_pattern", 6)
    depth = _number(file, "block_count")
    # A pattern is the number of layers that it repeats after, or a word for each layer on whether it has a window.
    windowed = pattern if isinstance(pattern, list) else [(layer + 1) % pattern != 0 for layer in range(depth)]
    return {
        "model_type": "gemma3_text",
        "head_dim": width,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1_000_000.0, **_rope(file, width)},
            "sliding_attention": {"rope_type": "default", "rope_theta": float(local)},
        },
        "sliding_window": _number(file, "attention.sliding_window"),
        "layer_types": ["sliding_attention" if windowed[layer] else "full_attention" for layer in range(depth)],
        "query_pre_attn_scalar": _scaled_by(file, width, 62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.get("final_logit_softcapping"),
    }


def _scaled_by(file: GgufFile, head_width: int, deepest: int) -> int:
    """What queries are divided by the root of: the largest Gemma of a generation differs, and no file says so."""
    if _number(file, "block_count") == deepest:
        return int(_number(file, "embedding_length") // _number(file, "attention.head_count"))
    return head_width


def _phi3(file: GgufFile) -> Settings:
    width = _head_width(file)
    turned = file.get("rope.dimension_count", width)
    rope: Settings = {"rope_type": "default", "rope_theta": float(file.get("rope.freq_base", 10_000.0))}
    if turned != width:
        rope["partial_rotary_factor"] = turned / width
    if "rope_factors_long.weight" in file.tensors:
        rope |= {
            "rope_type": "longrope",
            "short_factor": _floats(file, "rope_factors_short.weight"),
            "long_factor": _floats(file, "rope_factors_long.weight"),
            "original_max_position_embeddings": _number(file, "rope.scaling.original_context_length"),
        }
        if (scaled := file.get("rope.scaling.attn_factor")) is not None:
            rope["attention_factor"] = float(scaled)
    return {
        "model_type": "phi3",
        "rope_parameters": rope,
        "original_max_position_embeddings": file.get(
            "rope.scaling.original_context_length", file.get("context_length")
        ),
        "sliding_window": file.get("attention.sliding_window") or None,
    }


_FAMILIES: dict[str, Callable[[GgufFile], Settings]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
}
"""By llama.cpp's name; Mistral's models are usually of the family ``llama`` there."""
