"""The command that embeds files: parse, call one function, print."""

import functools
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valuembed.commands import INPUT, LOADING, OUTPUT, command, load_encoder, note, print_json
from valuembed.precision import PRECISIONS, check_precision
from valuembed.printable import counted

if TYPE_CHECKING:
    from valuembed.corpus import CorpusSummary
    from valuembed.progress import Progress

JSON_EVERY = 10.0
"""Seconds between two lines of progress for machines."""


class Compile(str, Enum):
    """When layers are compiled."""

    auto = "auto"
    yes = "yes"
    no = "no"


FOLDER = "Chunks and shards (where OUTPUT is a folder)"
CLUSTER = "Ray cluster (where OUTPUT is a folder)"
ENGINES = ("local", "ray")
INTERRUPTED = "interrupted; finished shards are kept, the same command goes on from there"


@command(
    examples=(
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        "valuembed embed examples/sentences.txt -o vectors --precision int8 --dim 128",
    )
)
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="The files with the texts: .txt (one text a line), .jsonl or .csv, each also as .gz or .zst, or "
            ".parquet. If OUTPUT is a folder, any number of files, folders and patterns may be given.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The Parquet file to create; or, without that ending, a folder of them, in which a run goes on where "
            "the last one ended.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column or key that holds the text. By default it is text.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column or key that holds the id. By default rows are numbered from 0.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help=f"How vectors are stored: {', '.join(PRECISIONS)}.", rich_help_panel=OUTPUT),
    ] = "float32",
    dim: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Keep only the first N numbers of each vector, scaled to length 1 again. By default all are kept.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    compiled: Annotated[
        Compile,
        typer.Option(
            "--compile",
            help="Compile the model's layers, which takes time and makes them faster: yes, no, or auto for when the "
            "work left is worth it.",
            rich_help_panel=LOADING,
        ),
    ] = Compile.auto,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace OUTPUT if it is a file that exists already.", rich_help_panel=OUTPUT),
    ] = False,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="TOKENS",
            help="Cut each text into chunks of so many tokens, which get a vector each. By default texts are embedded "
            "whole.",
            rich_help_panel=FOLDER,
            show_default=False,
        ),
    ] = None,
    overlap: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="How many tokens a chunk shares with the chunk before it.",
            rich_help_panel=FOLDER,
        ),
    ] = 0,
    rows_per_shard: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many rows of an input go into one file. The default is 16384, or 1024 with --chunk.",
            rich_help_panel=FOLDER,
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Who does the work: 'local' is this process; 'ray' is workers on a Ray cluster, or on this machine if "
            "there is no cluster.",
            rich_help_panel=CLUSTER,
        ),
    ] = "local",
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="N or MIN:MAX",
            help="How many workers with --engine ray: MIN have to fit, up to MAX run when there is room. By default as "
            "many run as fit.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None,
    cpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="How many CPU cores a worker takes, which may be less than 1. The default is 1.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="How many GPUs a worker takes, which may be less than 1. The default is 1 if the cluster has any.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The address of the cluster, or 'auto' to find a running one. By default RAY_ADDRESS is taken, else a "
            "cluster of this machine alone is started.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None,
    ray_wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long the cluster may take to grow until MIN workers fit. By default it is an error if they do "
            "not fit at once.",
            rich_help_panel=CLUSTER,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print what came of it as JSON, and a line of progress on stderr now and then.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Embed every text of files. Rows without a usable text are set aside in a rejected.jsonl, and the rest goes on."""
    check_precision(precision)
    options["compile"] = {"yes": True, "no": False}.get(compiled.value, compiled.value)
    job: dict[str, Any] = {"text_column": text_column, "id_column": id_column}
    kept: dict[str, Any] = {"precision": precision, "dim": dim}
    shards: dict[str, Any] = {"chunk": chunk, "overlap": overlap, "rows_per_shard": rows_per_shard}
    cluster: dict[str, Any] = {
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "ray_address": ray_address,
        "ray_wait": ray_wait,
    }
    cluster = {name: value for name, value in cluster.items() if value is not None}
    if engine not in ENGINES:
        raise typer.BadParameter(f"{engine!r} is unknown; legal: {', '.join(ENGINES)}", param_hint="--engine")
    if cluster and engine != "ray":
        option = next(iter(cluster)).replace("_", "-")
        raise typer.BadParameter("is for --engine ray", param_hint=f"--{option}")
    if output.suffix.lower() == ".parquet":
        if engine == "ray":
            raise typer.BadParameter("ray is for a folder as OUTPUT, not for a .parquet file", param_hint="--engine")
        if len(inputs) > 1:
            raise typer.BadParameter("several inputs need a folder as OUTPUT", param_hint="INPUT")
        if given := [name for name, value in shards.items() if value]:
            option = given[0].replace("_", "-")
            raise typer.BadParameter("is for a folder as OUTPUT, not for a .parquet file", param_hint=f"--{option}")
        _embed_file(inputs[0], output, options, as_json, {**job, "overwrite": overwrite}, kept)
        return
    if overwrite:
        raise typer.BadParameter("a folder is gone on with, not replaced; remove it first", param_hint="--overwrite")
    run = functools.partial(_on_ray, options, cluster) if engine == "ray" else functools.partial(_here, options)
    _embed_folder(run, inputs, output, as_json, job, {**kept, **shards})


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
        f"{output}: {done.embedded:,} of {counted(done.rows, 'row')} embedded, {width} wide, in {done.seconds:.1f} s "
        f"({_pace(done.tokens, done.seconds)})"
    )
    if not done.rows:
        typer.echo(f"{input} holds no rows")
    if done.rejected:
        typer.echo(f"{rejected_path(output)}: {counted(done.rejected, 'row')} set aside, each with its reason")


def _embed_folder(
    run: Callable[..., "CorpusSummary"],
    inputs: list[str],
    output: Path,
    as_json: bool,
    job: dict[str, Any],
    kept: dict[str, Any],
) -> None:
    from valuembed.corpus import check_corpus
    from valuembed.progress import every

    check_corpus(inputs, output, **job)
    progress: bool | Callable[[Progress], object] = every(JSON_EVERY, _print_progress) if as_json else True
    try:
        done = run(inputs, output, **job, **kept, progress=progress)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        raise
    if as_json:
        print_json(asdict(done))
    else:
        _tell(output, done)


def _here(options: dict[str, Any], inputs: list[str], output: Path, **settings: Any) -> "CorpusSummary":
    from valuembed.corpus import embed_corpus

    return embed_corpus(load_encoder(options), inputs, output, **settings)


def _on_ray(
    options: dict[str, Any], cluster: dict[str, Any], inputs: list[str], output: Path, **settings: Any
) -> "CorpusSummary":
    from valuembed.corpus_ray import embed_corpus_on_ray

    note(options["model"])
    settings |= {name.removeprefix("ray_"): value for name, value in cluster.items()}
    # Ray prints what happens on its nodes where results are to stand.
    with redirect_stdout(sys.stderr):
        return embed_corpus_on_ray(options, inputs, output, **settings)


def _print_progress(progress: "Progress") -> None:
    typer.echo(json.dumps(asdict(progress)), err=True)


def _tell(output: Path, done: "CorpusSummary") -> None:
    precision = "" if done.precision == "float32" else f", {done.precision}"
    chunks = f" as {counted(done.vectors, 'chunk')}" if done.vectors != done.embedded else ""
    typer.echo(
        f"{output}: {done.embedded:,} of {counted(done.rows, 'row')} of {counted(done.inputs, 'input')} "
        f"embedded{chunks}, {done.width} wide{precision}, in {counted(done.shards, 'shard')}"
    )
    run = done.run
    typer.echo(
        f"this run: {counted(run.rows, 'row')} in {run.seconds:.1f} s ({_pace(run.tokens, run.seconds)})"
        if run.rows
        else "this run: nothing was left to do"
    )
    if done.rejected:
        typer.echo(f"{output / 'rejected.jsonl'}: {counted(done.rejected, 'row')} set aside, each with its reason")
    if done.unfinished:
        typer.echo(f"unfinished inputs of earlier runs: {', '.join(done.unfinished)}")


def _pace(tokens: int, seconds: float) -> str:
    return f"{counted(tokens, 'token')}, {tokens / seconds:,.0f} tokens/s" if tokens else "0 tokens, no tokens"
