"""Libraries that take text out of documents, and that cut it, beside each other on files of one's own.

    python benchmarks/readers.py FOLDER [--files 20] [--most-mb 1]

FOLDER is searched for .pdf, .html, .docx and .md files; of each kind so many are read, evenly spread over the names,
none larger than given. A library that is not installed is left out. The reader of this project stands in the tables
too, with all that it does beside the library. Written beside this script: readers.md.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from valuembed.data.documents.html import read_html
from valuembed.data.documents.markdown import read_markdown
from valuembed.data.documents.pdf import read_pdf
from valuembed.data.documents.splitter import Splitter
from valuembed.data.documents.word import read_word
from valuembed.reporting import markdown

HERE = Path(__file__).parent
OURS = "this project's reader"
BUDGET = 256


def pypdf(data: bytes) -> str:
    from pypdf import PdfReader

    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(data)).pages)


def pypdfium2(data: bytes) -> str:
    from pypdfium2 import PdfDocument

    document = PdfDocument(data)
    return "\n".join(page.get_textpage().get_text_range(errors="replace") for page in document)


def pdfplumber(data: bytes) -> str:
    from pdfplumber import open as open_pdf

    with open_pdf(io.BytesIO(data)) as document:
        return "\n".join(page.extract_text() for page in document.pages)


def pdfminer(data: bytes) -> str:
    from pdfminer.high_level import extract_text

    return str(extract_text(io.BytesIO(data)))


def trafilatura(data: bytes) -> str:
    from trafilatura import extract

    return extract(data.decode(errors="replace")) or ""


def selectolax(data: bytes) -> str:
    from selectolax.lexbor import LexborHTMLParser

    return str(LexborHTMLParser(data).body.text(separator="\n"))


def beautifulsoup(data: bytes) -> str:
    from bs4 import BeautifulSoup

    return BeautifulSoup(data, "html.parser").get_text("\n")


def lxml(data: bytes) -> str:
    from lxml import html

    return "\n".join(html.document_fromstring(data).itertext())


def python_docx(data: bytes) -> str:
    from docx import Document

    return "\n".join(paragraph.text for paragraph in Document(io.BytesIO(data)).paragraphs)


def docx2txt(data: bytes) -> str:
    from docx2txt import process

    return str(process(io.BytesIO(data)))


def mammoth(data: bytes) -> str:
    from mammoth import convert_to_html

    return re.sub(r"<[^>]+>", " ", convert_to_html(io.BytesIO(data), convert_image=lambda image: []).value)


def markdown_it(data: bytes) -> str:
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(data.decode(errors="replace"))
    return "\n".join(token.content for token in tokens)


def mistune(data: bytes) -> str:
    from mistune import create_markdown

    found: list[str] = []

    def collect(token: Any) -> None:
        found.extend(token[key] for key in ("raw",) if key in token)
        for child in token.get("children", ()):
            collect(child)

    for token in create_markdown(renderer="ast", plugins=["table"])(data.decode(errors="replace")):
        collect(token)
    return "\n".join(found)


READERS: dict[str, list[tuple[str, str, str, Callable[[bytes], str]]]] = {
    ".pdf": [
        ("pypdfium2", "BSD-3-Clause, Apache-2.0", "pages, bookmarks, places and fonts of letters", pypdfium2),
        ("pypdf", "BSD-3-Clause", "pages, bookmarks; pure Python", pypdf),
        ("pdfplumber", "MIT", "pages, places of letters, tables", pdfplumber),
        ("pdfminer.six", "MIT", "pages, places of letters, blocks", pdfminer),
    ],
    ".html": [
        ("selectolax", "MIT, Apache-2.0", "the tree as browsers build it (Lexbor)", selectolax),
        ("beautifulsoup4", "MIT", "a tree, by html.parser", beautifulsoup),
        ("lxml", "BSD-3-Clause", "a tree, by libxml2", lxml),
        ("trafilatura", "Apache-2.0", "what it takes for the article, without the rest", trafilatura),
    ],
    ".docx": [
        ("mammoth", "BSD-2-Clause", "HTML in order: headings, lists, tables, notes, links", mammoth),
        ("python-docx", "MIT", "paragraphs with styles; tables apart", python_docx),
        ("docx2txt", "MIT", "text alone", docx2txt),
    ],
    ".md": [
        ("markdown-it-py", "MIT", "tokens with lines of the file", markdown_it),
        ("mistune", "BSD-3-Clause", "a tree without lines", mistune),
    ],
}
PROJECT: dict[str, Callable[[bytes], Any]] = {
    ".pdf": read_pdf,
    ".html": lambda data: read_html(data.decode(errors="replace")),
    ".docx": read_word,
    ".md": lambda data: read_markdown(data.decode(errors="replace")),
}
SAID = {
    ".pdf": "Chosen: **pypdfium2**. It reads the most per second by far, and gives where each line stands and in what "
    "letters, of which this project makes paragraphs, headings and running titles. Where pages are set in columns it "
    "keeps the order of the file, as the others do. Its wheels hold PDFium, which browsers open strangers' files with; "
    "a crash in it would still end the process. PyMuPDF was not tried: its licence is the AGPL.",
    ".html": "Chosen: **selectolax**. It builds the tree that browsers build, of broken pages too, and is fast. "
    "trafilatura is made for the articles of news pages, and says nothing of headings in its text. "
    "html2text was not tried: its licence is the GPL.",
    ".docx": "Chosen: **mammoth**. It keeps headings, lists, tables, notes and what tracked changes add, in order, as "
    "HTML that goes through the reader of HTML; it needs no other library of weight. python-docx leaves the order of "
    "tables and paragraphs to its caller and drops tracked insertions; docx2txt knows no headings.",
    ".md": "Chosen: **markdown-it-py**. It says in which line of the file each block begins, follows CommonMark, and "
    "is there already, as a dependency of rich.",
}
SPLIT = (
    "Chosen: **semantic-text-splitter**. It takes any count of tokens, never goes beyond the budget, gives the place "
    "of each piece, and is one wheel without dependencies. langchain's splitter brings "
    "langchain-core; chonkie brings a tokenizer of its own and an HTTP client."
)


def chosen(folder: Path, ending: str, most: int, bytes_: int) -> list[bytes]:
    """Contents of so many files of a kind."""
    paths = sorted(path for path in folder.rglob(f"*{ending}") if path.is_file() and 500 < path.stat().st_size < bytes_)
    step = max(1.0, len(paths) / most)
    return [paths[int(place * step)].read_bytes() for place in range(min(most, len(paths)))]


def measured(read: Callable[[bytes], str], files: list[bytes]) -> tuple[int, float, list[str]] | None:
    """Files read, seconds, and texts; None where the library is not installed."""
    texts = []
    try:
        # What it takes to import is not counted.
        read(files[0])
    except ImportError:
        return None
    except Exception as error:
        print(f"  {type(error).__name__}: {error}"[:150])
    start = time.perf_counter()
    for data in files:
        try:
            texts.append(read(data))
        except Exception as error:
            print(f"  {type(error).__name__}: {error}"[:150])
    return len(texts), time.perf_counter() - start, texts


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "?"


def section(ending: str, files: list[bytes]) -> tuple[list[str], list[str]]:
    """The lines of a kind, and the texts that this project's reader took out."""
    rows = []
    for name, licence, gives, read in READERS[ending]:
        print(ending, name)
        if (found := measured(read, files)) is None:
            continue
        count, seconds, texts = found
        words = sum(len(re.findall(r"\w+", text)) for text in texts)
        rows.append([name, version(name), licence, f"{count} of {len(files)}", f"{seconds:.2f}", f"{words:,}", gives])
    extractions: list[Any] = []
    start = time.perf_counter()
    for data in files:
        try:
            extractions.append(PROJECT[ending](data))
        except Exception as error:
            print(f"  {type(error).__name__}: {error}"[:150])
    seconds = time.perf_counter() - start
    words = sum(len(re.findall(r"\w+", found.text)) for found in extractions)
    headings = sum(len(found.headings) for found in extractions)
    titles = sum(found.title is not None for found in extractions)
    gives = f"{headings:,} headings, {titles} titles"
    rows.append([OURS, "", "", f"{len(extractions)} of {len(files)}", f"{seconds:.2f}", f"{words:,}", gives])
    header = ["library", "version", "licence", "files read", "seconds", "words", "what it gives"]
    size = sum(map(len, files)) / 1e6
    title = f"## {ending} ({len(files)} files, {size:.1f} MB)\n"
    page = [title, *markdown.table(header, rows, "lllrrrl"), "", SAID[ending], ""]
    return page, [found.text for found in extractions if found.text]


def splitters(texts: list[str]) -> list[str]:
    """Splitters on the texts of Markdown and HTML, by a count of words."""

    def words(text: str) -> int:
        return len(text.split())

    def semantic(text: str) -> list[tuple[int | None, str]]:
        from semantic_text_splitter import TextSplitter

        return list(TextSplitter.from_callback(words, BUDGET).chunk_indices(text))

    def langchain(text: str) -> list[tuple[int | None, str]]:
        from langchain_text_splitters import RecursiveCharacterTextSplitter

        cutter = RecursiveCharacterTextSplitter(
            chunk_size=BUDGET, chunk_overlap=0, length_function=words, add_start_index=True
        )
        return [(piece.metadata["start_index"], piece.page_content) for piece in cutter.create_documents([text])]

    def chonkie(text: str) -> list[tuple[int | None, str]]:
        from chonkie import RecursiveChunker

        return [(piece.start_index, piece.text) for piece in RecursiveChunker(words, BUDGET).chunk(text)]

    def ours(text: str) -> list[tuple[int | None, str]]:
        from valuembed.data.documents import Extraction

        return [(piece.start, piece.text) for piece in Splitter(BUDGET, words).passages(Extraction(text))]

    rows = []
    named = (
        ("semantic-text-splitter", "MIT", semantic),
        ("langchain-text-splitters", "MIT", langchain),
        ("chonkie", "MIT", chonkie),
        (OURS, "", ours),
    )
    for name, licence, cut in named:
        print("splitter", name)
        try:
            cut(texts[0])
            start = time.perf_counter()
            found = [(text, cut(text)) for text in texts]
        except Exception as error:
            print(f"  {type(error).__name__}: {error}"[:150])
            continue
        seconds = time.perf_counter() - start
        pieces = [(text, place, piece) for text, cuts in found for place, piece in cuts]
        over = sum(words(piece) > BUDGET for *_, piece in pieces)
        wrong = sum(text[place or 0 :][: len(piece)] != piece or place == -1 for text, place, piece in pieces)
        ended = sum(bool(re.search(r"[.!?:)\]`\"']\s*$", piece)) for *_, piece in pieces)
        share = f"{ended / max(1, len(pieces)):.0%}"
        number = "" if name == OURS else version(name)
        rows.append([name, number, licence, f"{len(pieces):,}", f"{seconds:.2f}", str(over), str(wrong), share])
    header = ["library", "version", "licence", "pieces", "seconds", "over the budget", "wrong places", "end a sentence"]
    size = sum(map(len, texts)) / 1e6
    title = f"## Splitters ({len(texts)} texts, {size:.1f} million characters, {BUDGET} words)\n"
    return [title, *markdown.table(header, rows, "lllrrrrr"), "", SPLIT, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--most-mb", type=float, default=1.0)
    options = parser.parse_args()
    lines: list[str] = []
    texts: list[str] = []
    for ending in READERS:
        files = chosen(options.folder, ending, options.files, int(options.most_mb * 1e6))
        if files:
            page, read = section(ending, files)
            lines += page
            if ending in (".html", ".md"):
                texts += read
    lines += splitters(texts)
    command = f"python benchmarks/readers.py FOLDER --files {options.files} --most-mb {options.most_mb:g}"
    head = [
        "# Readers of documents\n",
        f"`{command}` on a folder of manuals (Debian's documentation, Python packages' documentation and test files, "
        f"this repository's); Python {platform.python_version()}, {os.cpu_count()} cores of {cpu()}, one used, while "
        "other work ran on the machine. Words are runs of letters and digits that came out: fewer can mean that menus "
        "are gone, that parts are missing, or that words are glued together.\n",
    ]
    (HERE / "readers.md").write_text("\n".join([*head, *lines]).rstrip() + "\n", encoding="utf-8")


def cpu() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
