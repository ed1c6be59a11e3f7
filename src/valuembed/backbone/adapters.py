"""Adapters (peft) beside a cut decoder: finding, attaching and saving them so that a folder stands on its own."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from valuembed._utils.optional import require
from valuembed._utils.text import counted, inflected
from valuembed._utils.torch_settings import building
from valuembed.backbone.adapter_embeddings import matrix_with_adapter, resize_embeddings
from valuembed.backbone.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    Checkpoint,
    is_needed,
    read_adapter_config,
    remove_saved,
    remove_weights,
)
from valuembed.errors import CheckpointError, OutputError

PICKLED_ADAPTER = "adapter_model.bin"

_ALL_LAYERS = 10**9


@building()
def attach(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Put an adapter on a decoder, its weights all from the file; layers above the decoder's last are left out.

    peft loads the weights, not transformers: that forgets DoRA's magnitudes, takes pickles, starts weights that it
    does not find at random, and leaves a note on the model by which a later save would rename the weights.

    Args:
        model: the decoder, cut or whole.
        checkpoint: where the adapter is; both its files are fetched from there.

    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: its weights are missing, pickled or damaged, or they and the decoder do not fit each other.
    """
    require("peft", "train")
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import cast_adapter_dtype

    where = f"model {checkpoint.name!r}: its adapter"
    read_adapter_config(checkpoint)
    files = [checkpoint.file(ADAPTER_CONFIG), checkpoint.file(ADAPTER_FILE)]
    if files[1] is None:
        pickled = checkpoint.has(PICKLED_ADAPTER)
        raise CheckpointError(
            f"{where} holds {PICKLED_ADAPTER} only: pickled weights can run code, so only {ADAPTER_FILE} is read; "
            "convert it, or take a revision with safetensors"
            if pickled
            else f"{where} holds no weights: there is no {ADAPTER_FILE}"
        )
    pattern = _outside_names(model)
    weights, prefixes, above = _read_weights(where, files[1], model, pattern)
    if not weights:
        if above:
            return  # every weight belongs to a layer that is not loaded: the layers that are have none to add
        raise CheckpointError(f"{where} holds no weight for this decoder ({type(model).__name__})")
    try:
        config: Any = PeftConfig.from_pretrained(os.path.dirname(str(files[0])))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{where} has a configuration that peft cannot read: {error}") from error
    try:
        config.inference_mode = True
        resize_embeddings(model, weights, config, where)
        _rename_targets(config, model, pattern, prefixes)
        inject_adapter_in_model(config, model, "default")
        if any(weight.dtype == torch.float32 for weight in weights.values()):
            # On a decoder in half precision they would be rounded to its precision.
            cast_adapter_dtype(model, "default")
        result: Any = set_peft_model_state_dict(model, weights, "default")
    except KeyError as error:
        raise CheckpointError(f"{where} lacks the weight {error.args[0]}, which its configuration asks for") from error
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:2])
        raise CheckpointError(f"{where} cannot be put on {type(model).__name__}: {reason}") from error
    model._hf_peft_config_loaded = True
    wrapped = _wrappers(model)
    if lacking := sorted(name for name in result.missing_keys if _is_adapters(name, wrapped)):
        raise CheckpointError(
            f"{where} lacks {counted(len(lacking), 'weight')} that its configuration asks for: {_few(lacking)}; "
            f"{inflected(len(lacking), 'it', 'they')} would be random. It holds {_few(sorted(weights))}"
        )
    depth = model.config.num_hidden_layers
    # A module outside the layers (a head for a task, a tail that is not read) has no say in what is read.
    if unknown := sorted(name for name in result.unexpected_keys if not is_needed(name, 0) and is_needed(name, depth)):
        raise CheckpointError(
            f"{where} holds {counted(len(unknown), 'weight')} that its configuration or {type(model).__name__} has no "
            f"place for: {_few(unknown)}"
        )
    model.train(False)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _outside_names(model: PreTrainedModel) -> re.Pattern[str]:
    """What stands before a decoder's own names in an adapter that was trained on a model around it."""
    around = re.escape(model.base_model_prefix or "model")
    return re.compile(rf"^(?:base_model\.model\.)?((?:{around}\.)?(?:(?:language_model|text_model)\.)?(?:model\.)?)")


def _read_weights(
    where: str, path: str, model: PreTrainedModel, pattern: re.Pattern[str]
) -> tuple[dict[str, Tensor], set[str], bool]:
    """The weights of the decoder's layers, by its own names; the prefixes these had; whether there are layers above."""
    from safetensors import SafetensorError, safe_open

    depth = model.config.num_hidden_layers
    weights, prefixes, above = {}, set(), False
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                name = pattern.sub("", key)
                if is_needed(name, depth):
                    weights[name] = file.get_tensor(key)
                    prefixes.add(pattern.match(key)[1])  # type: ignore[index]
                else:
                    above = above or is_needed(name, _ALL_LAYERS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{where} has a damaged file {ADAPTER_FILE}: {error}; download it again") from error
    return weights, prefixes, above


def _rename_targets(config: Any, model: PreTrainedModel, pattern: re.Pattern[str], prefixes: set[str]) -> None:
    """Give an adapter's configuration the decoder's own names, where it speaks of a model around the decoder."""
    targets = getattr(config, "target_modules", None)
    names = [name for name, _ in model.named_modules()]
    if isinstance(targets, str) and targets != "all-linear":
        # A regular expression for whole names.
        matched = [name for name in names if any(re.fullmatch(targets, prefix + name) for prefix in prefixes)]
        config.target_modules = set(matched) or targets
    elif targets and not isinstance(targets, str):
        ends = tuple(f".{pattern.sub('', name)}" for name in targets)
        layers = getattr(config, "layers_to_transform", None)
        if layers is None:
            config.target_modules = {end[1:] for end in ends}
        else:
            # peft finds a layer's number only behind two names, and a decoder's own names begin with the layers.
            chosen = {layers} if isinstance(layers, int) else set(layers)
            numbered = [(name, re.search(r"\.(\d+)\.", name)) for name in names if f".{name}".endswith(ends)]
            config.target_modules = {name for name, number in numbered if number and int(number[1]) in chosen}
            config.layers_to_transform = config.layers_pattern = None
    for by_name in ("rank_pattern", "alpha_pattern"):
        if given := getattr(config, by_name, None):
            setattr(config, by_name, {pattern.sub("", key.removeprefix("^")): value for key, value in given.items()})
    if whole := getattr(config, "modules_to_save", None):
        # A head that was trained along is not here, and nothing that is read depends on it.
        held = [name for name in whole if any(f".{module}".endswith(f".{name}") for module in names)]
        config.modules_to_save = held or None


def save(model: PreTrainedModel, folder: str, *, base_name: str, with_base: bool, own_folder: bool = False) -> None:
    """Write a decoder, and its adapter where it has one.

    Args:
        model: with or without an adapter.
        folder: where to.
        base_name: hub id of the decoder, or ``"bundled"``.
        with_base: also write the weights under the adapter, so that the folder needs nothing else.
        own_folder: whether the folder holds an earlier save of this library, whose weights may be removed.

    Raises:
        OutputError: the adapters are in a state that a folder cannot record, with what to do about it.
    """
    if "peft" in sys.modules:
        from peft import PeftModel

        held: Any = model
        if isinstance(held, PeftModel):  # put in place of the decoder, which it holds
            held = held.get_base_model()
        model = held
    wrapped = _wrappers(model)
    _check_unmerged(wrapped)
    if not wrapped or not getattr(model, "peft_config", None):
        # Left over from an earlier save, it would be taken for an adapter of this model.
        remove_saved(folder, ADAPTER_CONFIG, ADAPTER_FILE)
        remove_weights(folder)
        _write_model(model, folder, wrapped)
        return
    name = _sole_adapter(model, wrapped)
    if with_base or own_folder:
        # Weights of an earlier save would be taken for the base of this adapter.
        remove_weights(folder)
    config = model.peft_config[name]
    # peft would ask a hub about a base that is named; it is named afterwards, in the file.
    config.base_model_name_or_path = None
    if with_base:
        _write_model(model, folder, wrapped)
    with _told(model, has_adapter=True):
        model.save_pretrained(folder)
    if not with_base and (matrix := matrix_with_adapter(model)):
        file = Path(folder) / ADAPTER_FILE
        save_file({**load_file(file), **matrix}, file, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    path = Path(folder) / ADAPTER_CONFIG
    written = json.loads(path.read_text("utf-8"))
    if with_base:
        # A path of this machine would mean nothing elsewhere, so a base that lies in the same folder has no name.
        written.update(base_model_name_or_path=None, revision=None)
        if isinstance(written.get("init_lora_weights"), str):
            # Some starts (PiSSA, OLoRA) change the base, and the base written here is the changed one.
            written["init_lora_weights"] = True
    else:
        written["base_model_name_or_path"] = base_name
    path.write_text(json.dumps(written, indent=2), "utf-8")


def merge(model: PreTrainedModel) -> None:
    """Add a decoder's adapter to the weights under it, and take it off.

    Raises:
        OutputError: there are several adapters, or the one is not in use.
    """
    wrapped = _wrappers(model)
    _sole_adapter(model, wrapped)
    for name, wrapper in wrapped.items():
        wrapper.merge(safe_merge=True)
        around, _, own = name.rpartition(".")
        setattr(model.get_submodule(around), own, wrapper.get_base_layer())
    del model.peft_config
    model._hf_peft_config_loaded = False


def _write_model(model: PreTrainedModel, folder: str, wrapped: dict[str, Any]) -> None:
    """Write a decoder without its adapters, under its plain names."""
    with _told(model, has_adapter=False):
        if wrapped:
            named = {_base_name(name, wrapped): tensor for name, tensor in model.state_dict().items()}
            model.save_pretrained(folder, state_dict={name: tensor for name, tensor in named.items() if name})
        else:
            model.save_pretrained(folder)


@contextmanager
def _told(model: PreTrainedModel, *, has_adapter: bool) -> Iterator[None]:
    """Transformers writes either the adapter or the model, as its own flag says, which peft alone does not set."""
    before = getattr(model, "_hf_peft_config_loaded", False)
    model._hf_peft_config_loaded = has_adapter
    try:
        yield
    finally:
        model._hf_peft_config_loaded = before


def _wrappers(model: PreTrainedModel) -> dict[str, Any]:
    """The modules that adapters have put around a decoder's own, by path."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    }


def _own(wrapper: nn.Module) -> str:
    """Where a wrapper keeps the decoder's own module, as the names of its weights have it."""
    held = ("token_adapter", "original_module", "base_layer")
    return next(name for name in held if name in wrapper._modules)


def _base_name(name: str, wrapped: dict[str, Any]) -> str:
    """A weight's name without wrappers; empty for an adapter's weight."""
    parts = name.split(".")
    plain = []
    for position, part in enumerate(parts):
        wrapper = wrapped.get(".".join(parts[:position]))
        if wrapper is None:
            plain.append(part)
        elif part != _own(wrapper):
            return ""
    return ".".join(plain)


def _is_adapters(name: str, wrapped: dict[str, Any]) -> bool:
    """Whether a weight is one that an adapter brings along, by the innermost wrapper that it lies in."""
    parts = name.split(".")
    for position in range(len(parts) - 1, 0, -1):
        wrapper = wrapped.get(".".join(parts[:position]))
        if wrapper is not None:
            return parts[position] in wrapper.adapter_layer_names
    return False


def _check_unmerged(wrapped: dict[str, Any]) -> None:
    if merged := sorted(name for name, wrapper in wrapped.items() if getattr(wrapper, "merged", False)):
        raise OutputError(
            f"an adapter is merged into {_few(merged)} and would count twice after loading: call unmerge() on these "
            "modules, or peft's merge_and_unload() to keep the sum without the adapter"
        )


def _sole_adapter(model: PreTrainedModel, wrapped: dict[str, Any]) -> str:
    """The name of the one adapter, after making sure that it is one and in use: a folder cannot record more."""
    names = sorted(model.peft_config)
    if len(names) > 1:
        active = {used for wrapper in wrapped.values() for used in wrapper.active_adapters}
        spare = next((other for other in names if other not in active), names[-1])
        raise OutputError(
            f"the model holds {len(names)} adapters ({', '.join(names)}), and a saved folder holds one: drop the "
            f"others first, as in delete_adapter({spare!r})"
        )
    name: str = names[0]
    if any(wrapper.disable_adapters for wrapper in wrapped.values()):
        raise OutputError(
            f"the adapter {name!r} is disabled, which a saved folder cannot record: call enable_adapters() to save it, "
            f"or delete_adapter({name!r}) to save the model without it"
        )
    if idle := sorted(path for path, wrapper in wrapped.items() if name not in wrapper.active_adapters):
        raise OutputError(
            f"the adapter {name!r} is not active in {_few(idle)}, which a saved folder cannot record: call "
            f"set_adapter({name!r}) to save it, or delete_adapter({name!r}) to save the model without it"
        )
    return name
