"""What every reading of attention values is held against: the formulas, spelled out, on the stock model in float64.

Nothing here passes through the library or through the registry it uses. Values come from a forward hook on the module
that projects them, attention weights from the stock eager attention (sinks and softcap included, since they are in its
weights), and the output projection from its parameter's name. What differs between families is one row of `FAMILIES`.

Texts are run one at a time and without their padding, so nothing depends on how the stock model treats padding.

Letters: t tokens, g value heads, h query heads, d width of a value head, m model width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LAYER_ATTENTION = "layers.{}.self_attn"


@dataclass(frozen=True)
class Block:
    """What one attention block did with one text.

    Attributes:
        attention: the module (float64).
        values: of every token, [t, g, d].
        weights: of the last token over all tokens, [h, t].
        entered: what entered the block at the last token, [m].
        hooked: outputs of the family's further hooked modules at the last token.
        output: what the block returned at the last token, [m].
        norm: the module between the block and the residual stream, or None.
        added: what is added to the residual stream at the last token, [m].
    """

    attention: Any
    values: Tensor
    weights: Tensor
    entered: Tensor
    hooked: dict[str, Tensor]
    output: Tensor
    norm: Any
    added: Tensor


# Value source: the hooked projection's output [t, *] of one text -> values [t, g, d].


def heads(out: Tensor, attention: Any) -> Tensor:
    return out.unflatten(-1, (-1, attention.head_dim))


def clipped(out: Tensor, attention: Any) -> Tensor:
    limit = attention.config.clip_qkv
    return heads(out.clamp(-limit, limit), attention)


def last_of_qkv(out: Tensor, attention: Any) -> Tensor:
    """[all queries | all keys | all values], with as many heads of each (gpt2)."""
    return heads(out.chunk(3, dim=-1)[2], attention)


def after_queries_and_keys(out: Tensor, attention: Any) -> Tensor:
    """[all queries | all keys | all values], with fewer heads in the last two (phi3, gpt_bigcode)."""
    config = attention.config
    groups = 1 if getattr(config, "multi_query", False) else config.num_key_value_heads
    return heads(out[..., -groups * attention.head_dim :], attention)


def interleaved(out: Tensor, attention: Any) -> Tensor:
    """Head by head [query | key | value] (gpt_neox, persimmon)."""
    return out.unflatten(-1, (attention.config.num_attention_heads, 3, -1))[..., 2, :]


def latent(out: Tensor, attention: Any) -> Tensor:
    """Head by head [key without position | value], unfolded from the latent (MLA)."""
    config = attention.config
    return out.unflatten(-1, (-1, config.qk_nope_head_dim + config.v_head_dim))[..., config.qk_nope_head_dim :]


# Which value head a query head reads: values [t, g, d] -> [t, h, d].


def grouped(values: Tensor, query_heads: int) -> Tensor:
    return values.repeat_interleave(query_heads // values.shape[1], dim=1)


# Between kernel and projection: [h * d] of the last token -> the same.


def nothing(mixed: Tensor, block: Block) -> Tensor:
    return mixed


def sub_norm(mixed: Tensor, block: Block) -> Tensor:
    norm = block.attention.attn_sub_norm
    return norm.weight * mixed * (mixed.pow(2).mean() + norm.variance_epsilon).rsqrt()


def gate_beside_query(mixed: Tensor, block: Block) -> Tensor:
    """The query projection holds, head by head, [query | gate] (qwen3_next, qwen3_5)."""
    both = block.hooked["q_proj"].unflatten(-1, (-1, 2 * block.attention.head_dim))
    return mixed * torch.sigmoid(both[..., block.attention.head_dim :].flatten())


def gate(mixed: Tensor, block: Block) -> Tensor:
    return mixed * torch.sigmoid(block.hooked["gate_proj"])


# Projection: [h * d] -> [m].


def project(mixed: Tensor, block: Block, name: str) -> Tensor:
    module = block.attention.get_submodule(name)
    # gpt2 stores its projections as [in, out], all others as [out, in].
    weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
    out = weight @ mixed
    return out if module.bias is None else out + module.bias


# Norm after the block: [m] -> [m], by the module that the residual stream's summand comes out of.


def rms(out: Tensor, norm: Any) -> Tensor:
    return norm.weight * out * (out.pow(2).mean() + norm.variance_epsilon).rsqrt()


def rms_around_one(out: Tensor, norm: Any) -> Tensor:
    """Weights are kept as what they differ from 1 (gemma2, gemma3)."""
    return (1 + norm.weight) * out * (out.pow(2).mean() + norm.eps).rsqrt()


@dataclass(frozen=True)
class Family:
    """Where a family keeps what the formulas need; paths of modules are relative to the attention block.

    The norm after the block is named relative to the layer, which holds the block under its last name.
    """

    attention: str = LAYER_ATTENTION
    source: str = "v_proj"
    values: Callable[[Tensor, Any], Tensor] = heads
    between: Callable[[Tensor, Block], Tensor] = nothing
    projection: str = "o_proj"
    hooks: tuple[str, ...] = ()
    norm: str | None = None
    normed: Callable[[Tensor, Any], Tensor] = rms


PLAIN = Family()
CLIPPED = Family(values=clipped)
LATENT = Family(source="kv_b_proj", values=latent)
NORMED = Family(norm="post_attention_layernorm")
NORMED_AROUND_ONE = Family(norm="post_attention_layernorm", normed=rms_around_one)
QUERY_GATE = Family(between=gate_beside_query, hooks=("q_proj",))

FAMILIES: dict[str, Family] = {
    "afmoe": Family(between=gate, hooks=("gate_proj",), norm="post_attention_layernorm"),
    "apertus": PLAIN,
    "arcee": PLAIN,
    "bamba": PLAIN,
    "biogpt": Family(projection="out_proj"),
    "bitnet": Family(between=sub_norm),
    "cohere": PLAIN,
    "cohere2": PLAIN,
    "cwm": PLAIN,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "doge": PLAIN,
    "dots1": PLAIN,
    "ernie4_5": PLAIN,
    "ernie4_5_moe": PLAIN,
    "exaone4": NORMED,
    "exaone_moe": PLAIN,
    # Its multipliers before and after attention are outside the block.
    "falcon_h1": PLAIN,
    "flex_olmo": NORMED,
    "gemma": PLAIN,
    "gemma2": NORMED_AROUND_ONE,
    "gemma3_text": NORMED_AROUND_ONE,
    "glm": PLAIN,
    "glm4": Family(norm="post_self_attn_layernorm"),
    "glm4_moe": PLAIN,
    "gpt2": Family(attention="h.{}.attn", source="c_attn", values=last_of_qkv, projection="c_proj"),
    "gpt_bigcode": Family(attention="h.{}.attn", source="c_attn", values=after_queries_and_keys, projection="c_proj"),
    "gpt_neox": Family(
        attention="layers.{}.attention", source="query_key_value", values=interleaved, projection="dense"
    ),
    "gpt_oss": PLAIN,
    "granite": PLAIN,
    "granitemoe": PLAIN,
    "granitemoehybrid": PLAIN,
    "granitemoeshared": PLAIN,
    "helium": PLAIN,
    "hunyuan_v1_dense": PLAIN,
    "hunyuan_v1_moe": PLAIN,
    "jamba": PLAIN,
    "lfm2": Family(projection="out_proj"),
    "lfm2_moe": Family(projection="out_proj"),
    "llama": PLAIN,
    "llama4_text": PLAIN,
    "minimax": PLAIN,
    "minimax_m2": PLAIN,
    "ministral": PLAIN,
    "ministral3": PLAIN,
    "mistral": PLAIN,
    "mistral4": LATENT,
    "mixtral": PLAIN,
    "nanochat": PLAIN,
    "nemotron": PLAIN,
    "olmo": CLIPPED,
    "olmo2": NORMED,
    "olmo3": NORMED,
    "olmo_hybrid": NORMED,
    "olmoe": CLIPPED,
    "opt": Family(attention="decoder.layers.{}.self_attn", projection="out_proj"),
    "persimmon": Family(source="query_key_value", values=interleaved, projection="dense"),
    "phi": Family(projection="dense"),
    "phi3": Family(source="qkv_proj", values=after_queries_and_keys),
    "phimoe": PLAIN,
    "qwen2": PLAIN,
    "qwen2_moe": PLAIN,
    "qwen3": PLAIN,
    "qwen3_5_moe_text": QUERY_GATE,
    "qwen3_5_text": QUERY_GATE,
    "qwen3_moe": PLAIN,
    "qwen3_next": QUERY_GATE,
    "seed_oss": PLAIN,
    "smollm3": PLAIN,
    "solar_open": PLAIN,
    "stablelm": PLAIN,
    "starcoder2": PLAIN,
    "vaultgemma": PLAIN,
    "youtu": LATENT,
}


def va(block: Block, family: Family, own: slice) -> Tensor:
    return block.values[own].mean(dim=0).flatten()


def aligned_va(block: Block, family: Family, own: slice) -> Tensor:
    mean = block.values[own].mean(dim=0, keepdim=True)
    return project(grouped(mean, len(block.weights)).flatten(), block, family.projection)


def wva(block: Block, family: Family, own: slice) -> Tensor:
    expanded = grouped(block.values, len(block.weights))
    return torch.einsum("ht,thd->hd", block.weights, expanded).flatten()


def projected_wva(block: Block, family: Family, own: slice) -> Tensor:
    """AlignedWVA with the named choice `alignment="projection"`: what the block gives, before any norm."""
    return project(family.between(wva(block, family, own), block), block, family.projection)


def aligned_wva(block: Block, family: Family, own: slice) -> Tensor:
    out = projected_wva(block, family, own)
    return out if block.norm is None else family.normed(out, block.norm)


def normed_va(block: Block, family: Family, own: slice) -> Tensor:
    """AlignedVA with the named choice `alignment="residual"`."""
    out = aligned_va(block, family, own)
    return out if block.norm is None else family.normed(out, block.norm)


METHODS = {
    "va": va,
    "aligned_va": aligned_va,
    "wva": wva,
    "aligned_wva": aligned_wva,
    "normed_va": normed_va,
    "projected_wva": projected_wva,
}


def reference(
    architecture: str,
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    span: Tensor,
    method: str,
    layers: Iterable[int],
) -> Tensor:
    """The vectors that PAPER's formulas give, [b, width] in float64; not normalised.

    Args:
        architecture: a row of `FAMILIES`.
        model: the stock decoder without LM head, in any dtype and with any attention; it is copied, not changed.
        input_ids: [b, t].
        attention_mask: [b, t], 1 at real tokens, padding on either side.
        position_ids: [b, t].
        span: [b, 2], first and past-the-last token of the text itself, counted in the padded row.
        method: a row of `METHODS`.
        layers: 0-based; the result is the mean over them.
    """
    return references(architecture, model, input_ids, attention_mask, position_ids, [span], [method], layers)[0, method]


def references(
    architecture: str,
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    spans: Sequence[Tensor],
    methods: Iterable[str],
    layers: Iterable[int],
) -> dict[tuple[int, str], Tensor]:
    """As `reference`, of several spans and methods; each text runs once. By the number of its span and its method."""
    family = FAMILIES[architecture]
    layers = list(layers)
    rows: dict[tuple[int, str], list[Tensor]] = {(number, name): [] for name in methods for number in range(len(spans))}
    with doubled(model) as stock:
        for row, real in enumerate(attention_mask.bool()):
            found = blocks(architecture, stock, input_ids[row, real], position_ids[row, real], layers)
            padding_before = int(real.long().argmax())
            for (number, method), made in rows.items():
                first, end = (int(place) - padding_before for place in spans[number][row])
                vectors = [METHODS[method](block, family, slice(first, end)) for block in found]
                made.append(torch.stack(vectors).mean(dim=0))
    return {which: torch.stack(made) for which, made in rows.items()}


@contextmanager
def doubled(model: nn.Module) -> Iterator[Any]:
    """A float64 copy of the model with eager attention, inside which nothing is rounded to single precision."""
    stock: Any = copy.deepcopy(model).to(torch.float64).eval()
    stock.set_attn_implementation("eager")
    # The grouped kernels of mixtures of experts know no float64.
    stock.config._experts_implementation = "eager"
    with _NoSinglePrecision(), torch.no_grad():
        yield stock


@contextmanager
def _hooked(modules: dict[str, nn.Module], outputs: dict[str, Any], inputs: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            assert name not in outputs, f"{name} ran twice in one forward"
            # Copied: olmo clips the projection's output in place.
            outputs[name] = output.clone() if isinstance(output, Tensor) else output
            inputs[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def blocks(
    architecture: str, stock: Any, input_ids: Tensor, position_ids: Tensor, layers: Iterable[int]
) -> list[Block]:
    """Run one text [t] through a model from `doubled`, and collect what its attention blocks did."""
    family = FAMILIES[architecture]
    paths = {layer: family.attention.format(layer) for layer in layers}
    parts = ("", f".{family.source}", *(f".{part}" for part in family.hooks))
    norms = {path: f"{path.rpartition('.')[0]}.{family.norm}" for path in paths.values() if family.norm}
    names = [*(path + part for path in paths.values() for part in parts), *norms.values()]
    outputs: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    with _hooked({name: stock.get_submodule(name) for name in names}, outputs, inputs):
        stock(
            input_ids=input_ids[None],
            attention_mask=torch.ones_like(input_ids)[None],
            position_ids=position_ids[None],
            output_attentions=True,
            use_cache=False,
        )
    found = []
    for path in paths.values():
        attention = stock.get_submodule(path)
        # From the block itself: the list that a model returns has no places for a hybrid's other layers.
        output, weights = outputs[path][:2]
        source = outputs[f"{path}.{family.source}"].reshape(len(input_ids), -1)
        found.append(
            Block(
                attention=attention,
                values=family.values(source, attention),
                weights=weights[0, :, -1, :],
                entered=inputs[path][0, -1],
                hooked={part: outputs[f"{path}.{part}"][0, -1] for part in family.hooks},
                output=output[0, -1],
                norm=stock.get_submodule(norms[path]) if norms else None,
                added=(outputs[norms[path]] if norms else output)[0, -1],
            )
        )
    return found


class _NoSinglePrecision(TorchFunctionMode):
    """Reads every request for float32 as one for float64.

    Transformers computes softmax, norms and RoPE in float32 whatever the model's dtype is. Left alone, that would make
    a float64 copy as inexact as the model it is to judge.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        # By identity, and put together anew only where there is one: this is called for everything that a tensor does.
        for argument in args:
            if argument is torch.float32:
                args = tuple(torch.float64 if one is torch.float32 else one for one in args)
                break
        if not kwargs:
            return func(*args)
        return func(*args, **{key: torch.float64 if one is torch.float32 else one for key, one in kwargs.items()})
