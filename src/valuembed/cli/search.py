"""The command that finds texts again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valuembed._utils.text import counted, printable
from valuembed.cli.framework import command, load_encoder
from valuembed.cli.hits import file_of, open_hit, place, show_hits, with_words
from valuembed.cli.index_place import find_index
from valuembed.cli.options import INPUT, OUTPUT, json_option
from valuembed.cli.output import print_json
from valuembed.cli.texts import given_text
from valuembed.errors import InputError

if TYPE_CHECKING:
    from valuembed.search import Hit

IN_INDEX = "Search in an index"


@command(
    recorded="SOURCE",
    examples=(
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        'valuembed search "The match was decided by a late goal." --in sentences.parquet -k 3',
        "valuembed index examples -o examples.index",
        'valuembed search "ask with a query" --in examples.index --hybrid',
    ),
)
def search(
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="The text to look for; - reads it from stdin.", show_default=False),
    ],
    options: dict[str, Any],
    source: Annotated[
        str | None,
        typer.Option(
            "--in",
            metavar="SOURCE",
            help="Where to look: a file or folder that 'valuembed embed' wrote, an index that 'valuembed index' made, "
            "or the address of one. By default the index of this folder or of one around it, else the one that was "
            "made last.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
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
    file: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Show only rows of files whose name matches this pattern, such as 'notes/*'; * and ? stand for any "
            "characters.",
            rich_help_panel=IN_INDEX,
            show_default=False,
        ),
    ] = None,
    hybrid: Annotated[
        bool | None,
        typer.Option(
            "--hybrid/--no-hybrid",
            help="Rank by meaning and by words, fused by reciprocal rank. By default this is done in an index whose "
            "vectors were made for search (--for search), as those of documents are.",
            rich_help_panel=IN_INDEX,
            show_default=False,
        ),
    ] = None,
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
    open_rank: Annotated[
        int | None,
        typer.Option(
            "--open",
            min=1,
            metavar="N",
            help="Open the file of the N-th hit where the hit stands in it: in $VISUAL or $EDITOR, or with what the "
            "system opens it with.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, json_option("Print the hits as JSON, with all that is known of them.")] = False,
) -> None:
    """Find the texts that are most similar to a query: exactly in files of embeddings, fast in an index.

    The model and the recipe that made the embeddings are recorded with them, and are taken from there.
    """
    from valuembed.search import check_options, check_query, open_embeddings, search as find
    from valuembed.vectors import recorded_options, telling_what_made

    check_query(query, k)
    if source is None:
        source, is_here = find_index()
        if not is_here:
            typer.echo(f"searching in {printable(source)}", err=True)
    embeddings = open_embeddings(source)
    if whiten and centre is False:
        raise InputError("--whiten takes the mean away, and --no-centre leaves it; give one of them")
    asked: dict[str, Any] = {
        "where": _condition(where, file),
        "hybrid": hybrid,
        "probes": probes,
        "refine": refine,
        "centre": "whiten" if whiten else centre,
    }
    check_options(embeddings, **asked)
    query = given_text(query)
    options = recorded_options(embeddings.vector_spec, embeddings.address, options)
    with telling_what_made(embeddings.vector_spec, embeddings.address):
        encoder = load_encoder(options)
    hits = find(encoder, query, embeddings, max(k, open_rank or 0), **asked)
    if open_rank is not None:
        _open(hits, open_rank, source)
        return
    if as_json:
        print_json(with_words(query, hits))
        return
    if not hits:
        typer.echo("nothing was found: no row meets the condition" if asked["where"] else "nothing was found", err=True)
    show_hits(query, hits)


def _condition(where: str | None, file: str | None) -> str | None:
    """A filter in SQL that both options stand for."""
    if file is None:
        return where
    # In a pattern of SQL, the first two stand for something else.
    pattern = "".join(
        {"*": "%", "?": "_", "'": "''"}.get(char, f"\\{char}" if char in "%_\\" else char) for char in file
    )
    named = f"file LIKE '{pattern}'"
    return named if where is None else f"({where}\n) AND {named}"


def _open(hits: "list[Hit]", rank: int, source: str) -> None:
    """Open the file of a hit."""
    from valuembed.corpus import holds_passages
    from valuembed.corpus.documents import PassageFolder
    from valuembed.search import Index, documents_folders

    if rank > len(hits):
        raise InputError(f"there is no hit {rank}; {counted(len(hits), 'hit was', 'hits were')} found")
    hit = hits[rank - 1]
    folders = documents_folders(source) if Index.is_at(source) else {}
    folder = PassageFolder(source).documents_folder if holds_passages(Path(source)) else None
    path = file_of(hit, folders, folder)
    typer.echo(f"opening {', '.join(filter(None, (printable(str(path)), place(hit))))}", err=True)
    open_hit(path, hit)
