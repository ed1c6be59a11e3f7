"""Sentence vectors from a key-value cache that a decoder filled anyway: no pass, a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.backbone import (
    DecoderSpec,
    Plan,
    bare_model,
    caches_values,
    find_decoder,
    settle_plan,
    trace_architecture,
)
from valuembed.errors import InputError, LayerError, RecipeError, UnsupportedModelError
from valuembed.execution import check_vectors
from valuembed.models import ValueEncoder
from valuembed.readout import CachedValues, mean_of_cached, span_mask, unit
from valuembed.recipes import (
    METHODS,
    LayerSpec,
    Recipe,
    describe,
    named_layers,
    preset_for,
    resolve_layers,
    resolve_recipe,
)


class _Default(str):
    """A default that can be told from the same word written by a user: a loaded model has a recipe of its own."""


FROM_CACHE = _Default("va")
"""The method of :func:`from_cache` where none is named."""

Span = Sequence[int] | Sequence[Sequence[int]] | Tensor | None


@dataclass(frozen=True)
class _Decoder:
    """A decoder as its cache has to be read.

    Attributes:
        spec: what it is made of.
        path: of the decoder in the model that was given; empty where they are the same.
        kept_layers: how many of its layers there are.
        num_layers: of the decoder before it was cut.
        value_layers: those among them that hold values.
        preset: name of the preset made for it, or None.
    """

    spec: DecoderSpec
    path: str
    kept_layers: int
    num_layers: int
    value_layers: tuple[int, ...]
    preset: str | None


# A trace builds the model without weights, which takes longer than the mean.
_known: WeakKeyDictionary[nn.Module, _Decoder] = WeakKeyDictionary()


class CacheReader:
    """Reads vectors from caches of one model, by one recipe.

    Args:
        model, method, layers: as in :func:`from_cache`.

    Raises:
        RecipeError: a recipe that no cache can serve.
        UnsupportedModelError: no decoder, or one whose values cannot be read.
    """

    def __init__(self, model: Any, method: str | Recipe | Mapping[str, Any] = FROM_CACHE, layers: LayerSpec = None):
        self._encoder: ValueEncoder | None = None
        if isinstance(model, ValueEncoder):
            if isinstance(method, _Default):
                method = model.recipe
                # Modules behind the reader belong to its own recipe alone.
                self._encoder = model if layers is None else None
            stock, origin, spec = model.reader.model, model.reader.origin, model.reader.plan.decoder_spec
            if stock not in _known:
                _check_cache(stock)
                kept = _depth(stock, spec)
                _known[stock] = _Decoder(spec, "", kept, origin.num_layers, origin.value_layers, origin.preset)
        else:
            stock = bare_model(model)
            if stock not in _known:
                _known[stock] = _find_decoder(stock)
        found = _known[stock]
        self.decoder = stock.get_submodule(found.path)
        self._found = found
        self.plan = _plan(resolve_recipe(method, layers), found)

    @torch.no_grad()
    @default_device_and_precision()
    def read(
        self,
        cache: Any,
        span: Span,
        attention_mask: Tensor | None,
        normalize: bool,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Read the vectors ``[b, width]`` of spans of a cache.

        Args:
            cache, span, attention_mask, normalize: as in :func:`from_cache`.
            rows: of the cache, b of them; None is all, in their order.

        Raises:
            InputError: as :func:`from_cache`.
            NotFiniteError: a vector is not finite.
        """
        spec = self._found.spec
        values = CachedValues(
            cache,
            {block.layer: block for block in spec.blocks},
            (self._found.kept_layers, spec.num_layers, self._found.num_layers),
            spec.architecture,
        )
        held = values.held(self.plan.layers[0])
        all_rows = held.values.shape[0]
        rows = range(all_rows) if rows is None else rows
        mask = _counted(span, attention_mask, rows, all_rows, held.seen).to(held.values.device)
        vectors = mean_of_cached(self.decoder, self.plan, values, mask, rows)
        check_vectors(vectors, held.values.dtype)
        if self._encoder is not None:
            vectors = self._encoder.through_later_modules(vectors)
        return unit(vectors) if normalize else vectors


def from_cache(
    past_key_values: Any,
    model: PreTrainedModel | ValueEncoder | nn.Module,
    method: str | Recipe | Mapping[str, Any] = FROM_CACHE,
    layers: LayerSpec = None,
    span: Span = None,
    *,
    attention_mask: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """Read sentence vectors from the key-value cache of a decoder that ran anyway, without another pass.

    They are those that ``encode`` gives the same tokens, up to rounding: a token's value depends on nothing that
    follows it.

    Args:
        past_key_values: the cache of b texts: a ``DynamicCache``, ``StaticCache`` or ``QuantizedCache`` of
            transformers, offloaded or not, or a tuple with keys and values of each layer. It is left as it is.
        model: what filled it: a model of transformers with or without a head, compiled or with adapters, or a
            :class:`ValueEncoder`.
        method: ``"va"`` or ``"aligned_va"``, or a recipe that reads means of values; others need attention weights or
            hidden states, which no cache keeps. Templates stay aside: what is read is what was fed. Of a
            :class:`ValueEncoder`, its own recipe where none is given.
        layers: as in :func:`valuembed.load`.
        span: the tokens that count, as start and end (exclusive) in the cache, padding included: one pair for all
            rows, or a pair for each, ``[b, 2]``. None is all of them.
        attention_mask: ``[b, t]``, 1 for real tokens: those on which padding stands in front, or between turns, count
            for nothing. One more column than the cache has tokens is fine: the last token that is generated is never
            fed.
        normalize: scale the vectors to length 1.

    Returns:
        ``[b, width]`` float32, on the device of the cached values.

    Raises:
        InputError: an empty cache, that of another model, or one that keeps no values; a span that is outside of it, or
            that a sliding window has left behind.
        RecipeError: a method that a cache cannot serve; layers that do not exist or differ in width.
        UnsupportedModelError: no decoder of transformers, or one whose values cannot be read.
        NotFiniteError: a vector is NaN or infinite.

    Source: the vectors are those of Zhang et al., arXiv 2602.01572; that a cache holds them is ours.
    """
    return CacheReader(model, method, layers).read(past_key_values, span, attention_mask, normalize)


def _find_decoder(model: PreTrainedModel) -> _Decoder:
    """The text decoder of a model, traced."""
    decoder = find_decoder(model)
    spec = trace_architecture(decoder.config, model_class=type(decoder))
    _check_cache(decoder)
    path = next(path for path, module in model.named_modules() if module is decoder)
    kept = _depth(decoder, spec)
    return _Decoder(spec, path, kept, spec.num_layers, spec.value_layers, preset_for(decoder.config))


def _depth(decoder: nn.Module, spec: DecoderSpec) -> int:
    return len(list(decoder.get_submodule(spec.layers_path).children()))


def _check_cache(decoder: PreTrainedModel) -> None:
    if not caches_values(decoder.config, type(decoder)):
        raise UnsupportedModelError(
            f"{decoder.config.model_type}: its cache keeps compressed states and not the values that its attention "
            "takes (as multi-head latent attention does), so a cache gives no vectors; encode() does, in a pass of its "
            "own"
        )


def _plan(recipe: Recipe, found: _Decoder) -> Plan:
    """What is read of a cache, in absolute layers."""
    legal = ", ".join(
        name for name, one in METHODS.items() if (one.signal, one.weights) == ("value", "mean") and not one.joined
    )
    if recipe.joined:
        lacking = "joins several readouts"
    elif recipe.signal == "hidden":
        lacking = "reads hidden states, which no cache keeps"
    elif recipe.weights == "last":
        lacking = "needs the last token's attention weights, which no cache keeps"
    elif recipe.centring != "none":
        lacking = "takes a mean away that is read from general sentences"
    else:
        chosen = resolve_layers(recipe.layers, found.value_layers, found.num_layers, preset=found.preset)
        # Plain values take nothing from the decoder; others go through its projections.
        depth = found.kept_layers if recipe.aligned else found.spec.num_layers
        if missing := [layer for layer in chosen if layer >= depth]:
            raise LayerError(
                f"{named_layers(chosen)} {inflected(len(chosen), 'is', 'are')} asked for, and {named_layers(missing)} "
                f"{inflected(len(missing), 'is', 'are')} not here: this decoder holds the first {depth} of "
                f"{counted(found.num_layers, 'layer')}; load it with more, or give the whole model"
            )
        return settle_plan(recipe, chosen, found.spec)
    raise RecipeError(f"method {recipe.method!r} {lacking}; from a cache there are {legal}")


def _counted(span: Span, attention_mask: Tensor | None, rows: Sequence[int], all_rows: int, seen: int) -> Tensor:
    """Which tokens count, ``[b, t]`` bool on the CPU or where the mask is; at least one a row."""
    spans = _spans(span, len(rows), seen)
    mask = span_mask(spans, seen)
    if attention_mask is None:
        return mask
    real = torch.as_tensor(attention_mask)
    if real.dim() != 2 or real.shape[0] != all_rows:
        raise InputError(
            f"attention_mask has the shape {tuple(real.shape)}; give one of [b, t] for the {counted(all_rows, 'row')} "
            f"and {counted(seen, 'token')} of the cache"
        )
    columns = real.shape[1]
    # With a span it is enough that the mask reaches to its end.
    if columns not in (seen, seen + 1) and (span is None or columns < int(spans.max())):
        raise InputError(
            f"attention_mask tells of {counted(columns, 'token')}, and the cache holds {seen}; give a mask of all of "
            "them, or a span that the mask covers"
        )
    columns = min(columns, seen)
    mask = mask.to(real.device)
    mask[:, columns:] = False
    mask[:, :columns] &= real[list(rows), :columns] > 0
    if empty := (~mask.any(dim=1)).nonzero().flatten().tolist():
        named = f"{inflected(len(empty), 'row')} {describe([rows[row] for row in empty])}"
        raise InputError(
            f"no token counts in {named}: the attention_mask is 0 on all of the span; give a span with real tokens"
        )
    return mask


def _spans(span: Span, count: int, seen: int) -> Tensor:
    """Start and end for each of so many rows, ``[b, 2]``, inside the cache."""
    if span is None:
        return torch.tensor([[0, seen]] * count)
    given = span.tolist() if isinstance(span, Tensor) else span
    try:
        spans = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        spans = torch.empty(0)
    if spans.dim() == 1 and len(spans) == 2:
        spans = spans.expand(count, 2)
    if spans.shape != (count, 2) or spans.is_floating_point() or spans.is_complex() or spans.dtype == torch.bool:
        raise InputError(
            f"span={given!r:.80} is not understood; give (start, end) for all rows, or such a pair for each of "
            f"{counted(count, 'row')}"
        )
    for row, (start, end) in enumerate(spans.tolist()):
        where = f"span ({start}, {end})" + (f" of row {row}" if count > 1 else "")
        if start >= end:
            raise InputError(f"{where} is {'empty' if start == end else 'reversed'}; give a start below its end")
        if start < 0 or end > seen:
            raise InputError(f"{where} is outside the cache, which holds tokens 0 to {seen} (the end is exclusive)")
    return spans
