"""Which weight files a checkpoint holds, and which of their tensors a cut decoder needs.

Nothing is asked of a hub, and nothing is read from disk, that the chosen layers do not need.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import safetensors

from valuembed.backbone.checkpoints.location import Checkpoint, first_line
from valuembed.backbone.checkpoints.misplaced_files import distributed_shards, few, other_weights
from valuembed.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# Where an image-text checkpoint keeps its text decoder, as saved by the releases of transformers so far.
TEXT_DECODER_KEYS = {r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": ""}

_LAYER_KEY = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
_HEAD_KEY = re.compile(r"(?:^|\.)(?:lm_head|embed_out|score)\.")
_HEAD_WEIGHT = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection)\.weight$")
_EMBEDDING_WEIGHT = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte)\.weight$")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")

_COMPUTED = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that are computed in, as safetensors calls them."""

_OTHER_MODALITY_KEY = re.compile(
    r"(?:^|\.)(?:visual|vision_\w+|audio_\w+|multi_modal_projector|connector|embed_vision)\."
)


def find_weights(
    checkpoint: Checkpoint, config: PretrainedConfig, keep_layers: int, tail: tuple[str, ...] = ()
) -> dict[str, str]:
    """Find the file of each needed tensor; files that hold none are neither downloaded nor opened.

    Args:
        checkpoint: the place.
        config: of its text decoder.
        keep_layers: layers ``0 .. keep_layers - 1`` are needed.
        tail: paths of the modules after the last layer, where these are not needed.

    Returns:
        The path of the file that holds it, by the tensor's name.

    Raises:
        CheckpointError: there are no weights, a file is missing or damaged, the weights are pickled, files hold
            different tensors of one name, or numbers that mean nothing without a quantization that is not recorded.
    """
    listed, lister = _listed(checkpoint, config)
    needed = {name: shard for name, shard in listed.items() if is_needed(name, keep_layers, tail)}
    if not needed:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {lister} names none of the weights that are needed; it names "
            f"{', '.join(sorted(listed)[:3]) or 'nothing'}"
        )
    quantized = bool(getattr(config, "quantization_config", None))
    found: dict[str, str] = {}
    for shard in sorted(set(needed.values())):
        path = os.path.abspath(_shard(checkpoint, shard))
        # As transformers does, all of an opened file counts, whether or not an index lists it.
        for name, dtype in _tensor_types(checkpoint, path).items():
            if not is_needed(name, keep_layers, tail):
                continue
            if not quantized and name.endswith("weight") and dtype not in _COMPUTED:
                raise CheckpointError(
                    f"model {checkpoint.name!r}: {name} in {shard} is {dtype}, which is quantized, and config.json has "
                    "no quantization_config that says how; take the config.json that came with these weights"
                )
            if name in found:
                _check_same(checkpoint, name, found[name], path)
            found[name] = path
    return found


def read_weights(checkpoint: Checkpoint, files: dict[str, str]) -> dict[str, Tensor]:
    """Map tensors into memory: a page is read from the disk when it is first used.

    Args:
        checkpoint: the place, for errors.
        files: what :func:`find_weights` found.

    Raises:
        CheckpointError: a file is damaged.
    """
    weights: dict[str, Tensor] = {}
    for path in sorted(set(files.values())):
        with _reading(checkpoint, path), safetensors.safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name, place in files.items() if place == path}
    return weights


@contextmanager
def index_folder(files: dict[str, str]) -> Iterator[str]:
    """Write an index of tensors that lie elsewhere into a temporary folder, for what has to be shown files.

    Args:
        files: what :func:`find_weights` found.

    Raises:
        CheckpointError: there is no place for temporary files, or no space in it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="valuembed-")
        with open(os.path.join(folder.name, INDEX_FILE), "w", encoding="utf-8") as file:
            json.dump({"metadata": {}, "weight_map": files}, file)
    except OSError as error:
        raise CheckpointError(
            "quantized weights, and those of a device_map, are loaded by an index in a folder for temporary files, "
            f"and none can be written (TMPDIR is {os.environ.get('TMPDIR', 'not set')!r}): {first_line(error)}; set "
            "TMPDIR to a folder that can be written"
        ) from error
    with folder:
        yield folder.name


def read_head(checkpoint: Checkpoint, config: PretrainedConfig) -> Tensor:
    """The weight of the language model head, and nothing else: only the file that holds it is fetched.

    Args:
        checkpoint: the place.
        config: of its text decoder.

    Returns:
        ``[vocabulary, m]`` in the checkpoint's precision; where the head is tied to the input embeddings, these.

    Raises:
        CheckpointError: it holds no head, or a quantized one, or its files are missing or damaged.
        UnsupportedModelError: a GGUF file holds it in numbers of a type that is not read.
    """
    if checkpoint.gguf is not None:
        from valuembed.backbone import read_gguf_head

        return read_gguf_head(checkpoint, config)
    listed, _ = _listed(checkpoint, config)
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


def remove_weights(folder: str) -> None:
    """Remove the weights that a folder holds, before others take their place.

    Whichever of single file, index and shards is written next, what is left of the others would count instead of it.
    Removing also leaves alone what a loaded model has mapped into memory, which writing over it would not.
    """
    held = os.listdir(folder) if os.path.isdir(folder) else []
    remove_saved(folder, SINGLE_FILE, INDEX_FILE, *(name for name in held if _SHARD.fullmatch(name)))


def remove_saved(folder: str, *names: str) -> None:
    """Remove files that a save replaces or makes meaningless, as far as they are there.

    Raises:
        OutputError: one cannot be removed.
    """
    for name in names:
        try:
            os.remove(os.path.join(folder, name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OutputError(f"{name} of an earlier save cannot be removed from {folder}: {error.strerror}") from error


def _listed(checkpoint: Checkpoint, config: PretrainedConfig) -> tuple[dict[str, str], str]:
    """The file of each tensor, and the name of the file that says so: looked for in the order of transformers.

    Raises:
        CheckpointError: there are no safetensors, or what lists them is damaged.
    """
    if checkpoint.is_local and (parts := distributed_shards(checkpoint.location)):
        raise CheckpointError(
            f"model {checkpoint.name!r} holds {few(parts)}, as training on several machines writes weights, and "
            "transformers takes them before all others; join them into one file, or move them away if they are stale"
        )
    # A configuration may name its weights itself, and then nothing else is looked for.
    named = getattr(config, "transformers_weights", None)
    for lister in (SINGLE_FILE, INDEX_FILE) if named is None else (_beside(checkpoint, named, "config.json"),):
        path = checkpoint.file(lister)
        if path is not None and lister.endswith(".json"):
            return _read_index(checkpoint, path), lister
        if path is not None:
            return dict.fromkeys(_tensor_types(checkpoint, path), lister), lister
    raise _without_safetensors(checkpoint, named)


def _beside(checkpoint: Checkpoint, name: Any, lister: str, *endings: str) -> str:
    """A file that another one names; what names it is data from elsewhere, and may name files of its folder only."""
    endings = endings or (".safetensors", ".safetensors.index.json")
    if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(endings):
        raise CheckpointError(
            f"model {checkpoint.name!r}: {lister} names {name!r}, which is no safetensors file beside it"
        )
    return name


def _shard(checkpoint: Checkpoint, name: str) -> str:
    path = checkpoint.file(name)
    if path is None:
        raise CheckpointError(f"model {checkpoint.name!r}: weight file {name} is missing; download it again")
    return path


def _check_same(checkpoint: Checkpoint, name: str, *paths: str) -> None:
    """Make sure that files which hold a tensor of one name hold the same numbers."""
    tensors = [read_weights(checkpoint, {name: path})[name] for path in paths]
    if tensors[0].shape != tensors[1].shape or not tensors[0].equal(tensors[1]):
        raise CheckpointError(
            f"model {checkpoint.name!r}: {' and '.join(map(os.path.basename, paths))} hold different numbers for "
            f"{name}, so they are of two models; download them again"
        )


def _without_safetensors(checkpoint: Checkpoint, named: str | None) -> CheckpointError:
    sought = f"neither {SINGLE_FILE} nor {INDEX_FILE}" if named is None else f"config.json names {named}"
    pickled = next((name for name in PICKLED if checkpoint.has(name)), None)
    if pickled:
        return CheckpointError(
            f"model {checkpoint.name!r} holds {pickled} only: pickled weights can run code, so only safetensors are "
            "read; convert it, or take a revision with safetensors"
        )
    others = other_weights(checkpoint.location) if checkpoint.is_local else None
    return CheckpointError(f"model {checkpoint.name!r} holds no weights: {sought}{f'; {others}' if others else ''}")


def _read_index(checkpoint: Checkpoint, path: str) -> dict[str, str]:
    try:
        with open(path, encoding="utf-8") as file:
            listed = json.load(file)["weight_map"]
        if not isinstance(listed, dict) or not all(isinstance(shard, str) for shard in listed.values()):
            raise TypeError("weight_map has to name a file for each weight")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {os.path.basename(path)} is damaged: {first_line(error)}"
        ) from error
    for shard in listed.values():
        _beside(checkpoint, shard, os.path.basename(path), ".safetensors")
    return listed


def _tensor_types(checkpoint: Checkpoint, path: str) -> dict[str, str]:
    """Names of the tensors in a file, and how safetensors calls the type of each."""
    with _reading(checkpoint, path), safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - it is no mapping


@contextmanager
def _reading(checkpoint: Checkpoint, path: str) -> Iterator[None]:
    """Turn what safetensors says of a damaged file into an error that names it."""
    try:
        yield
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {os.path.basename(path)} is damaged: {first_line(error)}; download it again"
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
