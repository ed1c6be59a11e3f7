"""Writing results: beside their name first, under it only when they are complete."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from valuembed._utils.atomic import check_replaceable
from valuembed._utils.optional import require
from valuembed.errors import OutputError, ValuembedError

if TYPE_CHECKING:
    pass


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Where to write a file or a folder that takes its name when the block ends well, and is gone when it does not.

    A file replaces a file and a folder replaces a folder; whether it may is for the caller to ask.

    Raises:
        OutputError: it cannot be written there.
    """
    path = Path(path)
    check_not_around(path)
    check_replaceable(path)
    # The ending says what is left after a crash, and keeps whoever looks for results from finding it.
    temporary = path.with_name(f".valuembed-{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    except ValuembedError:
        # Some of them are OSErrors too, and say more than a name.
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        # It has no errno, also where the disk is full.
        raise OutputError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def check_not_around(path: Path) -> None:
    """Raise where a path is the working folder or holds it: to whoever works there, a new one would not appear."""
    if path.is_dir() and path.resolve() in ((here := Path.cwd()), *here.parents):
        raise OutputError(
            f"output {path} is the working folder or holds it, and cannot be replaced; name one inside it"
        )


def replace_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8), which is there only when it is complete.

    Raises:
        OutputError: it cannot be written there.
    """
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8")


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
