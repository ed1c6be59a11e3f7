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

from valuembed._utils.text import counted
from valuembed.cli.embed_summary import pace, tell_job, tell_rejected
from valuembed.cli.framework import command, load_encoder
from valuembed.cli.options import BUNDLED, INPUT, LOADING, OUTPUT, json_option
from valuembed.cli.output import note, print_json
from valuembed.cli.texts import STDIN, as_file, check_are_texts, given_texts, print_vectors
from valuembed.vectors import PRECISIONS, check_precision

if TYPE_CHECKING:
    from valuembed._utils.progress import Progress
    from valuembed.corpus import CorpusSummary

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
INTERRUPTED = "finished shards are kept, the same command goes on from there"

NOTHING_KEPT = "nothing was written; a folder as OUTPUT (no .parquet at its end) keeps what is finished"


@command(
    recorded="",
    examples=(
        'valuembed embed "A cat sleeps." --json',
        "valuembed embed examples/sentences.txt -o sentences.parquet",
        "valuembed embed examples/sentences.txt -o vectors --precision int8 --dim 128",
    ),
)
def embed(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="With OUTPUT: a file of texts, which is .txt (one text a line), .jsonl, .csv or .tsv, each of them "
            "also as .gz or .zst, or .parquet. If OUTPUT is a folder, give any number of files, folders and patterns. "
            "Without OUTPUT: texts, whose vectors are printed. In both cases, - stands for the lines of stdin.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The Parquet file to create, or, without that ending, a folder of them, in which a run goes on where "
            "the last one ended. Without it the vectors are printed.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
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
        str | None,
        typer.Option(
            help=f"How vectors are stored: {', '.join(PRECISIONS)}. By default it is float32.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
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
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN...",
            help="Columns of the input to keep beside the vectors, such as --keep label date, or 'none'. By default "
            "all of them are kept.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    query: Annotated[
        bool,
        typer.Option(
            "--query",
            help="Embed the texts as queries rather than as documents; for texts without OUTPUT.",
            rich_help_panel=INPUT,
        ),
    ] = False,
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
        int | None,
        typer.Option(
            min=0,
            metavar="TOKENS",
            help="How many tokens a chunk shares with the chunk before it. By default it shares none.",
            rich_help_panel=FOLDER,
            show_default=False,
        ),
    ] = None,
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
        json_option("Print what came of it as JSON, and a line of progress on stderr now and then."),
    ] = False,
) -> None:
    """Embed the texts of files, or texts given as arguments.

    Rows of a file without a usable text are set aside in a rejected.jsonl, and the rest goes on.

    A folder in which a job was begun is gone on with: what it records, its model included, is the default.
    """
    if precision is not None:
        check_precision(precision)
    options["compile"] = {"yes": True, "no": False}.get(compiled.value, compiled.value)
    job: dict[str, Any] = {"text_column": text_column, "id_column": id_column}
    columns = None if keep in (None, [], ["all"]) else [] if keep == ["none"] else keep
    kept: dict[str, Any] = {"precision": precision, "dim": dim, "keep": columns}
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
    if output is None:
        given = {**job, **shards, "keep": keep, "overwrite": overwrite}
        if wrong := [name for name, value in given.items() if value]:
            raise typer.BadParameter(
                "is for files; name where their embeddings go with --output",
                param_hint=f"--{wrong[0].replace('_', '-')}",
            )
        if engine == "ray":
            raise typer.BadParameter("ray is for a folder as OUTPUT", param_hint="--engine")
        check_are_texts(inputs)
        texts = given_texts(inputs)
        encoder = load_encoder({"model": BUNDLED, **options})
        stored_as = precision or "float32"
        print_vectors(encoder, texts, as_query=query, precision=stored_as, dim=dim, as_json=as_json)
        return
    if query:
        raise typer.BadParameter("is for texts without OUTPUT; files hold documents", param_hint="--query")
    if output.suffix.lower() == ".parquet":
        if engine == "ray":
            raise typer.BadParameter("ray is for a folder as OUTPUT, not for a .parquet file", param_hint="--engine")
        if len(inputs) > 1:
            raise typer.BadParameter("several inputs need a folder as OUTPUT", param_hint="INPUT")
        if wrong := [name for name, value in shards.items() if value]:
            option = wrong[0].replace("_", "-")
            raise typer.BadParameter("is for a folder as OUTPUT, not for a .parquet file", param_hint=f"--{option}")
        options.setdefault("model", BUNDLED)
        kept["precision"] = precision or "float32"
        with as_file(inputs[0]) as input:
            _embed_file(input, output, options, as_json, {**job, "overwrite": overwrite}, kept)
        return
    if STDIN in inputs:
        raise typer.BadParameter("- needs a .parquet file as OUTPUT, or none", param_hint="INPUT")
    if overwrite:
        raise typer.BadParameter("a folder is gone on with, not replaced; remove it first", param_hint="--overwrite")
    options, choices = _gone_on_with(output, options, {**job, "precision": precision, "dim": dim, **shards})
    choices["keep"] = columns
    run = functools.partial(_on_ray, options, cluster) if engine == "ray" else functools.partial(_here, options)
    _embed_folder(run, inputs, output, as_json, choices)


def _gone_on_with(
    output: Path, options: dict[str, Any], choices: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and choices with those of the job that was begun in a folder, if there is one, where none are named."""
    from valuembed.corpus import check_folder, read_manifest
    from valuembed.vectors import recorded_choices, recorded_job

    if (record := read_manifest(check_folder(output))) is not None:
        return recorded_job(record, output, options), recorded_choices(record, choices)
    defaults = {"precision": "float32", "overlap": 0}
    return {"model": BUNDLED, **options}, {
        name: defaults.get(name) if value is None else value for name, value in choices.items()
    }


def _embed_file(
    input: str, output: Path, options: dict[str, Any], as_json: bool, job: dict[str, Any], kept: dict[str, Any]
) -> None:
    from valuembed.corpus import check_files, embed_file, rejected_path

    check_files(input, output, **job, keep=kept["keep"])
    encoder = load_encoder(options)
    try:
        done = embed_file(encoder, input, output, **job, **kept, progress=not as_json)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOTHING_KEPT) from None
    if as_json:
        print_json(asdict(done))
        return
    width = kept["dim"] or encoder.get_embedding_dimension()
    typer.echo(
        f"{output}: {done.embedded:,} of {counted(done.rows, 'row')} embedded, {width} wide, in {done.seconds:.1f} s "
        f"({pace(done.tokens, done.seconds)})"
    )
    if done.first_rejected:
        first = done.first_rejected
        tell_rejected(rejected_path(output), done.rejected, f"the first, row {first.row}: {first.reason}")


def _embed_folder(
    run: Callable[..., "CorpusSummary"],
    inputs: list[str],
    output: Path,
    as_json: bool,
    choices: dict[str, Any],
) -> None:
    from valuembed._utils.progress import every
    from valuembed.corpus import check_corpus

    check_corpus(inputs, output, text_column=choices["text_column"], id_column=choices["id_column"])
    progress: bool | Callable[[Progress], object] = every(JSON_EVERY, _print_progress) if as_json else True
    try:
        done = run(inputs, output, **choices, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(INTERRUPTED) from None
    if as_json:
        print_json(asdict(done))
    else:
        tell_job(output, done)


def _here(options: dict[str, Any], inputs: list[str], output: Path, **settings: Any) -> "CorpusSummary":
    from valuembed.corpus import embed_corpus

    return embed_corpus(load_encoder(options), inputs, output, **settings)


def _on_ray(
    options: dict[str, Any], cluster: dict[str, Any], inputs: list[str], output: Path, **settings: Any
) -> "CorpusSummary":
    from valuembed.corpus import embed_corpus_on_ray

    note(options["model"], loads=False)
    settings |= {name.removeprefix("ray_"): value for name, value in cluster.items()}
    # Ray prints what happens on its nodes where results are to stand.
    with redirect_stdout(sys.stderr):
        return embed_corpus_on_ray(options, inputs, output, **settings)


def _print_progress(progress: "Progress") -> None:
    typer.echo(json.dumps(asdict(progress)), err=True)
