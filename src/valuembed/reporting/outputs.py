"""Where results go: folders and pictures that can be written, and models saved whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from valuembed._utils.optional import require
from valuembed.errors import OutputError


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
