"""Sentence embeddings from any decoder, without training, by reading attention values.

>>> import valuembed
>>> model = valuembed.load("bundled", method="va")
>>> model.encode(["A cat sleeps.", "A kitten naps."]).shape
(2, 128)

Importing this package is inert and fast: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from valuembed._utils.version import __version__ as __version__

# Folders that were saved before the package had rooms name their modules by paths that are found there.
__path__.append(f"{__path__[0]}/models/early_paths")

_HOMES = {
    "METHODS": "recipes",
    "Recipe": "recipes",
    "TEMPLATES": "recipes",
    "TruncationWarning": "errors",
    "ValueEncoder": "models",
    "ValuembedError": "errors",
    "embed_corpus": "corpus",
    "embed_file": "corpus",
    "from_cache": "models.in_memory",
    "info": "models",
    "load": "models",
    "train": "training",
    "watching": "models.in_memory",
    "wrap": "models.in_memory",
}

__all__ = [
    "METHODS",
    "TEMPLATES",
    "Recipe",
    "TruncationWarning",
    "ValueEncoder",
    "ValuembedError",
    "embed_corpus",
    "embed_file",
    "from_cache",
    "info",
    "load",
    "train",
    "watching",
    "wrap",
]

if TYPE_CHECKING:
    from valuembed.corpus import embed_corpus, embed_file
    from valuembed.errors import TruncationWarning, ValuembedError
    from valuembed.models import ValueEncoder, info, load
    from valuembed.models.in_memory import from_cache, watching, wrap
    from valuembed.recipes import METHODS, TEMPLATES, Recipe
    from valuembed.training import train


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"valuembed.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'valuembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
