"""Where a model comes from: its configuration, which layers to keep, and which weight files are needed for that.

Nothing is asked of a hub, and nothing is read from disk, that the chosen layers do not need.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file, has_file

from valuembed.errors import CheckpointError

BUNDLED = "bundled"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# Where an image-text checkpoint keeps its text decoder, as saved by the releases of transformers so far.
TEXT_DECODER_KEYS = {r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": ""}

_LAYER_KEY = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
_HEAD_KEY = re.compile(r"(?:^|\.)(?:lm_head|embed_out|score)\.")
_HEAD_WEIGHT = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection)\.weight$")
_EMBEDDING_WEIGHT = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte)\.weight$")
_OTHER_MODALITY_KEY = re.compile(r"(?:^|\.)(?:visual|vision_\w+|audio_\w+|multi_modal_projector|embed_vision)\.")


@dataclass(frozen=True)
class Checkpoint:
    """A place that holds a model, and the rights to read it.

    Attributes:
        name: as the user wrote it: a hub id, a folder, or ``"bundled"``.
        location: what transformers is given: a hub id or a folder.
        hub: keyword arguments for everything that may reach a hub.
        trust_remote_code: whether code that comes with the checkpoint may run.
    """

    name: str
    location: str
    hub: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return os.path.isdir(self.location)

    @property
    def public_name(self) -> str:
        """A name that is safe to record: a folder's own name, never its path."""
        return Path(self.location).name if self.is_local and self.name != BUNDLED else self.name

    @property
    def commit(self) -> str | None:
        """Commit of a hub id, as the hub's cache files it; None for a folder."""
        # The repository of an adapter may hold no other configuration than the adapter's.
        for filename in () if self.is_local else ("config.json", ADAPTER_CONFIG):
            if found := re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", self.file(filename) or ""):
                return found.group(1)
        return None

    def file(self, filename: str) -> str | None:
        """Local path of one of its files (downloaded if need be), or None where there is no such file.

        Raises:
            CheckpointError: the hub does not know the id, or refuses it, or cannot be reached.
        """
        if self.is_local:
            path = os.path.join(self.location, filename)
            return path if os.path.isfile(path) else None
        try:
            return cached_file(self.location, filename, _raise_exceptions_for_missing_entries=False, **self.hub)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model {self.name!r}: {filename} cannot be fetched: {_first_line(error)}") from error

    def has(self, filename: str) -> bool:
        """Whether it holds a file, found out without downloading it.

        Raises:
            CheckpointError: the hub does not know the id, or refuses it.
        """
        try:
            return bool(has_file(self.location, filename, **self.hub))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model {self.name!r}: {filename} cannot be fetched: {_first_line(error)}") from error


def locate(
    model: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Find out what ``model`` names: ``"bundled"``, a folder, or a hub id.

    Raises:
        CheckpointError: a path that does not exist, a file, or a folder that holds no model.
    """
    name = os.fspath(model)
    hub = {
        "subfolder": subfolder,
        "revision": revision,
        "token": token,
        "cache_dir": cache_folder,
        "local_files_only": local_files_only,
    }
    if name == BUNDLED:
        return Checkpoint(BUNDLED, str(Path(__file__).parent / BUNDLED))
    if os.path.isdir(name):
        if not any(os.path.isfile(os.path.join(name, file)) for file in ("config.json", ADAPTER_CONFIG)):
            held = ", ".join(sorted(os.listdir(name))[:6]) or "nothing"
            raise CheckpointError(
                f"folder {name!r} holds no model: neither config.json nor {ADAPTER_CONFIG} in it (it holds {held})"
            )
    elif os.path.exists(name):
        raise CheckpointError(f"{name!r} is a file; give the folder that holds it, a hub id, or {BUNDLED!r}")
    elif name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise CheckpointError(
            f"no folder {name!r}; give a folder that exists, a hub id such as Qwen/Qwen3-0.6B, or {BUNDLED!r}"
        )
    return Checkpoint(name, name, hub, trust_remote_code)


def read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The configuration of the text decoder; an image-text checkpoint gives that part of it alone.

    Raises:
        CheckpointError: no readable configuration, or one that wants to run code of its own without leave.
    """
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.location, trust_remote_code=checkpoint.trust_remote_code, **checkpoint.hub
        )
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"model {checkpoint.name!r} wants to run code of its own; read that code, and if you trust it load "
                "with trust_remote_code=True"
            ) from error
        nowhere = "" if checkpoint.is_local else " (and there is no folder of that name)"
        raise CheckpointError(
            f"model {checkpoint.name!r}: its configuration cannot be read: {_first_line(error)}{nowhere}"
        ) from error
    text_config: PretrainedConfig = config.get_text_config(decoder=True)
    if text_config is not config:
        for inherited in ("quantization_config", "dtype", "auto_map"):
            if getattr(text_config, inherited, None) is None and getattr(config, inherited, None) is not None:
                setattr(text_config, inherited, getattr(config, inherited))
        # The head belongs to the whole model, and so does the word on whether it is the input embeddings again.
        text_config.tie_word_embeddings = getattr(config, "tie_word_embeddings", False)
    if any(getattr(part, "is_encoder_decoder", False) for part in (config, text_config)):
        raise CheckpointError(
            f"model {checkpoint.name!r} ({config.model_type}) is an encoder-decoder; a decoder is needed"
        )
    return text_config


def cut_config(config: PretrainedConfig, num_layers: int) -> PretrainedConfig:
    """A copy of a configuration that describes the first ``num_layers`` layers only.

    Every per-layer list is cut too: without that the copy loads, and then cannot be saved.
    """
    whole = config.num_hidden_layers
    cut = deepcopy(config)
    per_layer = {
        name: list(value)[:num_layers]
        for name, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == whole and ("layer" in name or "block" in name)
    }
    for name, value in {"num_hidden_layers": num_layers, **per_layer}.items():
        setattr(cut, name, value)
    return cut


@contextmanager
def weights_folder(checkpoint: Checkpoint, keep_layers: int, tail: tuple[str, ...] = ()) -> Iterator[str]:
    """A folder from which transformers loads exactly the needed tensors.

    It holds an index of the needed tensors, pointing at the files that hold them; other files of the checkpoint are
    neither downloaded nor opened.

    Args:
        checkpoint: the place.
        keep_layers: layers ``0 .. keep_layers - 1`` are needed.
        tail: paths of the modules after the last layer, where these are not needed.

    Raises:
        CheckpointError: there are no weights, a file is missing or damaged, or the weights are pickled.
    """
    with tempfile.TemporaryDirectory(prefix="valuembed-") as folder:
        weight_map = _weight_map(checkpoint, keep_layers, tail)
        with open(os.path.join(folder, INDEX_FILE), "w", encoding="utf-8") as file:
            json.dump({"metadata": {}, "weight_map": weight_map}, file)
        yield folder


def read_head(checkpoint: Checkpoint, config: PretrainedConfig) -> Tensor:
    """The weight of the language model head, and nothing else: only the file that holds it is fetched.

    Args:
        checkpoint: the place.
        config: of its text decoder.

    Returns:
        ``[vocabulary, m]`` in the checkpoint's precision; where the head is tied to the input embeddings, these.

    Raises:
        CheckpointError: it holds no head, or a quantized one, or its files are missing or damaged.
    """
    listed, _ = _listed(checkpoint)
    named = [name for name in listed if not (_LAYER_KEY.search(name) or _OTHER_MODALITY_KEY.search(name))]
    found = [name for name in named if _HEAD_WEIGHT.search(name)]
    if not found and getattr(config, "tie_word_embeddings", False):
        found = [name for name in named if _EMBEDDING_WEIGHT.search(name)]
    if len(found) != 1:
        raise CheckpointError(
            f"model {checkpoint.name!r} holds {len(found) or 'no'} weights of a language model head"
            + (f": {', '.join(found)}" if found else "; a folder saved by this library has none, its source has")
        )
    path = _shard(checkpoint, listed[found[0]])
    with _reading(checkpoint, path), safetensors.safe_open(path, framework="pt") as file:
        head: Tensor = file.get_tensor(found[0])
    if head.dim() != 2 or not head.is_floating_point():
        raise CheckpointError(
            f"model {checkpoint.name!r}: {found[0]} is {head.dtype} of shape {tuple(head.shape)}, which is quantized; "
            "name the model it was made from"
        )
    return head


def _listed(checkpoint: Checkpoint) -> tuple[dict[str, str], str]:
    """The file of each tensor, and the name of the file that says so.

    Raises:
        CheckpointError: there are no safetensors, or what lists them is damaged.
    """
    index = checkpoint.file(INDEX_FILE)
    if index is not None:
        return _read_index(checkpoint, index), INDEX_FILE
    single = checkpoint.file(SINGLE_FILE)
    if single is None:
        raise _without_safetensors(checkpoint)
    return dict.fromkeys(_tensor_names(checkpoint, single), SINGLE_FILE), SINGLE_FILE


def _shard(checkpoint: Checkpoint, name: str) -> str:
    path = checkpoint.file(name)
    if path is None:
        raise CheckpointError(f"model {checkpoint.name!r}: weight file {name} is missing")
    return path


def _weight_map(checkpoint: Checkpoint, keep_layers: int, tail: tuple[str, ...]) -> dict[str, str]:
    listed, lister = _listed(checkpoint)
    needed = {name: shard for name, shard in listed.items() if is_needed(name, keep_layers, tail)}
    if not needed:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {lister} names none of the weights that are needed; it names "
            f"{', '.join(sorted(listed)[:3]) or 'nothing'}"
        )
    paths = {}
    for shard in sorted(set(needed.values())):
        path = _shard(checkpoint, shard)
        if lister == INDEX_FILE:
            _tensor_names(checkpoint, path)  # here a damaged file can still be named
        paths[shard] = os.path.abspath(path)
    return {name: paths[shard] for name, shard in needed.items()}


def _without_safetensors(checkpoint: Checkpoint) -> CheckpointError:
    pickled = next((name for name in PICKLED if checkpoint.has(name)), None)
    return CheckpointError(
        f"model {checkpoint.name!r} holds {pickled} only: pickled weights can run code, so only safetensors are read; "
        "convert it, or take a revision with safetensors"
        if pickled
        else f"model {checkpoint.name!r} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}"
    )


def _read_index(checkpoint: Checkpoint, path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            listed = json.load(file)["weight_map"]
        if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
            raise TypeError("weight_map has to name a file for each weight")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"model {checkpoint.name!r}: {INDEX_FILE} is damaged: {_first_line(error)}") from error
    # An index is data from elsewhere: it may name files of its own folder and nothing else.
    for shard in listed.values():
        if os.path.basename(shard) != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"model {checkpoint.name!r}: {INDEX_FILE} names {shard!r}, which is no safetensors file beside it"
            )
    return listed


def _tensor_names(checkpoint: Checkpoint, path: str) -> list[str]:
    with _reading(checkpoint, path), safetensors.safe_open(path, framework="pt") as file:
        return list(file.keys())


@contextmanager
def _reading(checkpoint: Checkpoint, path: str) -> Iterator[None]:
    """Turn what safetensors says of a damaged file into an error that names it."""
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {os.path.basename(path)} is damaged: {_first_line(error)}; download it again"
        ) from error


def is_needed(tensor: str, keep_layers: int, tail: tuple[str, ...] = ()) -> bool:
    """Whether a decoder cut to its first ``keep_layers`` layers may need this tensor.

    Leaves out what certainly is not needed: later layers, language model heads, other modalities, and the modules of
    ``tail``, which run after the last layer.
    """
    if _HEAD_KEY.search(tensor) or _OTHER_MODALITY_KEY.search(tensor):
        return False
    layer = _LAYER_KEY.search(tensor)
    if layer is not None:
        return int(layer.group(1)) < keep_layers
    module = f".{tensor.rpartition('.')[0]}"
    return not any(module.endswith(f".{path}") for path in tail)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
