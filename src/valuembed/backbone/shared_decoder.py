"""A decoder that is in memory already, shared: a second tree of modules over the same parameters.

Reading needs hooks, a configuration that names them, and modules out of training; the model that a person is running
keeps its own of all of these. So the decoder's modules are copied, each without what it holds, and the copies hold the
same parameters and buffers: nothing of the model's is written, no weight is there twice, and both can run at once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from copy import copy, deepcopy
from functools import partial
from types import MethodType
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from valuembed.backbone.checkpoints import cut_config
from valuembed.backbone.plan import Plan
from valuembed.backbone.rope import changes_with_length
from valuembed.errors import UnsupportedModelError

_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict))
"""Where torch keeps a module's hooks: a copy runs none of the model's, which may record or count what passes."""

_HOOKED = "_output_capturing_hooks_installed"
"""By which transformers knows that a model has the hooks that collect hidden states."""

_OF_QUANTIZATION = ("hf_quantizer", "is_quantized", "quantization_method")
"""What transformers notes on a model whose weights it quantized, and on no model inside it."""

_WRAPPED = ("_orig_mod", "module")
"""Where torch's compiler and its parallel wrappers keep the module that they run."""


def bare_model(model: Any) -> PreTrainedModel:
    """Find the model of transformers under whatever is put around it: peft's adapters, torch's compiler or parallels.

    Args:
        model: as its user holds it.

    Raises:
        UnsupportedModelError: there is none, or it is no decoder; or adapters that put tokens of their own in front.
    """
    given = model
    while (held := _held(model)) is not None:
        model = held
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(given).__name__} is no model of transformers: give a PreTrainedModel, such as "
            "AutoModelForCausalLM.from_pretrained returns, or a pipeline around one"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{type(model).__name__} is an encoder-decoder; a decoder is needed")
    return model


def find_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Find the text decoder of a model.

    Args:
        model: a causal LM, an image-text model or a decoder alone, as :func:`bare_model` finds it.

    Raises:
        UnsupportedModelError: no decoder alone makes its text.
    """
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    # Some families do not say where their decoder is, and name the model with its head.
    while isinstance(decoder, PreTrainedModel) and _has_head(decoder):
        inner = [child for child in decoder.children() if isinstance(child, PreTrainedModel)]
        if len(inner) != 1:
            break
        (decoder,) = inner
    if not isinstance(decoder, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its text decoder {type(decoder).__name__} is no model by itself, and cannot be "
            "read"
        )
    described_by: Any = type(decoder).config_class
    if described_by is not None and not isinstance(decoder.config, described_by):
        raise UnsupportedModelError(
            f"{type(decoder).__name__} holds a {type(decoder.config).__name__}, which describes another family; give "
            "the model as transformers builds it"
        )
    return decoder


def _around_decoder(model: PreTrainedModel, decoder: PreTrainedModel) -> PreTrainedModel:
    """The model around a decoder that makes its input of images and text, without its head.

    Raises:
        UnsupportedModelError: there is none.
    """
    base: Any = model.base_model
    outer: PreTrainedModel = base
    if outer is decoder or all(module is not decoder for module in outer.modules()):
        raise UnsupportedModelError(f"{type(model).__name__} reads text alone; an image needs an image-text model")
    return outer


def _has_head(model: Any) -> bool:
    return model.get_output_embeddings() is not None


def _held(model: Any) -> Any:
    """What a wrapper holds; None for a model itself."""
    if hasattr(model, "get_base_model"):
        config: Any = getattr(model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} puts learned tokens in front of every text ({config.peft_type.value}), which "
                "no recipe feeds; give the model under it, get_base_model()"
            )
        return model.get_base_model()
    if isinstance(model, PreTrainedModel) or not isinstance(model, nn.Module):
        return None
    return next((model._modules[name] for name in _WRAPPED if name in model._modules), None)


def _adapters_of(model: Any) -> dict[str, Any]:
    """What peft knows of a model's adapters, by name, wherever around the decoder it keeps that."""
    while isinstance(model, nn.Module):
        if known := vars(model).get("peft_config"):
            # Copied, for whoever saves adapters writes into what is known of them.
            return deepcopy(dict(known))
        model = next((model._modules[name] for name in ("base_model", *_WRAPPED) if name in model._modules), None)
    return {}


class SharedDecoder:
    """A second tree of a decoder's modules over the same parameters, cut to the layers that are read.

    Before each pass it takes over what has changed in the model since: adapters put on, switched or taken off, modules
    and parameters replaced.

    Args:
        model: in memory; nothing of it is changed.
        source: its decoder, as :func:`find_decoder` finds it.
        plan: what is read. It decides which layers the copy has, and whether it has what runs after the last one.
        whole: copy what is around the decoder too, such as what reads images.

    Attributes:
        model: the copy of the decoder.
        outer: of the model around it, where that was asked for; else the same.
        source: the decoder.

    Raises:
        UnsupportedModelError: weights are moved in for each pass (offloaded), or a module's forward was replaced by
            something that runs that module and no copy.
    """

    def __init__(self, model: nn.Module, source: PreTrainedModel, plan: Plan, *, whole: bool = False) -> None:
        self.source = source
        self._around = model
        self._root = _around_decoder(bare_model(model), source) if whole else source
        self._kept_layers = plan.kept_layers
        within = next(path for path, module in self._root.named_modules() if module is source)
        self._layers_path = f"{within}.{plan.decoder_spec.layers_path}".removeprefix(".")
        keep_tail = any(part.recipe.reads_final_norm for part in plan.parts)
        tail = () if keep_tail else plan.decoder_spec.tail
        self._removed = frozenset(f"{within}.{path}".removeprefix(".") for path in tail)
        self._nothing = nn.Identity()
        self._configs: dict[int, tuple[Any, PretrainedConfig]] = {
            id(source.config): (source.config, cut_config(source.config, self._kept_layers))
        }
        # Of each module that was copied, by its id, itself (so that no other object takes the id) and the copy.
        self._copies: dict[int, tuple[nn.Module, nn.Module]] = {}
        self._seen: list[tuple[nn.Module, tuple[int, ...]]] = []
        self._lock = threading.Lock()
        self.take_over()
        self.model: PreTrainedModel = self._copy_of(source)
        self.outer: PreTrainedModel = self._copy_of(self._root)
        self.outer.register_forward_pre_hook(self._before_pass)

    def _before_pass(self, module: nn.Module, args: Any) -> None:
        """Take over what has changed; where nothing has, this only looks."""
        if any(ids != _ids(source) for source, ids in self._seen):
            self.take_over()

    def take_over(self) -> None:
        """Make the copy what the model is now. Modules that are known keep their copies, and these their hooks."""
        with self._lock:
            self._take_over()

    def _take_over(self) -> None:
        reached = list(self._reach(self._root))
        for source, _ in reached:
            if id(source) not in self._copies:
                self._copies[id(source)] = (source, object.__new__(type(source)))
        seen = [(source, _ids(source)) for source, _ in reached if source._modules]
        for source, children in reached:
            self._fill(source, children)
        # What was taken off is let go, its weights with it.
        self._copies = {id(source): self._copies[id(source)] for source, _ in reached}
        # Adapters, and whatever else is put on, taken off or switched, are modules with others in them or become such.
        # Set last, so that another thread's pass waits for what is under way here.
        self._seen = seen

    def _reach(self, root: nn.Module) -> Iterator[tuple[nn.Module, dict[str, nn.Module | None]]]:
        """The modules that are kept, each once, with their children."""
        met: set[int] = set()
        waiting: list[tuple[str, nn.Module]] = [("", root)]
        while waiting:
            path, module = waiting.pop()
            if id(module) in met:
                continue
            met.add(id(module))
            children = dict(module._modules)
            if path == self._layers_path:
                children = dict(list(children.items())[: self._kept_layers])
            within = {name: f"{path}.{name}".removeprefix(".") for name in children}
            yield (
                module,
                {name: self._nothing if within[name] in self._removed else children[name] for name in children},
            )
            waiting += [
                (within[name], child)
                for name, child in children.items()
                if child is not None and within[name] not in self._removed
            ]

    def _copy_of(self, module: Any) -> Any:
        """The copy of one of the model's modules; anything else as it is."""
        return self._copies[id(module)][1] if id(module) in self._copies else module

    def _fill(self, source: nn.Module, children: dict[str, nn.Module | None]) -> None:
        """Give a module's copy all that the module has, but the children, hooks and state that are its own."""
        held = vars(self._copy_of(source))
        follows_length = changes_with_length(source)
        if held and follows_length:
            # Its frequencies are those of the texts that it has met, which are others than the model's.
            return
        filled = {name: self._rebound(source, name, value) for name, value in vars(source).items()}
        filled |= {name: held.get(name) or OrderedDict() for name in _HOOKS}
        filled.pop(_HOOKED, None)
        filled |= {name: value for name, value in held.items() if name == _HOOKED}
        filled["_modules"] = {name: self._copy_of(child) for name, child in children.items()}
        filled["_compiled_call_impl"] = held.get("_compiled_call_impl")
        filled["training"] = False
        if source is self.source:
            # What the model around it knows of its weights, where whoever saves the copy looks for it.
            if adapters := _adapters_of(self._around):
                filled |= {"peft_config": adapters, "_hf_peft_config_loaded": True}
            around = vars(bare_model(self._around))
            filled |= {name: around[name] for name in _OF_QUANTIZATION if name in around}
        if follows_length:
            filled["_buffers"] = dict(source._buffers)
        if isinstance(source, PreTrainedModel) or id(filled.get("config")) in self._configs:
            filled["config"] = self._own_config(filled["config"])
        for name in held.keys() - filled.keys():
            del held[name]
        held.update(filled)

    def _own_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The copy of a configuration, in which a kernel is named."""
        if id(config) not in self._configs:
            self._configs[id(config)] = (config, deepcopy(config))
        return self._configs[id(config)][1]

    def _rebound(self, source: nn.Module, name: str, value: Any) -> Any:
        """An attribute as the copy has it: what is bound to modules of the model is bound to their copies."""
        if name == "_hf_hook":
            if any(getattr(hook, "offload", False) for hook in (value, *getattr(value, "hooks", ()))):
                raise UnsupportedModelError(
                    f"{type(self.source).__name__}: its device map keeps weights elsewhere and moves them in for each "
                    "pass, where two passes at once would disturb each other; load it so that all of it fits"
                )
            return copy(value)
        if isinstance(value, MethodType) and id(value.__self__) in self._copies:
            return MethodType(value.__func__, self._copy_of(value.__self__))
        if isinstance(value, partial) and any(id(given) in self._copies for given in value.args):
            return partial(value.func, *map(self._copy_of, value.args), **value.keywords)
        if name == "forward":
            compiled = getattr(value, "_torchdynamo_orig_callable", None)
            if isinstance(compiled, MethodType):
                return self._rebound(source, "", compiled)
            if source._modules:
                raise UnsupportedModelError(
                    f"{type(source).__name__}: its forward was replaced by {value!r:.80}, which runs that module and "
                    "no copy of it; wrap the model before that is done, or load it again"
                )
        return value


def _ids(module: nn.Module) -> tuple[int, ...]:
    """What a module has and holds, by identity."""
    return *map(id, vars(module).values()), *map(id, module._modules.values())
