"""Hits of a search on a screen: three lines each, with the words that matched; and a hit's file opened at its place."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from valuembed._utils.text import printable
from valuembed.cli.output import out
from valuembed.errors import InputError, OutputError
from valuembed.vectors import BETWEEN_HEADINGS, HEADINGS, LINE, PAGE, TITLE

if TYPE_CHECKING:
    from valuembed.search import Hit

WIDTH = 100
"""Columns that a hit takes at most: longer lines are hard to read."""

INDENT = 4
LINES = 2
"""Lines of a hit's text."""

GOTO = ("code", "codium", "code-insiders", "cursor", "windsurf")
"""Editors that take a line as ``--goto FILE:LINE``."""

COLON = ("subl", "zed", "hx", "helix", "mate")
"""Editors that take a line as ``FILE:LINE``; all others take ``+LINE``, or nothing is lost."""

PDF_VIEWERS = {"evince": "--page-index={}", "xreader": "--page-index={}", "okular": "--page={}", "zathura": "--page={}"}
"""Viewers that take a page, and how."""


def show_hits(query: str, hits: "Sequence[Hit]") -> None:
    """Print hits: rank, score and place on one line, then the part of the text around the words that matched."""
    console = out()
    console.width = min(console.width, WIDTH)
    several = len({hit.source for hit in hits}) > 1
    digits = max(2, len(str(len(hits))))
    for hit in hits:
        console.print(_heading(hit, console.width, digits, several), soft_wrap=True)
        for line in excerpt(query, hit.text, console.width - INDENT, console):
            console.print(Text(" " * INDENT) + line, soft_wrap=True)


def place(hit: "Hit") -> str:
    """Where a hit stands in its file, in a word or two; empty where that is not known."""
    page, line = hit.more.get(PAGE), hit.more.get(LINE)
    if page is not None:
        return f"page {page}"
    if line is not None:
        return f"line {line}"
    if HEADINGS in hit.more:
        return "" if hit.chunk is None else f"passage {hit.chunk + 1}"
    row = f"row {hit.row}" if hit.row == hit.id else f"id {printable(str(hit.id))}"
    return row if hit.chunk is None else f"{row}, chunk {hit.chunk}"


def _heading(hit: "Hit", width: int, digits: int, several: bool) -> Text:
    """The first line of a hit, no wider than there is room."""
    score = f"{hit.score:.3f}" if hit.fused is None else f"{hit.score:.3f} (fused {hit.fused:.4f})"
    line = Text(f"{hit.rank:>{digits}}  {score}  ")
    source = f"{printable(hit.source)}: " if several and hit.source else ""
    if hit.file is None:
        name, where = "", f"{source}id {printable(str(hit.id))}"
    else:
        name, where = source + printable(hit.file), place(hit)
    room = width - line.cell_len - cell_len(where) - (2 if name and where else 0)
    name = _end_of(name, max(room, 16))
    line.append(name, style="bold").append(f"{', ' if name and where else ''}{where}")
    trail = hit.more.get(HEADINGS) or hit.more.get(TITLE) or ""
    room = width - line.cell_len - 3
    if isinstance(trail, str) and trail and room >= 12:
        line.append(f" \N{MIDDLE DOT} {_end_of_trail(printable(trail), room)}", style="dim")
    return line


def excerpt(query: str, text: str, width: int, console: Console) -> list[Text]:
    """The part of a text that holds most of the words of a query, on at most two lines, with these words marked.

    Args:
        query: what was looked for.
        text: of a hit.
        width: of a line, in columns.
        console: that it is printed on.
    """
    from valuembed.search import matched_words

    shown = printable(" ".join(text.split()))
    spans = matched_words(query, shown)
    begin = _begin(shown, spans, LINES * width - width // 5)
    part = Text("\N{HORIZONTAL ELLIPSIS} " if begin else "")
    skipped = part.cell_len - begin
    # More than fits, where each character takes a column, so that the last line ends with a word.
    part.append(shown[begin : begin + (LINES + 1) * width])
    for start, end in spans:
        if start >= begin and end + skipped <= len(part):
            part.stylize("bold", start + skipped, end + skipped)
    wrapped = list(part.wrap(console, width))
    for line in wrapped:
        line.rstrip()
    lines = wrapped[:LINES]
    if len(wrapped) > LINES or begin + (LINES + 1) * width < len(shown):
        last = lines[-1]
        if last.cell_len > width - 2:
            kept = last.plain.rfind(" ", 0, width - 2)
            last.truncate(kept if kept > 0 else width - 2)
        last.append(" \N{HORIZONTAL ELLIPSIS}")
    return lines


def _begin(text: str, spans: list[tuple[int, int]], room: int) -> int:
    """Where a part of so many characters begins that holds most different words, then most words."""
    if cell_len(text) <= room or not spans:
        return 0
    best, chosen = (0, 0), 0
    starts = [0, *(start for start, _ in spans)]
    for start in starts:
        within = [(a, b) for a, b in spans if start <= a and b <= start + room]
        worth = (len({text[a:b].casefold() for a, b in within}), len(within))
        if worth > best:
            best, chosen = worth, start
    last = max((b for a, b in spans if chosen <= a and b <= chosen + room), default=chosen)
    # What stands around the words says more than what follows them.
    chosen = max(0, min(chosen, chosen - (room - (last - chosen)) // 3, len(text) - room))
    return 0 if chosen < 12 else text.rfind(" ", 0, chosen) + 1


def _end_of(name: str, room: int) -> str:
    """A name, or its end where there is no room for all of it."""
    if cell_len(name) <= room:
        return name
    while cell_len(name) > room - 1:
        name = name[1:]
    return f"\N{HORIZONTAL ELLIPSIS}{name}"


def _end_of_trail(trail: str, room: int) -> str:
    """A trail of headings, with as many of the last ones as there is room for."""
    parts = trail.split(BETWEEN_HEADINGS)
    for first in range(len(parts)):
        rest = BETWEEN_HEADINGS.join(parts[first:])
        if first:
            rest = f"\N{HORIZONTAL ELLIPSIS}{BETWEEN_HEADINGS}{rest}"
        if cell_len(rest) <= room:
            return rest
    last = parts[-1]
    while cell_len(last) > room - 1:
        last = last[:-1]
    return f"{last.rstrip()}\N{HORIZONTAL ELLIPSIS}"


def file_of(hit: "Hit", folders: dict[str, Path], folder: Path | None) -> Path:
    """The file that a hit comes from.

    Args:
        hit: the hit.
        folders: of an index, the folders of documents by their source.
        folder: of a folder of passages, that of the documents.

    Raises:
        InputError: it is not known, or not there.
    """
    if hit.file is None:
        raise InputError(f"hit {hit.rank} comes from no file that is recorded, so there is nothing to open")
    root = folders.get(hit.source or "", folder) or Path()
    path = root if root.is_file() else root / hit.file
    if not path.is_file():
        raise InputError(f"hit {hit.rank} comes from {hit.file}, and there is no file {path}; was it moved?")
    return path


def opening(path: Path, hit: "Hit") -> list[str]:
    """The command that opens a file where a hit stands in it: an editor for texts, else what the system opens it with.

    Raises:
        OutputError: nothing is known that could.
    """
    line, page = hit.more.get(LINE), hit.more.get(PAGE)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if editor and line is not None and page is None:
        words = shlex.split(editor, posix=os.name != "nt")
        name = Path(words[0]).stem.lower()
        if name in GOTO:
            return [*words, "--goto", f"{path}:{line}"]
        return [*words, f"{path}:{line}"] if name in COLON else [*words, f"+{line}", str(path)]
    if page is not None and sys.platform.startswith("linux"):
        for viewer, option in PDF_VIEWERS.items():
            if shutil.which(viewer):
                return [viewer, option.format(page), str(path)]
    for opener in ("open",) if sys.platform == "darwin" else ("xdg-open", "wslview"):
        if shutil.which(opener):
            return [opener, str(path)]
    raise OutputError(f"nothing is here to open {path} with; name an editor in the variable EDITOR")


def open_hit(path: Path, hit: "Hit") -> None:
    """Open a file where a hit stands in it.

    Raises:
        OutputError: it cannot be opened.
    """
    if sys.platform == "win32" and not (os.environ.get("VISUAL") or os.environ.get("EDITOR")):
        os.startfile(path)
        return
    command = opening(path, hit)
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise OutputError(f"cannot run {command[0]}: {error.strerror or error}") from error
    if done.returncode:
        raise OutputError(f"{command[0]} ended with {done.returncode} when it was to open {path}")


def with_words(query: str, hits: "Sequence[Hit]") -> list[dict[str, Any]]:
    """Hits as plain data for JSON, with the places of the words that matched."""
    from valuembed.search import matched_words

    return [{**hit.to_dict(), "words": [list(span) for span in matched_words(query, hit.text)]} for hit in hits]
