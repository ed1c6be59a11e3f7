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

__version__ = "0.1.0"

_HOMES = {
    "METHODS": "recipes",
    "Recipe": "recipes",
    "TEMPLATES": "templates",
    "TruncationWarning": "errors",
    "ValueEncoder": "encoder",
    "ValuembedError": "errors",
    "embed_corpus": "corpus",
    "embed_file": "one_file",
    "info": "model_info",
    "load": "model",
    "train": "finetune",
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
    "info",
    "load",
    "train",
]

if TYPE_CHECKING:
    from valuembed.corpus import embed_corpus
    from valuembed.encoder import ValueEncoder
    from valuembed.errors import TruncationWarning, ValuembedError
    from valuembed.finetune import train
    from valuembed.model import load
    from valuembed.model_info import info
    from valuembed.one_file import embed_file
    from valuembed.recipes import METHODS, Recipe
    from valuembed.templates import TEMPLATES


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"valuembed.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'valuembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
