"""Which files inputs mean, and whether a file is still the one that it was.

A file's name is what it was given as (of a folder, the folder as given and the way inside), so that the same command
gives the same names on another machine too.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from valuembed._utils.text import counted
from valuembed.data.text_rows import check_input, is_readable_kind
from valuembed.data.validation import check_text
from valuembed.errors import InputError

WHOLE = 1 << 24
"""A file up to this size is fingerprinted whole, a larger one by its size and this many bytes spread over it."""

BLOCKS = 64

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """A file of texts.

    Attributes:
        name: what it is called in the output.
        path: where it is.
    """

    name: str
    path: Path

    @classmethod
    def named(cls, name: str) -> Source:
        """A file by its name alone."""
        return cls(name, Path(name))

    @property
    def key(self) -> str:
        """The name made fit for a file's name, and told from all others by 12 hex digits."""
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", self.name.rpartition("/")[2])[:48].strip("._-") or "texts"
        return f"{base}-{hashlib.sha256(self.name.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class State:
    """What a file was when it was looked at.

    Attributes:
        size: in bytes.
        modified: when it was last written to, in nanoseconds.
        digest: of its content, see :func:`fingerprint_file`.
    """

    size: int
    modified: int
    digest: str

    def same_content(self, other: State) -> bool:
        """Whether two looks saw the same content, whenever it was written."""
        return (self.size, self.digest) == (other.size, other.digest)


def fingerprint_file(source: Source, known: State | None = None) -> State:
    """Fingerprint a file: its size, and a SHA-256 over its content.

    Of a file above :data:`WHOLE` bytes, :data:`BLOCKS` blocks spread evenly from its beginning to its end are read
    instead, so that terabytes take seconds. A change that keeps the length of such a file and touches none of them is
    not seen; in a compressed file or in Parquet, whose ends depend on everything before, there hardly is one.

    Args:
        source: the file.
        known: an earlier look; it is believed while size and time of the last writing are the same.

    Raises:
        InputError: it cannot be read, or is being written to.
    """
    try:
        before = source.path.stat()
        if known and (known.size, known.modified) == (before.st_size, before.st_mtime_ns):
            return known
        digest = hashlib.sha256(str(before.st_size).encode())
        with source.path.open("rb") as file:
            for start, length in _blocks(before.st_size):
                file.seek(start)
                digest.update(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {source.path}: {error.strerror or error}") from error
    state = State(before.st_size, before.st_mtime_ns, digest.hexdigest())
    check_unchanged(source, state)
    return state


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    if size <= WHOLE:
        yield 0, size
        return
    length = WHOLE // BLOCKS
    for block in range(BLOCKS):
        yield (size - length) * block // (BLOCKS - 1), length


def check_unchanged(source: Source, state: State) -> None:
    """Raise where a file is not what it was when it was looked at; asks for its size and time only.

    Raises:
        InputError: it was cut, written to or removed.
    """
    try:
        now = source.path.stat()
    except OSError as error:
        raise InputError(f"input {source.path} is gone since this run began: {error.strerror or error}") from error
    if now.st_size != state.size:
        raise InputError(
            f"input {source.path} changed since this run began: it had {counted(state.size, 'byte')} and has "
            f"{now.st_size:,} now"
        )
    if now.st_mtime_ns != state.modified:
        raise InputError(f"input {source.path} changed since this run began: it was written to")


def find_sources(
    inputs: Sequence[str | os.PathLike[str]],
    without: Path | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> tuple[list[Source], list[str]]:
    """The files that files, folders and patterns mean.

    A folder is searched with all folders in it, links to folders included and hidden ones left out; a pattern has
    ``*``, ``?``, ``[...]`` or ``**``. A file that is named twice counts once, under its first name.

    Args:
        inputs: in the order in which they are to be read; what is found in one is sorted.
        without: a folder that is passed over, because it is the output.
        text_column, id_column: as :func:`valuembed.data.check_input` takes them.

    Returns:
        The files, and the names of those found in folders and by patterns that are of no kind that is read.

    Raises:
        InputError: an input does not exist, matches nothing or is of an unknown kind, or there is no file in all of
            them.
    """
    sources: dict[str, Source] = {}
    passed_over = []
    for input in inputs:
        given = os.fspath(input)
        path = Path(given)
        matches = [path]
        if not path.exists() and _PATTERN.search(given):
            matches = [Path(found) for found in sorted(glob.glob(given, recursive=True))]
            if not matches:
                raise InputError(f"input {given} matches no file")
        for match in matches:
            for found in _files(match) if match.is_dir() else [match]:
                if _is_inside(found, without):
                    continue
                if found != path and not is_readable_kind(found):
                    passed_over.append(found.as_posix())
                    continue
                source = _source(check_input(found, text_column, id_column))
                sources.setdefault(os.path.realpath(found), source)
    if not sources:
        what = f": {', '.join(str(input) for input in inputs)} hold none" if inputs else ""
        raise InputError(f"there is no file to read{what}")
    return list(sources.values()), list(dict.fromkeys(passed_over))


def _source(path: Path) -> Source:
    name = Path(os.path.normpath(path)).as_posix()
    if reason := check_text(name):
        raise InputError(f"input {name!r}: its name is {reason}; rename it")
    return Source(name, path)


def _is_inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _files(folder: Path) -> list[Path]:
    """Every file in a folder and the folders inside it, sorted by its name."""
    found: list[Path] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        if os.path.realpath(here) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(here))
        # In order, so that of two ways to a folder the same one counts everywhere.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in files if not name.startswith(".")]
    return sorted(found, key=lambda path: path.as_posix())


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error
