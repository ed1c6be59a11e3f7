"""Where results go: folders and pictures that can be written, and models saved whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed._utils.atomic import check_replaceable, replacing
from valuembed._utils.optional import require
from valuembed.backbone.checkpoints import CONFIG_FILE
from valuembed.errors import OutputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def results_folder(output: str | os.PathLike[str]) -> Path:
    """Make a folder for tables and charts if need be; called before the work, which would be lost without it.

    Raises:
        MissingExtraError: matplotlib, which draws the charts, is not installed.
        OutputError: the folder cannot be made, or not be written into.
    """
    require("matplotlib", "plot")
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror or error}") from error
    _check_writable(folder)
    return folder


def check_picture(output: str | os.PathLike[str]) -> Path:
    """Raise where a figure cannot be drawn and written, before any work is done. A picture that is there is replaced.

    Raises:
        MissingExtraError: matplotlib, which draws it, is not installed.
        OutputError: it is not named as a PNG, or cannot be written there.
    """
    require("matplotlib", "plot")
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise OutputError(f"picture {path} has the extension {path.suffix!r}; name a file that ends in .png")
    if path.is_dir():
        raise OutputError(f"picture {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"picture {path}: the folder {path.parent} does not exist; create it first")
    _check_writable(path.parent)
    return path


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {folder}: {os.strerror(errno.EACCES)}")


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
