"""The command that embeds files: parse, call one function, print."""

import functools
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valuembed._utils.text import counted
from valuembed.cli.documents import LinesOption, are_documents, check_for_documents, tell_update, update
from valuembed.cli.embed_summary import pace, tell_job, tell_rejected
from valuembed.cli.fields import Fields
from valuembed.cli.framework import command, load_encoder
from valuembed.cli.options import BUNDLED, INPUT, LOADING, OUTPUT, json_option
from valuembed.cli.output import note, print_json
from valuembed.cli.texts import STDIN, as_file, check_are_texts, given_texts, print_vectors
from valuembed.corpus import EmbedOptions
from valuembed.recipes import check_takes_parts, resolve_recipe
from valuembed.vectors import check_precision

if TYPE_CHECKING:
    from valuembed._utils.progress import Progress
    from valuembed.corpus import CorpusSummary

JSON_EVERY = 10.0
"""Seconds between two lines of progress for machines."""


FOLDER = "Chunks and shards (where OUTPUT is a folder)"
PANELS = {"text_column": INPUT, "id_column": INPUT, "keep": INPUT, "precision": OUTPUT, "dim": OUTPUT}
FILE_OPTIONS = ("text_column", "id_column", "precision", "dim", "keep")
"""Of the options of a corpus, those that one file has too."""

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
            help="With OUTPUT: a folder of documents; or a file of texts, which is .txt (one text a line), .jsonl, "
            ".csv or .tsv, each of them also as .gz or .zst, or .parquet. If OUTPUT is a folder, give any number of "
            "such files, folders and patterns. Without OUTPUT: texts, whose vectors are printed. In both cases, - "
            "stands for the lines of stdin.",
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
    *,
    choices: Annotated[dict[str, Any], Fields(EmbedOptions, FOLDER, PANELS, is_open=True)],
    lines: Annotated[bool, LinesOption] = False,
    query: Annotated[
        bool,
        typer.Option(
            "--query",
            help="Embed the texts as queries rather than as documents; for texts without OUTPUT.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the model's layers first, which takes from seconds to a minute and makes them faster.",
            rich_help_panel=LOADING,
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace OUTPUT if it is a file that exists already.", rich_help_panel=OUTPUT),
    ] = False,
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
    """Embed documents, the texts of files, or texts given as arguments.

    Documents of a folder are cut into passages, and brought up to date by the same command.

    Rows of a file without a usable text are set aside in a rejected.jsonl, and the rest goes on.

    A folder in which a job was begun is gone on with: what it records, its model included, is the default.
    """
    if "precision" in choices:
        check_precision(choices["precision"])
    options["compile"] = compiled
    keep = choices.pop("keep", None)
    if keep not in (None, ("all",)):
        choices["keep"] = () if keep == ("none",) else keep
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
        given = {**choices, "keep": keep, "overwrite": overwrite}
        if wrong := [name for name, value in given.items() if value and name not in ("precision", "dim")]:
            raise typer.BadParameter(
                "is for files; name where their embeddings go with --output",
                param_hint=f"--{wrong[0].replace('_', '-')}",
            )
        if engine == "ray":
            raise typer.BadParameter("ray is for a folder as OUTPUT", param_hint="--engine")
        check_are_texts(inputs)
        texts = given_texts(inputs)
        encoder = load_encoder({"model": BUNDLED, **options})
        stored_as = EmbedOptions(**choices)
        print_vectors(encoder, texts, as_query=query, precision=stored_as.precision, dim=stored_as.dim, as_json=as_json)
        return
    if query:
        raise typer.BadParameter("is for texts without OUTPUT; files hold documents", param_hint="--query")
    if output.suffix.lower() == ".parquet":
        if engine == "ray":
            raise typer.BadParameter("ray is for a folder as OUTPUT, not for a .parquet file", param_hint="--engine")
        if len(inputs) > 1:
            raise typer.BadParameter("several inputs need a folder as OUTPUT", param_hint="INPUT")
        if wrong := [name for name, value in choices.items() if value and name not in FILE_OPTIONS]:
            option = wrong[0].replace("_", "-")
            raise typer.BadParameter("is for a folder as OUTPUT, not for a .parquet file", param_hint=f"--{option}")
        if not lines and _is_document(inputs[0]):
            raise typer.BadParameter(
                f"{inputs[0]} is read as documents, which need a folder as OUTPUT (no .parquet at its end)",
                param_hint="INPUT",
            )
        options.setdefault("model", BUNDLED)
        asked = {name: value for name, value in choices.items() if name in FILE_OPTIONS}
        with as_file(inputs[0]) as input:
            _embed_file(input, output, options, as_json, overwrite, asked)
        return
    if STDIN in inputs:
        raise typer.BadParameter("- needs a .parquet file as OUTPUT, or none", param_hint="INPUT")
    if overwrite:
        raise typer.BadParameter("a folder is gone on with, not replaced; remove it first", param_hint="--overwrite")
    if are_documents(inputs, output, lines):
        check_for_documents({"engine": engine if engine != "local" else None, **choices, "keep": keep})
        _embed_documents(inputs[0], output, options, choices, as_json)
        return
    options, choices = _gone_on_with(output, options, choices)
    run = functools.partial(_on_ray, options, cluster) if engine == "ray" else functools.partial(_here, options)
    _embed_folder(run, inputs, output, as_json, choices, options.get("method"))


def _is_document(input: str) -> bool:
    from valuembed.corpus.documents import holds_documents

    return input != STDIN and holds_documents(input)


def _embed_documents(input: str, output: Path, options: dict[str, Any], choices: dict[str, Any], as_json: bool) -> None:
    from valuembed._utils.progress import every
    from valuembed.corpus.documents import PassageFolder

    store = PassageFolder(output)
    progress: bool | Callable[[Progress], object] = every(JSON_EVERY, _print_progress) if as_json else True
    otherwise = "; --lines takes each line of .txt files as a text"
    done = update(store, input, options, choices, progress, otherwise=otherwise)
    tell_update(str(output), done, store.rejected_path, as_json=as_json)


def _gone_on_with(
    output: Path, options: dict[str, Any], choices: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and choices with those of the job that was begun in a folder, if there is one, where none are named."""
    from valuembed.corpus import check_folder, read_manifest
    from valuembed.vectors import recorded_choices, recorded_job

    if (record := read_manifest(check_folder(output))) is None:
        return {"model": BUNDLED, **options}, choices
    # What a job keeps is settled when it begins, and compared with what is named.
    recorded = {name: choices.get(name) for name in EmbedOptions.names() if name != "keep"}
    return recorded_job(record, output, options), {**choices, **recorded_choices(record, recorded)}


def _embed_file(
    input: str, output: Path, options: dict[str, Any], as_json: bool, overwrite: bool, choices: dict[str, Any]
) -> None:
    from valuembed.corpus import check_files, embed_file, rejected_path

    looked_at = {name: value for name, value in choices.items() if name not in ("precision", "dim")}
    check_files(input, output, **looked_at, overwrite=overwrite)
    encoder = load_encoder(options)
    try:
        done = embed_file(encoder, input, output, **choices, overwrite=overwrite, progress=not as_json)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(NOTHING_KEPT) from None
    if as_json:
        print_json(asdict(done))
        return
    width = choices.get("dim") or encoder.get_embedding_dimension()
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
    method: Any = None,
) -> None:
    from valuembed._utils.progress import every
    from valuembed.corpus import check_corpus

    asked = EmbedOptions(**choices)
    if asked.late and method is not None:
        check_takes_parts(resolve_recipe(method), "--late")
    check_corpus(inputs, output, text_column=asked.text_column, id_column=asked.id_column)
    progress: bool | Callable[[Progress], object] = every(JSON_EVERY, _print_progress) if as_json else True
    try:
        done = run(inputs, output, **asked.keywords(), progress=progress)
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
