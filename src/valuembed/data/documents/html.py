"""Read HTML: what a reader of the page sees of its subject, without scripts, menus and footers."""

from __future__ import annotations

import re
from typing import Any

from valuembed._utils.optional import require
from valuembed.data.documents.extraction import Extraction, TextBuilder
from valuembed.errors import DocumentError

_LEFT_OUT = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "nav",
        "footer",
        "svg",
        "math",
        "iframe",
        "object",
        "select",
        "button",
        "textarea",
        "dialog",
        "input",
        "canvas",
        "audio",
        "video",
        "head",
    ]
)
_BLOCKS = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "center",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "form",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "thead",
        "tfoot",
        "tr",
        "td",
        "th",
        "caption",
        "ul",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
    ]
)
_ROLES = frozenset(("navigation", "banner", "contentinfo", "search", "menu", "menubar"))
_FURNITURE = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navheader|navfooter|navigation|nav-panel|menu|sidebar|sphinxsidebar|breadcrumbs?|"
    r"footer|related|headerlink|copiable-link|toc-backref|skip-link|cookie|masthead|pagination|noprint)(?=$|[\s_-])",
    re.I,
)
_SPACE = re.compile(r"[ \t\n\r\f]+")
_OPENED = re.compile(r"<(/?)(?:div|span|section|article|ul|ol|blockquote|center|font|dl)\b", re.I)

DEEPEST = 5000
"""Elements within elements; the time that a parser takes grows with the square of it, and browsers stop at 512."""

_TEXT, _COMMENT = "-text", "-comment"


def read_html(text: str) -> Extraction:
    """The text of a page; its ``<title>`` is the title.

    Where one ``<main>`` or ``<article>`` holds most of the text, it alone is read.

    Args:
        text: of the file; it may be broken in any way that browsers put up with.

    Raises:
        DocumentError: its elements are nested too deep.
        MissingExtraError: ``selectolax`` is not installed.
    """
    if text.count("<") > DEEPEST:
        _check_depth(text)
    tree = require("selectolax.lexbor", "documents").LexborHTMLParser(text)
    builder = TextBuilder()
    title = tree.css_first("title")
    if title is not None:
        builder.title = title.text()
    body = tree.body
    if body is not None:
        _Walk(builder).read(_subject(tree, body))
    return builder.done()


def _check_depth(text: str) -> None:
    depth = 0
    for tag in _OPENED.finditer(text):
        depth = max(0, depth - 1) if tag[1] else depth + 1
        if depth > DEEPEST:
            raise DocumentError(f"its HTML is nested more than {DEEPEST:,} elements deep; no browser shows it whole")


def _subject(tree: Any, body: Any) -> Any:
    """The part of a page that is about its subject, where the page marks one."""
    for selector in ("main", "[role=main]", "article"):
        found = tree.css(selector)
        if len(found) == 1 and len(found[0].text()) * 3 > len(body.text()):
            return found[0]
    return body


class _Walk:
    """One walk over the nodes of a page, without recursion, however deep it is.

    Args:
        builder: takes the text.
    """

    def __init__(self, builder: TextBuilder) -> None:
        self.builder = builder
        self.words: list[str] = []
        self.bullet = ""
        self.gap = "\n\n"
        self.after_item = False
        self.depth = 0
        self.pre = 0

    def read(self, top: Any) -> None:
        node, entering, level = top, True, 0
        while True:
            if entering:
                inside = self.enter(node)
                child = node.child if inside else None
                if child is not None:
                    node, level = child, level + 1
                    continue
                if inside:
                    self.leave(node.tag)
            # Two nodes are equal where their HTML is, so that their level says when the walk is over.
            if not level:
                break
            following = node.next
            entering = following is not None
            if entering:
                node = following
            else:
                node, level = node.parent, level - 1
                self.leave(node.tag)
        self.flush()

    def enter(self, node: Any) -> bool:
        """Begin a node; says whether its children are wanted."""
        tag = node.tag
        if tag == _TEXT:
            self.words.append(node.text_content or "" if self.pre else _SPACE.sub(" ", node.text_content or ""))
            return False
        if tag == _COMMENT or tag in _LEFT_OUT or tag.startswith("!") or self.is_furniture(node, tag):
            return False
        if tag == "br":
            self.words.append("\n")
            return False
        if tag in ("tr", "dt", "dd", "li"):
            self.flush()
            self.gap = "\n" if self.after_item else "\n\n"
            if tag == "tr" and self.row(node):
                return False
            self.bullet = "  " * max(0, self.depth - 1) + "- " if tag == "li" else ""
        elif tag in _BLOCKS:
            bullet, gap = self.bullet, self.gap
            if not self.flush():
                # A paragraph in a list's item is the item.
                self.bullet, self.gap = bullet, gap
            elif tag not in ("thead", "tbody"):
                self.after_item = tag in ("ul", "ol") and self.depth > 0
            self.depth += tag in ("ul", "ol")
            self.after_item = self.after_item and tag not in ("table", "dl")
        self.pre += tag == "pre"
        return True

    def is_furniture(self, node: Any, tag: str) -> bool:
        attributes = node.attributes
        if not attributes or tag in ("body", "html", "main"):
            return False
        if attributes.get("role") in _ROLES or "hidden" in attributes or attributes.get("aria-hidden") == "true":
            return True
        if tag in ("div", "ul", "p", "a", "table", "td", "header", "section", "aside", "ol", "span"):
            names = f"{attributes.get('class') or ''} {attributes.get('id') or ''}"
            if _FURNITURE.search(names):
                return not node.css("h1") if tag in ("div", "section", "table", "header") else True
        return False

    def row(self, node: Any) -> bool:
        """Take the row of a table as one line; a row in which something stands that is no cell is none."""
        cells = []
        cell = node.child
        while cell is not None:
            if cell.tag in ("td", "th"):
                if cell.css("table, ul, ol, pre, h1, h2, h3, h4, dl") or len(cell.css("p, div")) > 1:
                    return False
                between = " " if cell.css("p, div, br") else ""
                cells.append(_SPACE.sub(" ", cell.text(separator=between)).strip())
            cell = cell.next
        self.builder.block(" | ".join(cells) if any(cells) else "", gap=self.gap)
        self.after_item, self.gap = True, "\n\n"
        return True

    def leave(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            title = "".join(self.words).replace("\N{PILCROW SIGN}", "")
            self.words = []
            self.builder.heading(int(tag[1]), title)
            self.after_item = False
        elif tag in _BLOCKS:
            self.flush()
            kept = tag in ("thead", "tbody") and self.after_item
            self.after_item = kept or tag in ("li", "dd", "dt", "tr") or (self.depth > 1 and tag in ("ul", "ol"))
            self.depth -= tag in ("ul", "ol")
        self.pre -= tag == "pre"

    def flush(self) -> bool:
        """Add what was collected as a block; says whether there was anything."""
        text = "".join(self.words)
        self.words = []
        if not self.pre:
            text = "\n".join(_SPACE.sub(" ", line).strip() for line in text.split("\n")).strip()
        if not text.strip():
            return False
        self.builder.block(self.bullet + text, gap=self.gap)
        self.bullet, self.gap = "", "\n\n"
        return True
