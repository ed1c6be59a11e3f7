"""Which files are read, by their names: the kinds of documents, and how large a file of each may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from valuembed.data import COMPRESSIONS, extension

_CODE = """
.py .pyi .pyx .ipy .js .mjs .cjs .jsx .ts .tsx .vue .svelte .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hpp .hh
.hxx .m .mm .cs .fs .go .rs .rb .php .pl .pm .lua .r .jl .swift .dart .ex .exs .erl .hs .ml .mli .clj .el .lisp .scm
.zig .nim .sh .bash .zsh .fish .ps1 .bat .sql .proto .graphql .tf .cmake .mk .gradle .css .scss .sass .less .toml .yaml
.yml .ini .cfg .conf .env .properties .json .json5 .xml .xsl .xsd .diff .patch .awk .tcl .vim .y .l .asm .s .f .f90 .cu
.glsl .wgsl .pyw .in .am .ac
"""

_PLAIN = ".txt .text .log .asc .nfo .adoc .asciidoc .org .tex .bib .textile .wiki .pod .rtx .srt .vtt .po"

_READMES = (
    "authors", "bugs", "changelog", "changes", "contributing", "copying", "copyright", "faq", "hacking", "history",
    "install", "license", "licence", "maintainers", "makefile", "manifest", "news", "notes", "notice", "readme",
    "thanks", "todo", "upgrading",
)  # fmt: skip
"""Names of texts whose last part is no ending: ``README.Debian``, ``NEWS.old``."""


@dataclass(frozen=True)
class Kind:
    """A kind of documents.

    Attributes:
        name: of the kind.
        endings: of the names of its files, in lower case.
        largest: bytes that a file may have at most, unpacked.
    """

    name: str
    endings: tuple[str, ...]
    largest: int


MB = 1_000_000

DOCUMENT_KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("text", tuple(_PLAIN.split()), 50 * MB),
        Kind("Markdown", (".md", ".markdown", ".mdown", ".mkd"), 20 * MB),
        Kind("reStructuredText", (".rst", ".rest"), 20 * MB),
        Kind("HTML", (".html", ".htm", ".xhtml"), 20 * MB),
        Kind("PDF", (".pdf",), 200 * MB),
        Kind("Word", (".docx",), 100 * MB),
        Kind("mail", (".eml",), 50 * MB),
        Kind("code", tuple(_CODE.split()), 20 * MB),
        Kind("rows", (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"), 1_000 * MB),
    )
}
"""By name."""

_BY_ENDING = {ending: kind for kind in DOCUMENT_KINDS.values() for ending in kind.endings}


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() in COMPRESSIONS


def kind_of(path: Path) -> Kind | None:
    """The kind of a file by its name; None where nothing reads it."""
    ending = extension(path)
    kind = _BY_ENDING.get(ending)
    if kind is None:
        bare = path.name.lower().split(".")[0]
        if not ending or bare in _READMES or ending[1:].isdigit():
            return DOCUMENT_KINDS["text"]
        return None
    return None if is_packed(path) and ending == ".parquet" else kind


def why_not_read(path: Path, size: int) -> str | None:
    """Why a file is not read, as far as its name and size tell; None where it is.

    Args:
        path: of the file.
        size: in bytes.
    """
    kind = kind_of(path)
    if kind is None:
        ending = "".join(path.suffixes[-2:]) if is_packed(path) else path.suffix
        return f"of a kind that nothing reads: {ending or path.name}"
    return "empty: there is nothing in it" if not size else too_large(kind, size)


def too_large(kind: Kind, size: int) -> str | None:
    """Why a file of so many bytes is not read; None where it is."""
    if size <= kind.largest:
        return None
    advice = "embed it by itself" if kind.name == "rows" else "split it"
    return f"{size / MB:,.0f} MB; of {kind.name} at most {kind.largest / MB:,.0f} MB are read: {advice}"
