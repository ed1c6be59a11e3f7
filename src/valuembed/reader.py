"""Reading signals out of a running decoder, through the one door that all families share.

transformers passes every attention call through a registry. One name per kernel is registered here, together with
that kernel's own mask builder: without it padding and sliding windows would vanish. The function behind the name
reduces what the recipe wants to ``[b, width]`` the moment it exists and calls the kernel; with no reading under way it
does nothing but call the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from valuembed import pooling
from valuembed.anatomy import Anatomy, AttentionBlock
from valuembed.errors import ReadingError, UnsupportedModelError
from valuembed.layers import describe
from valuembed.recipes import Recipe

DOOR = "valuembed_"
KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


class _Enough(Exception):
    """Ends a forward pass as soon as the last chosen layer has given its signal."""


_reading: ContextVar[Reading | None] = ContextVar("valuembed_reading", default=None)


def _attention(
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    reading = _reading.get()
    if reading is not None:
        reading.on_values(module, value)
    if kernel == "sdpa" and (dropped := [name for name in ("s_aux", "softcap") if kwargs.get(name) is not None]):
        raise UnsupportedModelError(
            f"{type(module).__name__}: the sdpa kernel would drop {' and '.join(dropped)} in silence; "
            'load with model_kwargs={"attn_implementation": "eager"}'
        )
    output, weights = _kernel(kernel, module)(module, query, key, value, attention_mask, **kwargs)
    if reading is not None:
        reading.on_kernel_output(module, output)
    return output, weights


def _kernel(kernel: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
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


for _name in KERNELS:
    ALL_ATTENTION_FUNCTIONS.register(DOOR + _name, partial(_attention, _name))
    ALL_MASK_ATTENTION_FUNCTIONS.register(DOOR + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def open_door(model: PreTrainedModel, anatomy: Anatomy) -> str:
    """Send a loaded decoder's attention through the door and return the kernel behind it.

    The kernel is the one that transformers picked for the class (or the user asked for), except that eager replaces
    sdpa where the attention has sinks or a softcap, which sdpa cannot compute.

    Raises:
        UnsupportedModelError: the model runs an attention function that is not one of :data:`KERNELS`.
    """
    chosen = model.config._attn_implementation or "eager"
    kernel = chosen.removeprefix(DOOR)
    if kernel not in KERNELS:
        raise UnsupportedModelError(f"attn_implementation={chosen!r} cannot be read; legal: {', '.join(KERNELS)}")
    if kernel == "sdpa" and any(block.needs for block in anatomy.blocks):
        kernel = "eager"
    # Submodules keep references to this configuration object; the internal name is set directly because the public
    # setter asks the class whether it supports a name that the class cannot know.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation_internal = DOOR + kernel
    return kernel


@dataclass(frozen=True)
class Plan:
    """What to read, with the recipe's layers resolved: one per loaded model.

    Attributes:
        recipe: the five choices.
        layers: absolute 0-based indices; empty for hidden states after the final norm.
        anatomy: of the decoder as loaded.
    """

    recipe: Recipe
    layers: tuple[int, ...]
    anatomy: Anatomy


class Reading:
    """The signals of one forward pass, reduced as they appear.

    Args:
        model: the decoder.
        plan: what to read.
        last: ``[b]`` index of each row's last token.
        mask: ``[b, t]`` tokens that a mean covers.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, last: Tensor, mask: Tensor) -> None:
        self.model = model
        self.plan = plan
        self.last = last
        self.mask = mask
        self.total: Tensor | None = None
        self.reports: dict[int, int] = dict.fromkeys(plan.layers, 0)
        blocks = plan.anatomy.blocks if plan.recipe.signal == "value" else ()
        self._blocks: dict[int, AttentionBlock] = {
            id(model.get_submodule(block.path)): block for block in blocks if block.layer in self.reports
        }
        self._recorded_gradients = torch.is_grad_enabled()

    def run(self, **inputs: Any) -> Tensor:
        """Run the decoder as far as needed.

        Args:
            inputs: keyword arguments of the decoder's forward.

        Returns:
            ``[b, width]`` float32, the mean over the chosen layers.

        Raises:
            ReadingError: a chosen layer did not report exactly once, or with another shape than expected.
        """
        recipe = self.plan.recipe
        with ExitStack() as stack:
            token = _reading.set(self)
            stack.callback(_reading.reset, token)
            for path, hook in self._hooks():
                stack.callback(self.model.get_submodule(path).register_forward_hook(hook).remove)
            try:
                output = self.model(**inputs, use_cache=False)
            except _Enough:
                output = None
        if recipe.reads_final_norm:
            return self._reduce_hidden(output[0])
        self._verify()
        assert self.total is not None
        return self.total / len(self.plan.layers)

    def _hooks(self) -> list[tuple[str, Callable[..., None]]]:
        recipe, anatomy = self.plan.recipe, self.plan.anatomy
        if recipe.signal == "hidden":
            return [(f"{anatomy.layers_path}.{layer}", partial(self._on_layer, layer)) for layer in self.plan.layers]
        if recipe.aligned and recipe.weights == "last":
            return [(block.path, partial(self._on_block, block)) for block in self._blocks.values()]
        return []

    def _keep_own_tensors(self) -> AbstractContextManager[Any]:
        """Keep what our arithmetic saves for backward out of gradient checkpointing.

        A checkpointed layer is computed again in backward, when no reading is under way: it must not wait for tensors
        that only the reading makes. What is kept is small: indices, weights and reduced vectors.
        """
        if not torch.is_grad_enabled():
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)

    def on_values(self, module: nn.Module, value: Tensor) -> None:
        """Take ``value [b, g, t, d]`` of an attention call, before the kernel runs."""
        block = self._blocks.get(id(module))
        if block is None or self._is_recomputation():
            return
        rows, tokens = self.mask.shape
        self._expect(block.layer, "values", value, (rows, block.value_heads, tokens, block.head_width))
        if self.plan.recipe.weights == "last":
            return
        with self._keep_own_tensors():
            mean = pooling.mean_over_tokens(value, self.mask)
            if self.plan.recipe.aligned:
                mean = self._align(block, mean)
            self._add(block.layer, mean.flatten(1))

    def on_kernel_output(self, module: nn.Module, output: Tensor) -> None:
        """Take the kernel's output ``[b, t, h, d]``: the row of the last token is WVA."""
        block = self._blocks.get(id(module))
        recipe = self.plan.recipe
        if block is None or recipe.weights != "last" or recipe.aligned or self._is_recomputation():
            return
        rows, tokens = self.mask.shape
        self._expect(block.layer, "kernel output", output, (rows, tokens, block.query_heads, block.head_width))
        with self._keep_own_tensors():
            self._add(block.layer, pooling.take_token(output, self.last).flatten(1))

    def _on_block(self, block: AttentionBlock, module: nn.Module, args: Any, output: Any) -> None:
        """Take the attention block's output ``[b, t, m]``: the row of the last token is AlignedWVA."""
        states = output[0] if isinstance(output, tuple) else output
        self._expect(block.layer, "attention output", states, (*self.mask.shape, self.plan.anatomy.model_width))
        with self._keep_own_tensors():
            self._add(block.layer, pooling.take_token(states, self.last))

    def _on_layer(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        """Take the residual stream ``[b, t, m]`` after a decoder layer."""
        states = output[0] if isinstance(output, tuple) else output
        self._expect(layer, "hidden states", states, (*self.mask.shape, self.plan.anatomy.model_width))
        self._add(layer, self._reduce_hidden(states))

    def _reduce_hidden(self, states: Tensor) -> Tensor:
        if self.plan.recipe.weights == "last":
            return pooling.take_token(states, self.last)
        return pooling.mean_over_tokens(states, self.mask)

    def _align(self, block: AttentionBlock, mean: Tensor) -> Tensor:
        """``W_O @ expand(mean)`` with the projection's bias; the module itself, so that adapters on it count."""
        assert block.projection is not None
        projection = self.model.get_submodule(block.projection)
        expanded = pooling.expand_heads(mean, block.query_heads).flatten(1)
        dtype = next((p.dtype for p in projection.parameters() if p.is_floating_point()), expanded.dtype)
        return projection(expanded.to(dtype)).float()  # type: ignore[no-any-return]

    def _add(self, layer: int, vector: Tensor) -> None:
        self.reports[layer] += 1
        if self.total is None:
            self.total = vector
        else:
            # Layers may sit on different devices; the sum stays where it began.
            self.total = self.total + vector.to(self.total.device)
        if layer == self.plan.layers[-1]:
            raise _Enough

    def _is_recomputation(self) -> bool:
        """Whether gradients were switched off behind our back: reentrant checkpointing, which would lose them."""
        if self._recorded_gradients and not torch.is_grad_enabled():
            raise ReadingError(
                "reentrant gradient checkpointing gives the embeddings no gradient; use "
                'checkpointing with {"use_reentrant": False}'
            )
        return False

    def _expect(self, layer: int, what: str, got: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(got.shape) != expected:
            raise ReadingError(
                f"{self.plan.anatomy.model_class.__name__}, layer {layer}: {what} of shape {expected} expected, "
                f"got {tuple(got.shape)}; "
                "this model's attention cannot be read with this kernel, try "
                'model_kwargs={"attn_implementation": "eager"}'
            )

    def _verify(self) -> None:
        wrong = {layer: count for layer, count in self.reports.items() if count != 1}
        if wrong:
            raise ReadingError(
                f"{self.plan.anatomy.model_class.__name__}: each of layers {describe(self.plan.layers)} has to "
                "report once in a forward "
                f"pass, but layers {describe(list(wrong))} reported {sorted(set(wrong.values()))} times; the model "
                "was changed "
                "after loading (its attention implementation or its modules): load it again"
            )
