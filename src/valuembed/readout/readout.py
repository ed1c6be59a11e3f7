"""The signals of a running decoder, each reduced to ``[b, width]`` the moment it exists.

The attention function and the hooks that :mod:`valuembed.readout.hooks` installs hand over what they see to the readout
that is under way in their thread; with none under way they do nothing but call the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from valuembed.backbone import AttentionBlock, DecoderSpec, Plan, reset_dynamic_rope
from valuembed.errors import ReadingError, UnsupportedModelError
from valuembed.readout import varlen
from valuembed.readout.alignment import align_projected, project_values
from valuembed.readout.layout import BatchLayout, PackedLayout, PaddedLayout, PrefixKV, lay_out
from valuembed.recipes import Recipe, named_layers

_TO_THE_END = Recipe(signal="hidden", weights="last")
"""Lets a pass run through all layers."""


class _EarlyExit(Exception):
    """Ends a forward pass as soon as the last chosen layer has given its signal."""


# Other threads may be running the same modules: a readout is seen by its own thread only.
_current: ContextVar[Readout | None] = ContextVar("valuembed_readout", default=None)


@dataclass(frozen=True)
class AttentionCall:
    """What an attention block hands over, before the kernel runs.

    Attributes:
        kernel: one of :data:`valuembed.backbone.KERNELS`.
        module: the block.
        query, key, value: ``[b, h, t, *]``, ``[b, g, t, *]`` and ``[b, g, t, d]``.
        mask: as the kernel's mask builder made it; None where it takes none.
        options: everything else that the kernel is called with, such as ``scaling``.
    """

    kernel: str
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    options: Mapping[str, Any]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attention(
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention as the kernel does, and hand what goes in and comes out to the readout under way.

    Args:
        kernel: one of :data:`valuembed.backbone.KERNELS`.
        module: the attention block.
        query, key, value, attention_mask, kwargs: as transformers calls its kernels.

    Raises:
        UnsupportedModelError: the sdpa kernel would drop sinks or a softcap in silence.
    """
    readout = _current.get()
    if readout is not None:
        if readout.layout.prefix is not None:
            key, value = readout.layout.prefix.before(module, key, value)
        readout.on_call(AttentionCall(kernel, module, query, key, value, attention_mask, kwargs))
    if kernel == "sdpa" and (dropped := [name for name in ("s_aux", "softcap") if kwargs.get(name) is not None]):
        raise UnsupportedModelError(
            f"{type(module).__name__}: the sdpa kernel would drop {' and '.join(dropped)} in silence; "
            'load with model_kwargs={"attn_implementation": "eager"}'
        )
    if readout is not None and isinstance(readout.layout, PackedLayout):
        output, weights = varlen.attend(query, key, value, readout.layout, kwargs.get("scaling")), None
    else:
        output, weights = find_kernel(kernel, module)(module, query, key, value, attention_mask, **kwargs)
    if readout is not None:
        readout.on_kernel_output(module, output)
    return output, weights


def find_kernel(kernel: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What transformers itself would call: the model's file owns eager and may own variants of the others."""
    namespace = sys.modules[type(module).__module__]
    if kernel == "eager":
        function = getattr(namespace, "eager_attention_forward", None)
        if function is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no eager attention; load with another attn_implementation"
            )
        return function  # type: ignore[no-any-return]
    registry = getattr(namespace, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    return registry[kernel]  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def after_block(module: nn.Module, args: Any, output: Any) -> None:
    """Hand an attention block's output to the readout under way: a forward hook."""
    if (readout := _current.get()) is not None:
        readout.on_block(module, output[0] if isinstance(output, tuple) else output)


@dataclass(frozen=True)
class AfterLayer:
    """Hands a decoder layer's output to the readout under way: a forward hook.

    Attributes:
        layer: 0-based index.
    """

    layer: int

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take the output of the layer."""
        if (readout := _current.get()) is not None:
            readout.on_layer(self.layer, output[0] if isinstance(output, tuple) else output)


@dataclass(frozen=True)
class SignalKey:
    """One reduced signal of one layer: what several recipes can share in one pass.

    Attributes:
        signal, weights, alignment: as in a recipe.
        layer: 0-based index; None is the stream after the last layer and the final norm.
    """

    signal: str
    weights: str
    alignment: str
    layer: int | None


def is_compiled(model: PreTrainedModel, decoder_spec: DecoderSpec) -> bool:
    """Whether any layer is compiled."""
    layers = model.get_submodule(decoder_spec.layers_path).children()
    return any(layer._compiled_call_impl is not None for layer in layers)


class Readout:
    """The signals of one forward pass, for one recipe or for several, reduced as they appear.

    What several plans average is reduced once, and the pass ends when every plan has all it averages.

    Args:
        model: the decoder.
        plans: what to read, all from this decoder.
        layout: where the texts' tokens lie.
        outer: a model around the decoder that is run in its place, and makes the decoder's input; None for itself.
    """

    def __init__(
        self, model: PreTrainedModel, plans: Sequence[Plan], layout: BatchLayout, outer: PreTrainedModel | None = None
    ) -> None:
        self.model = model
        self.outer = model if outer is None else outer
        self.plans = plans
        self.decoder_spec = plans[0].decoder_spec
        self.layout = layout
        self._totals: list[Tensor | None] = [None] * len(plans)
        self._takers: dict[SignalKey, list[int]] = {}
        for index, plan in enumerate(plans):
            recipe = plan.recipe
            for layer in plan.layers or (None,):
                take = SignalKey(recipe.signal, recipe.weights, recipe.alignment, layer)
                self._takers.setdefault(take, []).append(index)
        self._reports = dict.fromkeys(self._takers, 0)
        wanted = {take.layer for take in self._takers if take.signal == "value"}
        self._streams = {take.layer for take in self._takers if take.signal == "hidden"}
        self._blocks: dict[int, AttentionBlock] = {
            id(model.get_submodule(block.path)): block for block in self.decoder_spec.blocks if block.layer in wanted
        }
        self._recorded_gradients = torch.is_grad_enabled()

    def run(self, **inputs: Any) -> list[Tensor]:
        """Run the decoder as far as needed.

        Args:
            inputs: keyword arguments of the forward of what is run.

        Returns:
            For each plan ``[b, width]`` float32, the mean over its layers.

        Raises:
            ReadingError: a chosen layer did not report exactly once, or with another shape than expected.
        """
        reset_dynamic_rope(self.model)
        token = _current.set(self)
        try:
            with suppress(_EarlyExit), self._as_compiled():
                self._on_hidden(None, self.outer(**inputs, use_cache=False)[0])
        finally:
            _current.reset(token)
        self._verify()
        totals = (total for total in self._totals if total is not None)
        return [total / max(len(plan.layers), 1) for total, plan in zip(totals, self.plans, strict=True)]

    def _as_compiled(self) -> AbstractContextManager[Any]:
        """Leave compiled layers out where they would be compiled anew: for a single padded row or column; in training.

        What is compiled for every size takes sizes above 1 only.
        """
        single = isinstance(self.layout, PaddedLayout) and 1 in self.layout.fed_shape
        if (single or self._recorded_gradients) and is_compiled(self.model, self.decoder_spec):
            return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
        return nullcontext()

    def on_call(self, call: AttentionCall) -> None:
        """Take what can be had of an attention call before its kernel runs."""
        self.on_values(call.module, call.value)

    def on_values(self, module: nn.Module, value: Tensor) -> None:
        """Take ``value [b, g, t, d]`` of an attention call, before the kernel runs."""
        block = self._blocks.get(id(module))
        if block is None:
            return
        self._refuse_reentrant()
        rows, tokens = self.layout.values_shape
        self._expect(block.layer, "values", value, (rows, block.value_heads, tokens, block.head_width))
        raw, *aligned = (SignalKey("value", "mean", way, block.layer) for way in ("none", "projection", "residual"))
        aligned = [take for take in aligned if take in self._takers]
        if raw not in self._takers and not aligned:
            return
        with self._keep_own_tensors():
            mean = self.layout.mean_values(value)
            vectors = {raw: mean.flatten(1)}
            if aligned:
                projected = project_values(self.model, block, mean, value.dtype)
                vectors |= {take: align_projected(self.model, block, projected, take.alignment) for take in aligned}
            self._add(vectors)

    def on_kernel_output(self, module: nn.Module, output: Tensor) -> None:
        """Take the kernel's output ``[b, t, h, d]``: the row of the last token is WVA."""
        block = self._blocks.get(id(module))
        if block is None or (take := SignalKey("value", "last", "none", block.layer)) not in self._takers:
            return
        self._expect(
            block.layer, "kernel output", output, (*self.layout.fed_shape, block.query_heads, block.head_width)
        )
        with self._keep_own_tensors():
            self._add({take: self.layout.last(output).flatten(1)})

    def on_block(self, module: nn.Module, states: Tensor) -> None:
        """Take the attention block's output ``[b, t, m]``: AlignedWVA is the row of the last token, normed as below."""
        block = self._blocks.get(id(module))
        if block is None:
            return
        aligned = [SignalKey("value", "last", way, block.layer) for way in ("projection", "residual")]
        aligned = [take for take in aligned if take in self._takers]
        if not aligned:
            return
        self._expect(block.layer, "attention output", states, (*self.layout.fed_shape, self.decoder_spec.model_width))
        with self._keep_own_tensors():
            last = self.layout.last(states).to(states.dtype)
            self._add({take: align_projected(self.model, block, last, take.alignment) for take in aligned})

    def on_layer(self, layer: int, states: Tensor) -> None:
        """Take the residual stream ``[b, t, m]`` after a decoder layer."""
        if layer in self._streams:
            self._on_hidden(layer, states)

    def _on_hidden(self, layer: int | None, states: Tensor) -> None:
        """Take the residual stream ``[b, t, m]`` after a decoder layer, or at the end after the final norm."""
        self._expect(layer, "hidden states", states, (*self.layout.fed_shape, self.decoder_spec.model_width))
        vectors = {}
        if (mean := SignalKey("hidden", "mean", "none", layer)) in self._takers:
            vectors[mean] = self.layout.mean_states(states)
        if (last := SignalKey("hidden", "last", "none", layer)) in self._takers:
            vectors[last] = self.layout.last(states)
        self._add(vectors)

    def _add(self, vectors: dict[SignalKey, Tensor]) -> None:
        """Add vectors ``[b, width]`` to the plans that average them; end the pass with the last one."""
        for take, vector in vectors.items():
            for index in self._takers.get(take, ()):
                total = self._totals[index]
                # Layers may sit on different devices; a sum stays where it began.
                self._totals[index] = vector if total is None else total + vector.to(total.device)
            if take in self._reports:
                self._reports[take] += 1
        if all(self._reports.values()):
            raise _EarlyExit

    def _keep_own_tensors(self) -> AbstractContextManager[Any]:
        """Keep what our arithmetic saves for backward out of gradient checkpointing.

        A checkpointed layer is computed again in backward, when no readout is under way: it must not wait for tensors
        that only the readout makes. What is kept is small: indices, weights and reduced vectors.
        """
        if not torch.is_grad_enabled():
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)

    def _refuse_reentrant(self) -> None:
        """Raise where gradients were switched off behind our back: reentrant checkpointing, which would lose them."""
        if self._recorded_gradients and not torch.is_grad_enabled():
            raise ReadingError(
                "reentrant gradient checkpointing gives the embeddings no gradient; use "
                'checkpointing with {"use_reentrant": False}'
            )

    def _expect(self, layer: int | None, what: str, got: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(got.shape) != expected:
            raise ReadingError(
                f"{self.decoder_spec.architecture}, layer {layer}: {what} of shape {expected} expected, "
                f"got {tuple(got.shape)}; this model's attention cannot be read with this kernel, try "
                'model_kwargs={"attn_implementation": "eager"}'
            )

    def _verify(self) -> None:
        wrong = {take: count for take, count in self._reports.items() if count != 1}
        if wrong:
            raise ReadingError(
                f"{self.decoder_spec.architecture}: of {_layers(self._reports)} each has to report once in a "
                f"forward pass, but {_layers(wrong)} reported {sorted(set(wrong.values()))} times; the model was "
                "changed after loading (its attention implementation or its modules): load it again"
            )


def _layers(takes: Iterable[SignalKey]) -> str:
    numbers = sorted({take.layer for take in takes if take.layer is not None})
    return named_layers(numbers) if numbers else "the last layer"


class _PrefixReadout(Readout):
    """Keeps the keys and values of one row of p tokens."""

    kept: PrefixKV

    def on_call(self, call: AttentionCall) -> None:
        self.kept.keep(call.module, call.key, call.value)


def read_prefix(model: PreTrainedModel, decoder_spec: DecoderSpec, ids: Sequence[int]) -> PrefixKV:
    """Read the keys and values of a prefix, for any number of texts behind it.

    They depend on nothing that follows, so texts can attend to those of one pass: they are put in front of each text's
    own in the attention function that all layers call, and no family's cache is used.

    Args:
        model: the decoder, with attention hooks.
        decoder_spec: what it is made of.
        ids: p token ids.
    """
    layout, inputs = lay_out([ids], [(0, len(ids))], packed=False, device=model.device, dtype=model.dtype)
    readout = _PrefixReadout(model, [Plan(_TO_THE_END, (), decoder_spec)], layout)
    readout.kept = PrefixKV(len(ids))
    readout.run(**inputs)
    return readout.kept
