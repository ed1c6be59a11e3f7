"""Attention hooks: where all families hand over what can be read.

transformers passes every attention call through a registry. One name per kernel is registered here, together with
that kernel's own mask builder: without it padding and sliding windows would vanish. The hooks stay on the modules, so
that a compiled layer has them in it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from valuembed.backbone import KERNELS, DecoderSpec
from valuembed.errors import UnsupportedModelError
from valuembed.readout.readout import AfterLayer, after_block, attention

ATTENTION_PREFIX = "valuembed_"
"""Of the names that attention functions are registered by."""

for _name in KERNELS:
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_PREFIX + _name, partial(attention, _name))
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])


def install_attention_hooks(model: PreTrainedModel, decoder_spec: DecoderSpec) -> str:
    """Install attention hooks on a loaded decoder, and return the kernel that they call.

    The kernel is the one that transformers picked for the class (or the user asked for), except that eager replaces
    sdpa where the attention has sinks or a softcap, which sdpa cannot compute.

    Raises:
        UnsupportedModelError: the model runs an attention function that is not one of :data:`KERNELS`.
    """
    chosen = model.config._attn_implementation or "eager"
    kernel = chosen.removeprefix(ATTENTION_PREFIX)
    if kernel not in KERNELS:
        raise UnsupportedModelError(f"attn_implementation={chosen!r} cannot be read; legal: {', '.join(KERNELS)}")
    if kernel == "sdpa" and any(block.needs for block in decoder_spec.blocks):
        kernel = "eager"
    layers = list(model.get_submodule(decoder_spec.layers_path).children())
    hooks: list[tuple[nn.Module, Callable[..., None]]] = [
        *((module, AfterLayer(layer)) for layer, module in enumerate(layers)),
        *((model.get_submodule(block.path), after_block) for block in decoder_spec.blocks if block.layer < len(layers)),
    ]
    for module, hook in hooks:
        if hook not in module._forward_hooks.values():
            module.register_forward_hook(hook)
    # Submodules keep references to this configuration object; the internal name is set directly because the public
    # setter asks the class whether it supports a name that the class cannot know.
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation_internal = ATTENTION_PREFIX + kernel
    return kernel
