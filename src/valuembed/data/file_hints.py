"""What to do about a file of which no row can be used: told by how its content begins."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from valuembed.data.compression import COMPRESSIONS, compression, extension, open_stream

JSON_ADVICE = "JSON is read as JSON Lines, one object a line: jq -c '.[]' makes that of an array, jq -c . of objects"

HEAD = 1 << 20
"""Bytes of a file that tell what it holds."""


def head_of(path: Path) -> bytes:
    """The first megabyte of a file, unpacked; what can be read of it."""
    try:
        with open_stream(path) as stream:
            return stream.file.read(HEAD)
    except OSError:
        return b""


def hint(path: Path, head: bytes, reason: str) -> str | None:
    """What to do about a file whose rows cannot be used, or None where that is not known.

    Args:
        path: of the file.
        head: its beginning.
        reason: what is wrong with the first row that cannot be used.
    """
    if head[:4096].count(b"\0") > len(head[:4096]) // 4:
        return "it looks like UTF-16 without a byte order mark; convert it to UTF-8 first"
    if "not valid UTF-8" in reason:
        name = shlex.quote(path.name)
        shown = f"it may be Latin-1, which iconv -f ISO-8859-1 -t UTF-8 {name} converts"
        return shown if compression(path) is None else "it may be Latin-1; convert it to UTF-8 first"
    if extension(path) in (".jsonl", ".ndjson"):
        return json_hint(path, head)
    return None


def json_hint(path: Path, head: bytes) -> str | None:
    """What to do about a file that should be JSON Lines and begins otherwise, or None where nothing is known."""
    text = head.decode(errors="replace").removeprefix("\ufeff").lstrip()
    line = re.split(r"[\r\n]", text, maxsplit=1)[0].rstrip()
    source = shlex.quote(path.name)
    cat = {None: "", "gzip": f"gunzip -c {source} | ", "zstd": f"zstd -dc {source} | "}[compression(path)]
    bare = path.stem if path.suffix.lower() in COMPRESSIONS else path.name
    target = shlex.quote(f"{Path(bare).stem}-lines.jsonl")

    def with_jq(filter: str) -> str:
        return f"write one object a line: {cat}jq -c {filter}{'' if cat else f' {source}'} > {target}"

    if text.startswith("["):
        return f"it is one JSON array; {with_jq(chr(39) + '.[]' + chr(39))}"
    if not text.startswith("{"):
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        if re.match(r"\{\s*'", text):
            return "its objects are Python's, with single quotes, and no JSON; write them with json.dumps"
        return f"its objects span several lines; {with_jq('.')}" if _is_object(text) else None
    rest = line[end:].lstrip()
    if rest.startswith(","):
        sed = f"{cat}sed 's/,[[:space:]]*$//'{'' if cat else f' {source}'}"
        return f"its lines end in commas; take these away: {sed} > {target}"
    if rest.startswith(("{", "[")):
        return f"it has several objects on one line; {with_jq('.')}"
    return None


def _is_object(text: str) -> bool:
    """Whether a text begins with a JSON object, or with as much of one as there is of the text."""
    try:
        json.JSONDecoder().raw_decode(text)
    except ValueError as error:
        # Cut off in the middle of an object that is larger than what was read.
        return len(text) > HEAD // 2 and getattr(error, "pos", 0) > len(text) - 1000
    except RecursionError:
        return False
    return True
