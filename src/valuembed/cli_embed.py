"""The command that embeds files: parse, call one function, print."""

import json
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valuembed.commands import command, load_encoder, print_json
from valuembed.precision import PRECISIONS, check_precision

if TYPE_CHECKING:
    from valuembed.corpus import CorpusSummary
    from valuembed.progress import Progress
    from valuembed.storage import Encoder

JSON_EVERY = 10.0
"""Seconds between two lines of progress for machines."""


class Compile(str, Enum):
    """When layers are compiled."""

    auto = "auto"
    yes = "yes"
    no = "no"


FOLDER = "Folders (OUTPUT does not end in .parquet)"
INTERRUPTED = "interrupted; finished shards are kept, the same command goes on from there"


@command
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Texts: .txt (one a line), .jsonl, .csv, each also .gz or .zst, or .parquet; for a folder as OUTPUT "
            "any number of files, folders and patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Parquet file to create, or, without that ending, a folder of them, in which a run goes on where the "
            "last one ended.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    text_column: Annotated[
        str | None, typer.Option(help="Column or key of the text. Default: text.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column or key of the id. Default: rows are numbered from 0.", show_default=False)
    ] = None,
    precision: Annotated[str, typer.Option(help=f"Of what is stored: {', '.join(PRECISIONS)}.")] = "float32",
    dim: Annotated[
        int | None,
        typer.Option(
            min=1, help="Numbers of a vector to keep, scaled to length 1 again. Default: all.", show_default=False
        ),
    ] = None,
    compiled: Annotated[
        Compile,
        typer.Option("--compile", help="Compile the model's layers: yes, no, or when the work left is worth it."),
    ] = Compile.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it is a file that exists.")] = False,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Cut texts into chunks of so many tokens, a vector each. Default: texts are embedded whole.",
            rich_help_panel=FOLDER,
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(min=0, metavar="TOKENS", help="That a chunk shares with the one before.", rich_help_panel=FOLDER),
    ] = 0,
    rows_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows of an input in one file. Default: 16384, or 1024 with --chunk.",
            rich_help_panel=FOLDER,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what came of it as JSON; on stderr, a line of progress now and then.")
    ] = False,
) -> None:
    """Embed every text of files. Rows without a usable text are set aside in a rejected.jsonl; the rest goes on."""
    check_precision(precision)
    options["compile"] = {"yes": True, "no": False}.get(compiled.value, compiled.value)
    job: dict[str, Any] = {"text_column": text_column, "id_column": id_column}
    kept: dict[str, Any] = {"precision": precision, "dim": dim}
    shards: dict[str, Any] = {"chunk": chunk, "overlap": overlap, "rows_per_shard": rows_per_shard}
    if output.suffix.lower() == ".parquet":
        if len(inputs) > 1:
            raise typer.BadParameter("several inputs need a folder as OUTPUT", param_hint="INPUT")
        if given := [name for name, value in shards.items() if value]:
            option = given[0].replace("_", "-")
            raise typer.BadParameter("is for a folder as OUTPUT, not for a .parquet file", param_hint=f"--{option}")
        _embed_file(inputs[0], output, options, as_json, {**job, "overwrite": overwrite}, kept)
        return
    if overwrite:
        raise typer.BadParameter("a folder is gone on with, not replaced; remove it first", param_hint="--overwrite")
    _embed_folder(inputs, output, options, as_json, job, {**kept, **shards})


def _embed_file(
    input: str, output: Path, options: dict[str, Any], as_json: bool, job: dict[str, Any], kept: dict[str, Any]
) -> None:
    from valuembed.one_file import check_files, embed_file, rejected_path

    check_files(input, output, **job)
    encoder = load_encoder(options)
    done = embed_file(encoder, input, output, **job, **kept, progress=not as_json)
    if as_json:
        print_json(asdict(done))
        return
    width = kept["dim"] or encoder.get_embedding_dimension()
    typer.echo(
        f"{output}: {done.embedded:,} of {done.rows:,} rows embedded, {width} wide, "
        f"in {done.seconds:.1f} s ({_pace(done.tokens, done.seconds)})"
    )
    if not done.rows:
        typer.echo(f"{input} holds no rows")
    if done.rejected:
        typer.echo(f"{rejected_path(output)}: {done.rejected:,} rows set aside, each with its reason")


def _embed_folder(
    inputs: list[str], output: Path, options: dict[str, Any], as_json: bool, job: dict[str, Any], kept: dict[str, Any]
) -> None:
    from valuembed.corpus import check_corpus, embed_corpus
    from valuembed.progress import every

    check_corpus(inputs, output, **job)
    encoder: Encoder = load_encoder(options)
    progress: bool | Callable[[Progress], object] = every(JSON_EVERY, _print_progress) if as_json else True
    try:
        done = embed_corpus(encoder, inputs, output, **job, **kept, progress=progress)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        raise
    if as_json:
        print_json(asdict(done))
    else:
        _tell(output, done)


def _print_progress(progress: "Progress") -> None:
    typer.echo(json.dumps(asdict(progress)), err=True)


def _tell(output: Path, done: "CorpusSummary") -> None:
    precision = "" if done.precision == "float32" else f", {done.precision}"
    chunks = f" as {done.vectors:,} chunks" if done.vectors != done.embedded else ""
    typer.echo(
        f"{output}: {done.embedded:,} of {done.rows:,} rows of {done.inputs:,} inputs embedded{chunks}, "
        f"{done.width} wide{precision}, in {done.shards:,} shards"
    )
    run = done.run
    typer.echo(
        f"this run: {run.rows:,} rows in {run.seconds:.1f} s ({_pace(run.tokens, run.seconds)})"
        if run.rows
        else "this run: nothing was left to do"
    )
    if done.rejected:
        typer.echo(f"{output / 'rejected.jsonl'}: {done.rejected:,} rows set aside, each with its reason")
    if done.unfinished:
        typer.echo(f"unfinished inputs of earlier runs: {', '.join(done.unfinished)}")


def _pace(tokens: int, seconds: float) -> str:
    return f"{tokens:,} tokens, {tokens / seconds:,.0f} tokens/s" if tokens else "0 tokens, no tokens"
