"""Read Markdown: what a reader of the page sees, block by block, with headings and lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from valuembed.data.documents.extraction import Extraction, TextBuilder

_FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?\n)\1[ \t]*(\n|\Z)", re.S)
_FRONT_TITLE = re.compile(r"^title\s*[:=]\s*[\"']?(.*?)[\"']?\s*$", re.M | re.I)
_TAG = re.compile(r"<!--.*?(-->|\Z)|</?[a-zA-Z][^<>]*>", re.S)


def read_markdown(text: str) -> Extraction:
    """The text of Markdown without marks, addresses of links and HTML tags; its front matter names the title."""
    from markdown_it import MarkdownIt

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    builder = TextBuilder()
    skipped = 0
    if front := _FRONT.match(text):
        skipped = front[0].count("\n")
        text = text[front.end() :]
        if named := _FRONT_TITLE.search(front[2]):
            builder.title = named[1]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    _walk(tokens, builder, skipped + 1)
    return builder.done()


def _walk(tokens: Sequence[Any], builder: TextBuilder, first: int) -> None:
    lists: list[int | None] = []
    bullet = ""
    in_list = False
    row: list[str] = []
    for at, token in enumerate(tokens):
        line = first + token.map[0] if token.map else None
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open"):
            lists.append(int(token.attrs.get("start", 1)) if kind.startswith("o") else None)
            in_list = False
        elif kind in ("bullet_list_close", "ordered_list_close"):
            lists.pop()
            in_list = bool(lists)
        elif kind == "list_item_open":
            number = lists[-1]
            bullet = "  " * (len(lists) - 1) + ("- " if number is None else f"{number}. ")
            if number is not None:
                lists[-1] = number + 1
        elif kind == "inline":
            text = _inline(token.children or ())
            around = tokens[at - 1].type
            if around == "heading_open":
                builder.heading(int(tokens[at - 1].tag[1:]), text, line)
            elif around in ("th_open", "td_open"):
                row.append(text.strip())
            elif text.strip():
                builder.block(bullet + text, line, gap="\n" if bullet and in_list else "\n\n")
                in_list, bullet = bool(lists), ""
        elif kind in ("fence", "code_block"):
            builder.block(token.content, None if line is None else line + (kind == "fence"))
        elif kind == "html_block":
            builder.block(_TAG.sub("", token.content), line)
        elif kind == "tr_open":
            row = []
        elif kind == "tr_close":
            started = tokens[at - 1].type == "th_close"
            line = next((first + each.map[0] for each in reversed(tokens[:at]) if each.type == "tr_open"), None)
            builder.block(" | ".join(row), line, gap="\n\n" if started else "\n")


def _inline(children: Sequence[Any]) -> str:
    """What stands in a line: words of links and pictures, code, no tags."""
    parts = []
    for child in children:
        if child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type == "image":
            parts.append(_inline(child.children or ()))
        elif child.type == "html_inline" and child.content.lower().startswith("<br"):
            parts.append(" ")
    return "".join(parts)
