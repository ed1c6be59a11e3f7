"""The commands that find texts again: ``index`` and ``search``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed._utils.text import counted, inflected
from valuembed.cli.framework import command, load_encoder
from valuembed.cli.options import INPUT, MODEL_OPTIONS, OUTPUT, json_option
from valuembed.cli.output import keeps, new_table, print_json, print_table, shown
from valuembed.cli.texts import given_text
from valuembed.errors import InputError

if TYPE_CHECKING:
    from valuembed.search import Hit, IndexSummary

IN_INDEX = "Search in an index"


@command(
    without=MODEL_OPTIONS,
    examples=(
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        "valuembed index sentences.parquet -o sentences.index",
    ),
)
def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="The file or folder that 'valuembed embed' wrote, or its address.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="INDEX",
            help="The folder of the index to make or bring up to date, or an address: s3://, gs://, az://.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    name: Annotated[
        str | None,
        typer.Option(
            help="The name that the rows are known under; a source replaces only rows of its own name. By default it "
            "is that of the file or folder.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the rows of this name that are no longer in SOURCE.", rich_help_panel=OUTPUT
        ),
    ] = False,
    language: Annotated[
        str | None,
        typer.Option(
            help="The language of the texts, such as English, whose words are then found by their stems. By default "
            "words are found as they are written.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, json_option("Print what was done as JSON.")] = False,
) -> None:
    """Make an index of embeddings, for search in large sets, by words too, and with filters; or bring one up to date.

    Rows that come again replace those before. Files that have not changed are left out, so that an interrupted run
    goes on where it was.
    """
    from valuembed.search import build_index
    from valuembed.vectors import is_remote

    folder = None if is_remote(output) else Path(output)
    with keeps(folder, "rows that were added are kept, the same command goes on from there"):
        done = build_index(source, output, name=name, prune=prune, language=language)
    if as_json:
        print_json(asdict(done))
        return
    _tell(source, output, done)


def _tell(source: str, output: str, done: "IndexSummary") -> None:
    unchanged = f" ({done.unchanged:,} of {counted(done.files, 'file')} unchanged)" if done.unchanged else ""
    typer.echo(
        f"{output}: {counted(done.added, 'row')} added, {done.replaced:,} replaced, {done.removed:,} removed, in "
        f"{done.seconds:.1f} s{unchanged}"
    )
    kind = "approximate index" if done.approximate else "too few for an approximate index, so each search is exact"
    typer.echo(f"{counted(done.rows, 'row is', 'rows are')} in it; {kind}")
    if done.outdated:
        typer.echo(
            f"{counted(done.outdated, 'row')} named {done.name!r} {inflected(done.outdated, 'is', 'are')} not in "
            f"{source} and {inflected(done.outdated, 'was', 'were')} kept; --prune removes "
            f"{inflected(done.outdated, 'it', 'them')}"
        )


@command(
    recorded="SOURCE",
    examples=(
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        'valuembed search "The match was decided by a late goal." --in sentences.parquet -k 3',
    ),
)
def search(
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="The text to look for; - reads it from stdin.", show_default=False),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--in",
            metavar="SOURCE",
            help="Where to look: a file or folder that 'valuembed embed' wrote, an index that 'valuembed index' made, "
            "or the address of one.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    k: Annotated[
        int, typer.Option("-k", min=1, metavar="N", help="How many texts to show.", rich_help_panel=OUTPUT)
    ] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            help="Show only rows that meet this condition in SQL on the columns, such as \"file LIKE 'news/%' AND "
            'length(text) > 80".',
            rich_help_panel=IN_INDEX,
            show_default=False,
        ),
    ] = None,
    hybrid: Annotated[
        bool,
        typer.Option(
            "--hybrid",
            help="Rank by meaning and by words, fused by reciprocal rank.",
            rich_help_panel=IN_INDEX,
        ),
    ] = False,
    probes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many partitions of the index to look into; more are slower and miss less. The default is 2.5 "
            "times the root of their number, at least 20, and four times that with a filter.",
            rich_help_panel=IN_INDEX,
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compare N times as many rows as are shown by their whole vectors. The default is 5.",
            rich_help_panel=IN_INDEX,
            show_default=False,
        ),
    ] = None,
    centre: Annotated[
        bool | None,
        typer.Option(
            "--centre/--no-centre",
            help="Take the mean of all rows from the query and from each row, and compare what is left. By default "
            "this is done for vectors that a last token reads, as aligned_wva's, from 100 rows on.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    whiten: Annotated[
        bool,
        typer.Option(
            "--whiten",
            help="Take the mean of all rows away as --centre does, and scale down the directions in which rows differ "
            "most.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    as_json: Annotated[bool, json_option("Print the hits as JSON instead of a table.")] = False,
) -> None:
    """Find the texts that are most similar to a query: exactly in files of embeddings, fast in an index.

    The model and the recipe that made the embeddings are recorded with them, and are taken from there.
    """
    from valuembed.search import check_options, check_query, open_embeddings, search as find
    from valuembed.vectors import recorded_options, telling_what_made

    check_query(query, k)
    embeddings = open_embeddings(source)
    if whiten and centre is False:
        raise InputError("--whiten takes the mean away, and --no-centre leaves it; give one of them")
    asked: dict[str, Any] = {"where": where, "hybrid": hybrid, "probes": probes, "refine": refine}
    asked["centre"] = "whiten" if whiten else centre
    check_options(embeddings, **asked)
    query = given_text(query)
    options = recorded_options(embeddings.vector_spec, embeddings.address, options)
    with telling_what_made(embeddings.vector_spec, embeddings.address):
        encoder = load_encoder(options)
    hits = find(encoder, query, embeddings, k, **asked)
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
    numbers = [place for place, name in enumerate(filled) if name in ("rank", "score", "fused", "chunk")]
    table = new_table(*filled, title=shown(query, 100), right=numbers)
    for row in zip(*filled.values(), strict=True):
        table.add_row(*(cell or "" for cell in row))
    print_table(table)
