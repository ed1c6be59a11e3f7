"""Where an index of documents lies unless it is said, and which one a search finds by itself."""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from valuembed._utils.atomic import fresh_name, replace_text
from valuembed._utils.cache_folder import cache_folder
from valuembed.errors import InputError, OutputError
from valuembed.vectors import is_remote

IN_FOLDER = Path(".valuembed", "index")
"""Of a folder of documents, where its index lies."""

LAST = "last-index.json"


def default_index(source: Path) -> Path:
    """Where the index of documents goes: into their folder, or, where nobody may write there, to what is kept.

    Args:
        source: a folder of documents, or one document.

    Raises:
        OutputError: there is no such place.
    """
    if source.is_dir() and os.access(source, os.W_OK | os.X_OK):
        return source / IN_FOLDER
    if (kept := cache_folder()) is None:
        raise OutputError(f"{source} cannot have its index in itself; name one with --output")
    whole = source.resolve()
    return kept / "indexes" / f"{whole.name or 'root'}-{hashlib.sha256(str(whole).encode()).hexdigest()[:12]}"


def remember(index: str) -> None:
    """Keep in mind which index was made last."""
    if (kept := cache_folder()) is None:
        return
    content = json.dumps({"index": index if is_remote(index) else str(Path(index).resolve())})
    # It is a convenience, which may fail on a disk that is full or not ours.
    with suppress(OSError, OutputError):
        kept.mkdir(parents=True, exist_ok=True)
        replace_text(kept / LAST, content, fresh_name(kept, LAST))


def find_index() -> tuple[str, bool]:
    """The index of the working folder, or of the nearest folder around it that has one; else the one made last.

    Returns:
        Its address, and whether it is that of the working folder.

    Raises:
        InputError: there is none.
    """
    from valuembed.search import Index

    here = Path.cwd()
    for folder in (here, *here.parents):
        if Index.is_at(place := folder / IN_FOLDER):
            return (str(IN_FOLDER), True) if folder == here else (str(place), False)
    kept = cache_folder()
    with suppress(OSError, ValueError, KeyError, TypeError):
        last = str(json.loads((kept / LAST).read_bytes())["index"]) if kept else ""
        if last and (is_remote(last) or Index.is_at(last)):
            return last, False
    raise InputError(
        "there is no index in this folder or around it; make one with 'valuembed index FOLDER', or name what is "
        "searched with --in"
    )
