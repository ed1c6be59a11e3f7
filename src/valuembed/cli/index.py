"""The command that makes an index: of documents, or of what ``embed`` wrote."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valuembed._utils.text import counted, inflected
from valuembed.cli.documents import holds_embeddings, tell_update, update
from valuembed.cli.framework import command
from valuembed.cli.index_place import IN_FOLDER, default_index, remember
from valuembed.cli.options import INPUT, OUTPUT, json_option
from valuembed.cli.output import keeps, print_json
from valuembed.vectors import PRECISIONS, check_precision, is_remote

if TYPE_CHECKING:
    from valuembed.search import IndexSummary

PASSAGES = "Passages (where SOURCE holds documents)"


@command(
    recorded="",
    examples=(
        "valuembed index examples -o examples.index",
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        "valuembed index sentences.parquet -o sentences.index",
    ),
)
def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of documents, or one; or the file or folder that 'valuembed embed' wrote, or its address.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="INDEX",
            help="The folder of the index to make or bring up to date, or an address: s3://, gs://, az://. By default "
            f"that of a folder of documents is {IN_FOLDER.as_posix()} inside of it, where 'valuembed search' finds it.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Cut documents into passages of at most so many tokens. By default 200, or what INDEX was begun with.",
            rich_help_panel=PASSAGES,
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help=f"How the vectors of documents are stored: {', '.join(PRECISIONS)}. By default it is float32.",
            rich_help_panel=PASSAGES,
            show_default=False,
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep only the first N numbers of each vector of documents, scaled to length 1 again. By default all "
            "are kept.",
            rich_help_panel=PASSAGES,
            show_default=False,
        ),
    ] = None,
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
            "--prune",
            help="Remove the rows of this name that are no longer in SOURCE. Of documents they always are.",
            rich_help_panel=OUTPUT,
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
    """Make an index of documents or of embeddings, for search; or bring one up to date.

    Documents are read, cut into passages and embedded in the same run. What has not changed is left out, so that an
    interrupted run goes on where it was.
    """
    choices = {
        name: value for name, value in (("chunk", chunk), ("precision", precision), ("dim", dim)) if value is not None
    }
    if holds_embeddings(source):
        if wrong := [name for name, value in {**options, **choices}.items() if value]:
            raise typer.BadParameter(
                "is for documents; SOURCE holds embeddings", param_hint=f"--{wrong[0].replace('_', '-')}"
            )
        if output is None:
            raise typer.BadParameter("is needed where SOURCE holds embeddings", param_hint="--output")
        _index_embeddings(source, output, name, prune, language, as_json)
        return
    if precision is not None:
        check_precision(precision)
    address = output or str(default_index(Path(source)))
    _index_documents(source, address, options, choices, name, language, as_json)


def _index_documents(
    source: str,
    address: str,
    options: dict[str, Any],
    choices: dict[str, Any],
    name: str | None,
    language: str | None,
    as_json: bool,
) -> None:
    from valuembed.search import Index, PassageIndex

    store = PassageIndex(address, name=name, language=language)
    try:
        done = update(store, source, options, choices, progress=not as_json)
    finally:
        if not is_remote(address) and Index.is_at(address):
            remember(address)
    tell_update(address, done, store.rejected_path, as_json=as_json)


def _index_embeddings(
    source: str, output: str, name: str | None, prune: bool, language: str | None, as_json: bool
) -> None:
    from valuembed.search import build_index

    folder = None if is_remote(output) else Path(output)
    with keeps(folder, "rows that were added are kept, the same command goes on from there"):
        done = build_index(source, output, name=name, prune=prune, language=language)
    remember(output)
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
