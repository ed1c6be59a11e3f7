"""What a folder saved by sentence-transformers says of how it is used: prompts, similarity, token limit, pooling."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from valuembed.backbone.checkpoints.location import Checkpoint, first_line
from valuembed.errors import CheckpointError

MODULES_FILE = "modules.json"
SETTINGS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"

ROLES = ("query", "document")
"""Prompts that a ``SentenceTransformer`` has in any case, empty unless they are given."""

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


@dataclass(frozen=True)
class SavedSettings:
    """Settings beside a model's weights.

    Attributes:
        prompts: instructions by name.
        default_prompt_name: the one that is used where none is asked for.
        similarity_fn_name: how vectors are compared.
        max_tokens: the longest sequence that is fed.
        first: class of the first module, the one that turns texts into vectors.
        modules: classes of the modules after the transformer, without normalisation, by their short names.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: Similarity | None = None
    max_tokens: int | None = None
    first: str | None = None
    modules: tuple[str, ...] = ()

    def not_used(self) -> str | None:
        """What of a folder saved by plain sentence-transformers is not used, and what is, for a warning."""
        if not self.modules:
            return None
        kept = [f"prompt {name!r}" for name, prompt in self.prompts.items() if prompt]
        kept += [f"default prompt {self.default_prompt_name!r}"] if self.default_prompt_name else []
        kept += [f"limit of {self.max_tokens} tokens"] if self.max_tokens else []
        return (
            f"saved by sentence-transformers with the modules {', '.join(self.modules)}, which are not used: vectors "
            f"are read from attention instead" + (f"; taken over: {', '.join(kept)}" if kept else "")
        )


def saved_settings(checkpoint: Checkpoint) -> SavedSettings:
    """Read the settings of a folder or hub id saved by sentence-transformers; of any other, there are none.

    Raises:
        CheckpointError: a file is damaged, or names a default prompt that it does not hold.
    """
    modules = _read(checkpoint, MODULES_FILE, list)
    if modules is None:
        return SavedSettings()
    settings = _read(checkpoint, SETTINGS_FILE, dict) or {}
    try:
        first = str(modules[0]["type"]) if modules else None
        types = [str(module["type"]).rpartition(".")[2] for module in modules]
        folder = str(modules[0]["path"]) if modules else ""
        prompts = {str(name): prompt or "" for name, prompt in (settings.get("prompts") or {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"model {checkpoint.name!r}: {MODULES_FILE} or {SETTINGS_FILE} is damaged: {first_line(error)}"
        ) from error
    if wrong := [name for name, prompt in prompts.items() if not isinstance(prompt, str)]:
        raise CheckpointError(f"model {checkpoint.name!r}: {SETTINGS_FILE}: the prompt {wrong[0]!r} is no text")
    default = settings.get("default_prompt_name")
    if default is not None and default not in (*prompts, *ROLES):
        raise CheckpointError(
            f"model {checkpoint.name!r}: {SETTINGS_FILE} names the default prompt {default!r}, and holds "
            f"{', '.join(map(repr, prompts)) or 'none'}"
        )
    limit = (_read(checkpoint, f"{folder}/{TRANSFORMER_FILE}".lstrip("/"), dict) or {}).get("max_seq_length")
    similarity = settings.get("similarity_fn_name")
    return SavedSettings(
        prompts,
        default,
        similarity if similarity in get_args(Similarity) else None,
        limit if isinstance(limit, int) and limit > 0 else None,
        first,
        tuple(name for name in types if name not in ("Transformer", "ValueTransformer", "Calibration", "Normalize")),
    )


def _read(checkpoint: Checkpoint, name: str, kind: type) -> Any:
    path = checkpoint.file(name)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            held = json.load(file)
        if not isinstance(held, kind):
            raise TypeError(f"it holds {type(held).__name__}, not {'a list' if kind is list else 'an object'}")
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"model {checkpoint.name!r}: {name} is damaged: {first_line(error)}") from error
    return held
