"""What a decoder is made of, learned without its weights.

The model is built on the meta device, where tensors have shapes and no data, and a few tokens run through it. The
attention function registered here only notes who called it with which shapes, so one trace serves every family
that hands its attention to transformers' registry, and nothing is read from disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from valuembed._utils.text import inflected
from valuembed._utils.torch_settings import building
from valuembed.backbone.architecture import AttentionBlock, DecoderSpec
from valuembed.errors import UnsupportedModelError
from valuembed.recipes import named_layers

PROBE = "valuembed_probe"
PROBE_TOKENS = 4


@dataclass
class _Survey:
    """Notes of one pass over the meta model."""

    calls: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    order: list[tuple[str, tuple[int, ...] | None]] = field(default_factory=list)
    inputs: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    cache: _NotedCache | None = None


class _NotedCache(DynamicCache):
    """A cache that notes what it hands back."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config=config)
        self.handed_back: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self.handed_back.append(values)
        return keys, values


_survey: ContextVar[_Survey | None] = ContextVar("valuembed_survey", default=None)


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Stand in for an attention kernel on the meta device: right shapes, no arithmetic."""
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    if (trace_architecture := _survey.get()) is not None:
        trace_architecture.calls.setdefault(id(module), []).append(
            {
                "query": tuple(query.shape),
                "value": tuple(value.shape),
                "needs": frozenset(name for name in ("s_aux", "softcap") if kwargs.get(name) is not None),
                "causal": _is_causal(module, kwargs.get("is_causal")),
                "cached": _is_handed_back(value, trace_architecture.cache),
                "at": len(trace_architecture.order),
            }
        )
    return output, None


def _is_causal(module: nn.Module, given: bool | None) -> bool:
    """As transformers' kernels decide it: by the call, else by the module, else it is a decoder's."""
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _is_handed_back(value: Tensor, cache: _NotedCache | None) -> bool:
    return cache is not None and any(value is one for one in cache.handed_back)


ALL_ATTENTION_FUNCTIONS.register(PROBE, _probe_attention)


@building()
def trace_architecture(
    config: PretrainedConfig, *, trust_remote_code: bool = False, model_class: type[PreTrainedModel] | None = None
) -> DecoderSpec:
    """Trace the architecture of the decoder that a configuration describes.

    Args:
        config: of a text decoder, whole or cut.
        trust_remote_code: passed on where the configuration names code of its own.
        model_class: of the decoder, where that is known; None is what transformers has for the configuration.

    Raises:
        UnsupportedModelError: the values cannot be read: the family does not use transformers' attention registry,
            calls it more than once in a layer, or shares keys and values between layers; or it is an encoder.
    """
    if shared := getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModelError(
            f"{config.model_type}: {inflected(shared, 'the last layer reuses', f'the last {shared} layers reuse')} the "
            "keys and values of earlier ones (num_kv_shared_layers), so a layer has no values of its own to read; "
            "choose a decoder without shared layers"
        )
    with _built_on_meta(config, trust_remote_code, model_class) as model:
        notes = _run(model)
        return _read_notes(model, notes)


@building()
def caches_values(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Trace whether what a decoder keeps in its key-value cache are the values that its attention takes.

    Some families keep latents in there and unfold them anew each time.

    Args:
        config, model_class: as in :func:`trace_architecture`, which this decoder has passed.
    """
    with _built_on_meta(config, False, model_class) as model:
        try:
            notes = _run(model, _NotedCache(model.config))
        except UnsupportedModelError:
            return True  # a family that takes no cache but its own: shapes have to tell
    return all(call["cached"] for calls in notes.calls.values() for call in calls)


@contextmanager
def _built_on_meta(
    config: PretrainedConfig, trust_remote_code: bool, model_class: type[PreTrainedModel] | None
) -> Iterator[PreTrainedModel]:
    config = deepcopy(config)
    config._attn_implementation = PROBE
    # Routing by a batched product has shapes that do not depend on data, so experts run on the meta device too.
    config._experts_implementation = "batched_mm"
    config.dtype = torch.float32
    # Some families look for padding in the ids, which have no data here; the others may insist on a number.
    with suppress(StrictDataclassError):
        config.pad_token_id = None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with torch.device("meta"):
            if model_class is not None:
                model = model_class._from_config(config)  # type: ignore[no-untyped-call]
            else:
                model = AutoModel.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=trust_remote_code
                )
    except (KeyError, ValueError) as error:
        if "Unrecognized configuration class" in str(error):
            raise UnsupportedModelError(
                f"{config.model_type}: transformers has no class for this text decoder alone, without the model around "
                "it; choose a decoder that has one, for example a llama, mistral, qwen3 or gemma3 model"
            ) from error
        raise _without_registry(config, error) from error
    for module in model.modules():
        # Dynamic rotary scaling looks at the positions, which have no data here; shapes do not depend on it.
        types = getattr(module, "rope_type", None)
        if isinstance(types, str) and "dynamic" in types:
            module.rope_type = "default"
        elif isinstance(types, dict):
            module.rope_type = {kind: "default" if "dynamic" in name else name for kind, name in types.items()}
    yield model.train(False)


def _run(model: PreTrainedModel, cache: _NotedCache | None = None) -> _Survey:
    notes = _Survey(cache=cache)

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            first = args[0] if args and isinstance(args[0], Tensor) else None
            notes.order.append((path, None if first is None else tuple(first.shape)))
            if first is not None:
                notes.inputs.append((path, first))

        return hook

    def keep(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                notes.outputs[path] = first

        return hook

    named = [(path, module) for path, module in model.named_modules() if path]
    handles = [module.register_forward_pre_hook(note(path)) for path, module in named]
    handles += [module.register_forward_hook(keep(path)) for path, module in named]
    token = _survey.set(notes)
    try:
        ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
        with torch.no_grad():
            kept: dict[str, Any] = {"use_cache": False} if cache is None else {"past_key_values": cache}
            model(input_ids=ids, position_ids=torch.arange(PROBE_TOKENS, device="meta")[None], **kept)
    except Exception as error:
        if not notes.calls:
            raise _without_registry(model.config, error) from error
        raise UnsupportedModelError(
            f"{model.config.model_type}: a trial pass without weights failed ({type(error).__name__}: {error}); "
            "this architecture cannot be read"
        ) from error
    finally:
        _survey.reset(token)
        for handle in handles:
            handle.remove()
    if not notes.calls:
        raise _without_registry(model.config)
    return notes


def _read_notes(model: PreTrainedModel, notes: _Survey) -> DecoderSpec:
    config = model.config
    m = config.hidden_size
    paths = {id(module): path for path, module in model.named_modules()}
    blocks = []
    for identity, calls in notes.calls.items():
        path = paths[identity]
        call = calls[0]
        (_, h, _, _), (_, g, _, d) = call["query"], call["value"]
        blocks.append(
            AttentionBlock(
                layer=_layer_index(path),
                path=path,
                query_heads=h,
                value_heads=g,
                head_width=d,
                projection=_projection(model, path, notes.order[call["at"] :], h * d, m),
                norm=_norm_after(model, path, notes, m),
                needs=call["needs"],
                calls=len(calls),
            )
        )
    blocks.sort(key=lambda block: block.layer)
    _refuse_repeated(model, blocks)
    _refuse_encoder(model, blocks, notes)
    layers_path = re.split(r"\.\d+(?:\.|$)", blocks[0].path)[0]
    num_layers = len(model.get_submodule(layers_path))  # type: ignore[arg-type]
    last = max(i for i, (path, _) in enumerate(notes.order) if path.startswith(f"{layers_path}."))
    tail = tuple(
        path
        for path, _ in notes.order[last + 1 :]
        if any(True for _ in model.get_submodule(path).parameters(recurse=False))
    )
    layer_sizes = tuple(_size(model.get_submodule(f"{layers_path}.{i}")) for i in range(num_layers))
    tail_size = sum(_size(model.get_submodule(path)) for path in tail)
    rest = _size(model) - sum(layer_sizes) - tail_size
    sizes = (layer_sizes, tail_size, rest)
    return DecoderSpec(
        type(model).__name__, num_layers, m, layers_path, tuple(blocks), tail, sizes, model_class=type(model)
    )


def _projection(
    model: PreTrainedModel, block: str, after: list[tuple[str, tuple[int, ...] | None]], heads_width: int, m: int
) -> str | None:
    """The matrix that the block applies to the kernel's output: the first one that takes ``h*d`` after the call."""
    for path, shape in after:
        if not path.startswith(f"{block}."):
            continue
        weight = getattr(model.get_submodule(path), "weight", None)
        if weight is not None and weight.dim() == 2 and shape is not None and shape[-1] == heads_width:
            return path if sorted(weight.shape) == sorted((heads_width, m)) else None
    return None


def _norm_after(model: PreTrainedModel, block: str, notes: _Survey, m: int) -> str | None:
    """The norm between a block and the residual stream: what takes the block's output itself, with weights of m."""
    output = notes.outputs.get(block)
    for path, given in notes.inputs:
        weights = list(model.get_submodule(path).parameters())
        if given is output and weights and all(tuple(weight.shape) == (m,) for weight in weights):
            return path
    return None


def _refuse_repeated(model: PreTrainedModel, blocks: list[AttentionBlock]) -> None:
    seen = [block.layer for block in blocks]
    repeated = {block.layer for block in blocks if block.calls > 1 or seen.count(block.layer) > 1}
    if repeated:
        raise UnsupportedModelError(
            f"{model.config.model_type}: {named_layers(sorted(repeated))} "
            f"{inflected(len(repeated), 'computes', 'compute')} attention more than once, so 'the values of a layer' "
            "are not one thing there; choose a decoder with one attention call per layer"
        )


def _refuse_encoder(model: PreTrainedModel, blocks: list[AttentionBlock], notes: _Survey) -> None:
    both_ways = [
        block.layer
        for block in blocks
        if not all(call["causal"] for call in notes.calls[id(model.get_submodule(block.path))])
    ]
    if both_ways:
        raise UnsupportedModelError(
            f"{model.config.model_type}: {named_layers(both_ways)} {inflected(len(both_ways), 'attends', 'attend')} to "
            "later tokens too, so it is an encoder and no decoder; choose a decoder, for example a llama, mistral, "
            "qwen3 or gemma3 model (sentence-transformers embeds with encoders)"
        )


def _layer_index(path: str) -> int:
    match = re.search(r"\.(\d+)(?:\.|$)", path)
    if match is None:
        raise UnsupportedModelError(f"attention module {path!r} belongs to no numbered decoder layer")
    return int(match.group(1))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _without_registry(config: PretrainedConfig, error: Exception | None = None) -> UnsupportedModelError:
    reason = f" ({type(error).__name__}: {error})" if error is not None and PROBE not in str(error) else ""
    return UnsupportedModelError(
        f"{config.model_type}: its attention values cannot be read: in a trial pass it did not hand its attention "
        f"to transformers' AttentionInterface{reason}; choose another decoder, for example a llama, mistral, qwen3 or "
        "gemma3 model"
    )
