"""Files of a checkpoint that cannot be read: what lies there instead, and what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from valuembed.errors import CheckpointError

_OTHER_FORMATS = (
    (r"\.gguf", "a model by itself; give the path of that file"),
    (
        r"\.(?:part|partial|incomplete|crdownload|download|aria2|tmp)",
        "an unfinished download; let it finish or download it again",
    ),
    (
        r"consolidated.*\.(?:safetensors|pth)",
        "weights in their maker's own layout; take the files that are made for transformers",
    ),
    (
        r"model-00001-of-00001\.safetensors",
        "the whole weights, without an index; rename it to model.safetensors",
    ),
    (
        r"model.*-\d{5}-of-\d{5}\.safetensors",
        "a part of the weights, and their index model.safetensors.index.json is not here; download that too",
    ),
    (
        r"model\..+\.safetensors",
        "a variant of the weights; rename it to model.safetensors to use it",
    ),
    (r"adapter_model\.(?:safetensors|bin)", "an adapter's weights; adapter_config.json has to lie beside them"),
    (
        r"(?:tf_model.*\.h5|flax_model.*\.msgpack)",
        "weights for TensorFlow or Flax; take a revision with safetensors",
    ),
    (r"(?:diffusion_pytorch_model.*|.+\.onnx)", "another kind of model; a decoder is needed"),
    (r".+\.(?:pth|pt|ckpt|bin)", "pickled weights, which can run code; convert them to safetensors"),
    (r".+\.safetensors", "weights under another name; rename it to model.safetensors if it holds the whole model"),
)
"""What files without a name that is read are, by their names, and what to do; the first that fits counts."""

GGUF_MAGIC = b"GGUF"
"""The first bytes of llama.cpp's files."""

_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_POINTER = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)
_SHOWN = 4


def check_file(model: str, path: str) -> None:
    """Refuse a file that is something else than its name says: a link to nothing, a git-lfs pointer, a web page.

    Args:
        model: the checkpoint's name, for the error.
        path: of the file, on this machine.

    Raises:
        CheckpointError: naming the file, and what to do.
    """
    if fault := find_fault(path):
        raise CheckpointError(f"model {model!r}: {os.path.basename(path)} {fault}")


def find_fault(path: str) -> str | None:
    """What is wrong with a file, by its first bytes, and what to do; None where they show nothing, or it is not there.

    Args:
        path: of the file, on this machine.
    """
    if not os.path.exists(path):
        if not os.path.islink(path):
            return None
        return f"is a link to {os.readlink(path)!r}, which is not there; copy the file itself, or download it again"
    try:
        with open(path, "rb") as file:
            head = file.read(200)
    except IsADirectoryError:
        return None
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    if not head:
        return "is empty (0 bytes); download it again"
    if head.startswith(_POINTER):
        return (
            "is a git-lfs pointer in place of the file; run `git lfs pull` in its folder (git-lfs has to be installed)"
        )
    if _WEB_PAGE.match(head):
        return "is a web page in place of the file, as saved from a link that did not work; download it again"
    return None


def is_gguf(path: str) -> bool:
    """Whether a file is one of llama.cpp's, whatever its name (Ollama gives its files none)."""
    if path.lower().endswith(".gguf"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == GGUF_MAGIC
    except OSError:
        return False


def other_weights(folder: str) -> str | None:
    """What a folder holds in place of the weights that are read, and what to do; None where it holds nothing alike.

    Args:
        folder: a checkpoint's.
    """
    names = sorted(os.listdir(folder))
    for name in names:
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.exists(path):
            return f"{name} {find_fault(path)}"
    for pattern, meaning in _OTHER_FORMATS:
        expression = re.compile(pattern if not pattern.startswith(r"\.") else f".+{pattern}", re.IGNORECASE)
        if found := [name for name in names if expression.fullmatch(name) and not name.startswith("training_args")]:
            return f"it holds {few(found)}: {meaning}"
    return None


def distributed_shards(folder: str) -> list[str]:
    """Files that training on several machines left, which transformers takes before all others."""
    return sorted(name for name in os.listdir(folder) if _DISTRIBUTED.fullmatch(name))


def models_below(folder: str) -> list[str]:
    """Folders inside a folder that hold a model, also as the hub's cache keeps them, in snapshots."""
    return sorted({os.path.dirname(path) for inside in _folders(folder) for path in _configs(inside)})


def few(names: list[str]) -> str:
    """Names as a list that stays short."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _folders(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entry.path for entry in entries if entry.is_dir())
    except OSError:
        return


def _configs(folder: str) -> Iterator[str]:
    places = [folder, *(_folders(folder) if os.path.basename(folder) == "snapshots" else ())]
    for place in places:
        for name in ("config.json", "adapter_config.json"):
            if os.path.isfile(os.path.join(place, name)):
                yield os.path.join(place, name)
