"""The commands that find texts again: ``index`` and ``search``."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed.cli_texts import given_text
from valuembed.commands import MODEL_OPTIONS, command, load_encoder, new_table, out, print_json, shown

if TYPE_CHECKING:
    from valuembed.hits import Hit
    from valuembed.index import IndexSummary


@command(without=MODEL_OPTIONS)
def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="File or folder written by 'valuembed embed', or its address.", show_default=False
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="INDEX",
            help="Folder to make or bring up to date, or an address: s3://, gs://, az://.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name that the rows are known under. Default: that of the file or folder. A source replaces only rows "
            "of its own name.",
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the rows of this name that are not in SOURCE.")
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(
            help="Of the texts, such as English: words are then found by their stems. Default: as they are written.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Make an index of embeddings, for search in large sets, by words too, and with filters; or bring one up to date.

    Rows that come again replace those before. Files that have not changed are left out, so that an interrupted run
    goes on where it was.
    """
    from valuembed.index import build_index

    done = build_index(source, output, name=name, prune=prune, language=language)
    if as_json:
        print_json(asdict(done))
        return
    _tell(source, output, done)


def _tell(source: str, output: str, done: "IndexSummary") -> None:
    unchanged = f" ({done.unchanged:,} of {done.files:,} files unchanged)" if done.unchanged else ""
    typer.echo(
        f"{output}: {done.added:,} rows added, {done.replaced:,} replaced, {done.removed:,} removed, in "
        f"{done.seconds:.1f} s{unchanged}"
    )
    kind = "approximate index" if done.approximate else "too few for an approximate index, so each search is exact"
    typer.echo(f"{done.rows:,} rows are in it; {kind}")
    if done.outdated:
        typer.echo(
            f"{done.outdated:,} rows named {done.name!r} are not in {source} and were kept; --prune removes them"
        )


@command
def search(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="What to look for; - reads it from stdin.", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Option(
            "--in",
            metavar="SOURCE",
            help="File or folder written by 'valuembed embed', or INDEX written by 'valuembed index', or its address.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts to show.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            help="Of an index: condition in SQL on its columns, such as \"file LIKE 'news/%' AND length(text) > 80\".",
            show_default=False,
        ),
    ] = None,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Of an index: rank by meaning and by words, fused by reciprocal rank.")
    ] = False,
    probes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of an index: partitions to look into. Default: 2.5 times the root of their number, at least 20; "
            "four times that with a filter.",
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of an index: so many times K rows are compared by their whole vectors. Default: 5.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the hits as JSON.")] = False,
) -> None:
    """Find the texts that are most similar to a query: exactly in files of embeddings, fast in an index."""
    from valuembed.search import check_options, open_embeddings
    from valuembed.search import search as find

    embeddings = open_embeddings(source)
    asked: dict[str, Any] = {"where": where, "hybrid": hybrid, "probes": probes, "refine": refine}
    check_options(embeddings, **asked)
    query = given_text(query)
    hits = find(load_encoder(options), query, embeddings, k, **asked)
    if as_json:
        print_json([hit.to_dict() for hit in hits])
        return
    _show(query, hits)


def _show(query: str, hits: "list[Hit]") -> None:
    """A table, with the columns that have something in them."""
    columns: dict[str, list[Text | None]] = {
        "rank": [Text(str(hit.rank)) for hit in hits],
        "score": [Text(f"{hit.score:.3f}") for hit in hits],
        "fused": [Text(f"{hit.fused:.4f}") if hit.fused is not None else None for hit in hits],
        "id": [shown(str(hit.id), 100) for hit in hits],
        "file": [shown(hit.file, 100) if hit.file is not None else None for hit in hits],
        "chunk": [Text(str(hit.chunk)) if hit.chunk is not None else None for hit in hits],
        "text": [shown(hit.text, 500) for hit in hits],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells) or name in ("rank", "score", "id", "text")}
    table = new_table(*filled, title=shown(query, 100))
    for row in zip(*filled.values(), strict=True):
        table.add_row(*(cell or "" for cell in row))
    out().print(table)
