"""Saving a model to a folder, which is there only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed._utils.atomic import check_replaceable, replacing
from valuembed.backbone.checkpoints import CONFIG_FILE
from valuembed.errors import OutputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def check_model_folder(output: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Raise where a model cannot be saved, before any work is done.

    Raises:
        OutputError: there is something already, and it may not be replaced; or it is the working folder.
    """
    path = Path(output)
    check_replaceable(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"output {path} is a file; name a folder for the model")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise OutputError(f"output {path} exists and is not empty; choose another name or overwrite it")
        if not (path / CONFIG_FILE).exists():
            raise OutputError(
                f"output {path} holds no model of valuembed, so it is not overwritten; choose another name"
            )
    return path


def save_model(
    model: SentenceTransformer,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Save a model to a folder, which is there only when it is complete.

    Args:
        model: any.
        output: the folder; those above it are made if need be.
        overwrite: replace a model of this library that is there.
        notes: further text files, by name.

    Raises:
        OutputError: it cannot be written there.
    """
    path = check_model_folder(output, overwrite=overwrite)
    with replacing(path) as new:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(new))
        for name, text in (notes or {}).items():
            (new / name).write_text(text, encoding="utf-8")
