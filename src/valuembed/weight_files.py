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
from typing import TYPE_CHECKING

import safetensors

from valuembed.checkpoint import Checkpoint, first_line
from valuembed.errors import CheckpointError

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
_OTHER_MODALITY_KEY = re.compile(r"(?:^|\.)(?:visual|vision_\w+|audio_\w+|multi_modal_projector|embed_vision)\.")


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
        raise CheckpointError(f"model {checkpoint.name!r}: {INDEX_FILE} is damaged: {first_line(error)}") from error
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
