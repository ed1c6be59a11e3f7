"""Read manual pages as they lie on a system: roff with the macros ``man``, of which the words are wanted."""

from __future__ import annotations

import re

from valuembed.data.documents.extraction import Extraction, TextBuilder

_IS_ROFF = re.compile(r"\A(?:[.'].*\n|\s*\n)*?\.(?:TH|Dd)\b")
_ESCAPES = (
    (re.compile(r'\\".*'), ""),
    (re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)|\\s(?:[-+]?\d|\[[^\]]*\])|\\[&|^%:/,)]|\\[cd]$"), ""),
    (re.compile(r"\\\*\((?:L|R)\"|\\\((?:lq|rq)|\\\[(?:lq|rq)\]|\\\((?:dq)|\\\[dq\]"), '"'),
    (re.compile(r"\\\((?:aq|oq|cq)|\\\[(?:aq|oq|cq)\]"), "'"),
    (re.compile(r"\\\((?:em|en)|\\\[(?:em|en)\]|\\\*\(--"), "\N{EN DASH}"),
    (re.compile(r"\\\((?:bu)|\\\[bu\]"), "\N{BULLET}"),
    (re.compile(r"\\-"), "-"),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\(?:e|\(rs|\[rs\])"), "\N{REVERSE SOLIDUS}"),
    (re.compile(r"\\\*(?:\(..|\[[^\]]*\]|.)|\\\(..|\\\[[^\]]*\]"), ""),
)
_WORDS = re.compile(r'"((?:[^"]|"")*)"|((?:\\.|\S)+)')
_BREAKS = frozenset(
    ("PP", "P", "LP", "Pp", "HP", "RS", "RE", "Sp", "sp", "br", "Ve", "Vb", "nf", "fi", "EX", "EE", "IP", "TP")
)
_SIGNS = ("", "-", "*", "o", "\N{BULLET}", "\N{EN DASH}")
_FONTS = frozenset(["B", "I", "R", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"])


def is_manual_page(text: str) -> bool:
    """Whether a text is the source of a manual page."""
    return bool(_IS_ROFF.match(text[:20_000]))


def read_manual_page(text: str) -> Extraction:
    """The words of a manual page, whose ``.SH`` and ``.SS`` are headings; what it defines for itself is left out.

    Args:
        text: of the file.
    """
    builder = TextBuilder()
    block: list[str] = []
    begun = 0
    kept_lines = in_definition = False
    tag_follows = False

    def flush() -> None:
        nonlocal block
        joined = "\n".join(block) if kept_lines else " ".join(line.strip() for line in block)
        builder.block(joined, begun, each_line=kept_lines)
        block = []

    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        macro = re.match(r"[.']\s*(\S*)\s*(.*)", line)
        if in_definition:
            in_definition = not line.startswith("..")
            continue
        if macro is None:
            if not line.strip() and not kept_lines:
                flush()
                continue
            words = _plain(line)
        else:
            name, rest = macro[1], macro[2]
            in_definition = name in ("de", "ig", "am", "de1")
            if name in _BREAKS:
                flush()
                kept_lines = name in ("nf", "Vb", "EX") or (kept_lines and name not in ("fi", "Ve", "EE"))
                tag_follows = name == "TP"
            if name in ("SH", "SS"):
                flush()
                kept_lines = False
                builder.heading(1 + (name == "SS"), " ".join(_arguments(rest)), number)
                continue
            if name == "TH":
                builder.title = _named(_arguments(rest))
                continue
            if name == "IP":
                words = next(iter(_arguments(rest)), "")
            elif name in _FONTS:
                words = ("" if len(name) == 2 and name not in ("SM", "SB") else " ").join(_arguments(rest))
            else:
                continue
        if not words.strip() and not kept_lines:
            continue
        begun = begun if block else number
        block.append(words)
        if tag_follows or (macro is not None and macro[1] == "IP"):
            # The name of what is explained below it.
            block[-1] = "-" if words.strip() in _SIGNS else f"{words}:"
            tag_follows = False
    flush()
    return builder.done()


def _named(arguments: list[str]) -> str | None:
    """Name and section of a page, as ``cat(1)``."""
    return f"{arguments[0]}({arguments[1]})" if len(arguments) > 1 else arguments[0] if arguments else None


def _arguments(rest: str) -> list[str]:
    found = _WORDS.findall(_ESCAPES[0][0].sub("", rest))
    return [_plain((quoted or bare).replace('""', '"')) for quoted, bare in found]


def _plain(line: str) -> str:
    for pattern, plain in _ESCAPES:
        line = pattern.sub(plain.replace("\\", r"\\"), line)
    return line
