"""Find the documents of a folder: which files are read, and why others are not."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from valuembed.data.documents.kinds import why_not_read
from valuembed.errors import InputError

LEFT_OUT = ("__pycache__", "node_modules")
"""Folders that programs fill for themselves; so is a virtual environment of Python, which ``pyvenv.cfg`` marks."""


@dataclass(frozen=True)
class DocumentFile:
    """A file of a folder that is read as a document.

    Attributes:
        name: its path inside the folder, with ``/``.
        path: where it is.
        size: in bytes, when it was found.
        modified: when it was last written, in nanoseconds.
    """

    name: str
    path: Path
    size: int
    modified: int


@dataclass(frozen=True)
class SetAside:
    """A file, or a folder, that is not read.

    Attributes:
        name: as of :class:`DocumentFile`.
        reason: why not, and what to do where something can be done.
    """

    name: str
    reason: str


def find_documents(folder: str | os.PathLike[str]) -> tuple[list[DocumentFile], list[SetAside]]:
    """Walk through a folder and all folders in it.

    Hidden files and folders are left out. Links are not followed out of the folder: what they lead to inside of it is
    found in its own place, and a link that leads outside is set aside. So no loop of links is entered.

    Args:
        folder: to walk through; it may be a link itself.

    Returns:
        The files that are read and those that are not, each sorted by name.

    Raises:
        InputError: there is no such folder.
    """
    given, root = os.fspath(folder), os.path.realpath(folder)
    if not os.path.isdir(root):
        raise InputError(f"{given} is {'a file' if os.path.exists(root) else 'not there'}; give a folder of documents")
    found: dict[str, DocumentFile] = {}
    aside: list[SetAside] = []
    links: list[str] = []

    def refuse(error: OSError) -> None:
        aside.append(SetAside(_name(error.filename, root), f"the folder cannot be read: {error.strerror or error}"))

    for here, folders, files in os.walk(root, onerror=refuse):
        if here != root and "pyvenv.cfg" in files:
            aside.append(SetAside(_name(here, root), "a virtual environment of Python, no folder of documents"))
            folders.clear()
            continue
        for name in [name for name in folders if name in LEFT_OUT]:
            aside.append(SetAside(_name(os.path.join(here, name), root), "filled by programs, no folder of documents"))
        paths = [os.path.join(here, name) for name in [*folders, *files] if not name.startswith(".")]
        linked = [path for path in paths if os.path.islink(path)]
        links += linked
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in LEFT_OUT)
        kept = {os.path.join(here, name) for name in folders}
        for path in paths:
            if path not in kept and path not in linked and not os.path.isdir(path):
                _take(path, path, root, found, aside)
    real = {os.path.realpath(file.path) for file in found.values()}
    for path in links:
        target = os.path.realpath(path)
        if not os.path.exists(target):
            aside.append(SetAside(_name(path, root), f"a link to {_shown(os.readlink(path))}, which leads nowhere"))
        elif not Path(target).is_relative_to(root):
            reason = f"a link out of the folder, to {_shown(target)}; copy that into the folder to have it read"
            aside.append(SetAside(_name(path, root), reason))
        elif os.path.isfile(target) and target not in real:
            _take(path, target, root, found, aside)
    return [found[name] for name in sorted(found)], sorted(aside, key=lambda each: each.name)


def _take(path: str, target: str, root: str, found: dict[str, DocumentFile], aside: list[SetAside]) -> None:
    """Add a file to those that are read, or to those that are not."""
    name = _name(path, root)
    reason: str | None
    try:
        state = os.stat(target)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    else:
        if not stat.S_ISREG(state.st_mode):
            reason = "a pipe, a socket or a device, no file"
        elif os.path.relpath(path, root).replace(os.sep, "/") != name:
            reason = "its name is not valid UTF-8; rename it"
        elif (reason := why_not_read(Path(name), state.st_size)) is None:
            found[name] = DocumentFile(name, Path(path), state.st_size, state.st_mtime_ns)
    if reason:
        aside.append(SetAside(name, reason))


def _name(path: str, root: str) -> str:
    """A path inside the folder as it is shown and stored."""
    return _shown(os.path.relpath(path, root).replace(os.sep, "/"))


def _shown(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
