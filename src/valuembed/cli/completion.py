"""What a shell offers while a command is typed. Nothing is loaded or fetched for it: it has to answer at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from valuembed.backbone.checkpoints import BUNDLED
from valuembed.recipes import CLEANINGS, METHODS, PURPOSES, TEMPLATES
from valuembed.vectors import PRECISIONS

DTYPES = ("float32", "bfloat16", "float16", "int8", "fp8")
TASKS = ("sts:", "classification:", "clustering:", "retrieval:", "reranking:", "pairs:")
"""Kinds of local tasks; the names of mteb's own are known to mteb alone, which is slow to ask."""


def starting_with(*legal: str) -> Callable[[str], list[str]]:
    """Offers those of some words that begin as what has been typed."""
    return lambda incomplete: [word for word in legal if word.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """The bundled model and those that the hub's cache holds; where none fits, a shell offers folders by itself."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    try:
        held = sorted(folder.name for folder in cache.glob("models--*"))
    except OSError:
        held = []
    # The cache writes a slash as two hyphens.
    return starting_with(BUNDLED, *(name.removeprefix("models--").replace("--", "/") for name in held))(incomplete)


COMPLETIONS: dict[str, Callable[[str], list[str]]] = {
    "model": models,
    "named": models,
    "method": starting_with(*METHODS),
    "methods": starting_with(*METHODS, "all"),
    "purpose": starting_with(*PURPOSES),
    "template": starting_with("auto", *TEMPLATES, "chat"),
    "cleaning": starting_with(*CLEANINGS),
    "layers": starting_with("all", "half"),
    "dtype": starting_with(*DTYPES),
    "device": starting_with("cpu", "cuda", "mps"),
    "precision": starting_with(*PRECISIONS),
    "engine": starting_with("local", "ray"),
    "kind": starting_with("centre", "whiten", "pca", "filter"),
    "scope": starting_with("attention", "all"),
    "by": starting_with("attention", "contribution"),
    "tasks": starting_with(*TASKS),
    "task": starting_with(*TASKS),
    "dev": starting_with("sts:"),
    "evaluation": starting_with("sts:"),
}
"""By the name of an option or argument."""
