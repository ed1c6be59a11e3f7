"""The command line: parse, call one function, print.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once. Results go to stdout, everything
else (progress, notes, errors) to stderr.
"""

import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from valuembed import __version__
from valuembed.errors import ValuembedError
from valuembed.layers import describe
from valuembed.recipes import METHODS
from valuembed.templates import TEMPLATES

if TYPE_CHECKING:
    from valuembed.encoder import ValueEncoder
    from valuembed.model import ModelInfo

BUNDLED = "bundled"
DEMONSTRATION_NOTE = (
    "note: the bundled model is a small one for demonstration; "
    "name a real one with, for example, --model Qwen/Qwen3-0.6B"
)
INTERRUPTED = 130
SHARED = "Model (the same for every command)"

app = typer.Typer(
    help="Sentence embeddings from any decoder language model, without training: its attention values are read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


def _model_options(
    model: Annotated[str, typer.Option(help="Hub id, local folder, or 'bundled'.", rich_help_panel=SHARED)] = BUNDLED,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}. Default: aligned_wva, or what a saved model was saved with.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="'all', 'half', '20:28', '14,15,16', fractions such as '0.65:0.9'. Default: the model's preset, else "
            "0.65 to 0.90 of the depth.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help=f"'auto' (the method's own), one of {', '.join(TEMPLATES)}, chat, or a string with one {{text}}.",
            rich_help_panel=SHARED,
        ),
    ] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. Default: the checkpoint's.", rich_help_panel=SHARED, show_default=False
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Such as cpu, cuda or cuda:1. Default: a GPU if there is one.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest sequence, template included; longer texts are cut.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=SHARED, show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.", rich_help_panel=SHARED),
    ] = False,
) -> None:
    """Declare the options that every command takes; their names are arguments of :func:`valuembed.load`."""


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command with the shared options added; it receives them, those that were given, as ``options``."""
    own = [name for name in inspect.signature(function).parameters if name != "options"]
    parameters = {
        **{name: inspect.signature(function).parameters[name] for name in own},
        **{name: entry for name, entry in inspect.signature(_model_options).parameters.items() if name not in own},
    }

    @functools.wraps(function)
    def run(**given: Any) -> None:
        options = {name: value for name, value in given.items() if name not in own and value is not None}
        with _errors_in_one_line():
            function(**{name: given[name] for name in own}, options=options)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: entry.annotation for name, entry in parameters.items()}
    del run.__dict__["__wrapped__"]
    return app.command()(run)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Print what this library raises, and warnings, as one line each; end with the exit code that goes with it."""
    stderr = Console(stderr=True)

    def show(kind: str, message: object, style: str) -> None:
        stderr.print(Text(f"{kind}: {message}", style=style), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **more: show("warning", message, "yellow")
        # Addressed to those who write code, not to those who run a command.
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        try:
            yield
        except ValuembedError as error:
            show("error", error, "red")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"valuembed {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@_command
def embed(
    input: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="Texts: .txt (one a line), .jsonl, .csv or .parquet.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Parquet file to create: id, text, embedding.", show_default=False)
    ],
    options: dict[str, Any],
    text_column: Annotated[
        str | None, typer.Option(help="Column or key of the text. Default: text.", show_default=False)
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column or key of the id. Default: rows are numbered from 0.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
) -> None:
    """Embed every text of a file. Rows without a usable text are set aside in OUTPUT.rejected.jsonl."""
    from valuembed.corpus import check_files, embed_file, rejected_path

    job: dict[str, Any] = {"text_column": text_column, "id_column": id_column, "overwrite": overwrite}
    check_files(input, output, **job)
    encoder = _load(options)
    done = embed_file(encoder, input, output, **job)
    speed = f"{done.tokens / done.seconds:,.0f} tokens/s" if done.tokens else "no tokens"
    typer.echo(
        f"{output}: {done.embedded:,} of {done.rows:,} rows embedded, {encoder.get_embedding_dimension()} wide, "
        f"in {done.seconds:.1f} s ({done.tokens:,} tokens, {speed})"
    )
    if not done.rows:
        typer.echo(f"{input} holds no rows")
    if done.rejected:
        typer.echo(f"{rejected_path(output)}: {done.rejected:,} rows set aside, each with its reason")


@_command
def similarity(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT TEXT ...", help="Two texts or more.", show_default=False)],
    options: dict[str, Any],
    as_json: Annotated[bool, typer.Option("--json", help="Print the texts and the matrix as JSON.")] = False,
) -> None:
    """Compare texts: the cosine similarity of each with each."""
    from valuembed.search import similarity_matrix

    if len(texts) < 2:
        raise typer.BadParameter("give two texts or more", param_hint="TEXT")
    matrix = similarity_matrix(_load(options), texts)
    if as_json:
        _print_json({"texts": texts, "similarity": [[round(float(value), 6) for value in row] for row in matrix]})
        return
    table = _table("", "text", *(str(number) for number in range(1, len(texts) + 1)))
    for number, (text, row) in enumerate(zip(texts, matrix, strict=True), start=1):
        table.add_row(str(number), _shown(text, 60), *(Text(f"{value:.3f}") for value in row))
    _out().print(table)


@_command
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.", show_default=False)],
    file: Annotated[Path, typer.Option("--in", help="Parquet file written by 'valuembed embed'.", show_default=False)],
    options: dict[str, Any],
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print the hits as JSON.")] = False,
) -> None:
    """Find the texts of an embedded file that are most similar to a query (exact cosine)."""
    from valuembed.search import read_make
    from valuembed.search import search as find

    read_make(file)
    hits = find(_load(options), query, file, k)
    if as_json:
        _print_json([asdict(hit) for hit in hits])
        return
    table = _table("rank", "score", "id", "text", title=_shown(query, 100))
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.3f}", Text(str(hit.id)), _shown(hit.text, 500))
    _out().print(table)


@_command
def info(
    options: dict[str, Any],
    named: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The same as --model.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a recipe would read from a model, and how much memory its weights take. No weights are read."""
    from valuembed.model import info as look

    if named is not None:
        if options["model"] not in (BUNDLED, named):
            raise typer.BadParameter(f"names {named!r}, --model {options['model']!r}; give one", param_hint="MODEL")
        options["model"] = named
    _note(options["model"])
    # A limit on tokens changes nothing that is shown here.
    options.pop("max_tokens", None)
    found = look(**options)
    if as_json:
        _print_json({**asdict(found), "recipe": found.recipe.to_dict()})
        return
    table = _table("", "", header=False)
    for name, value in _info_rows(found):
        table.add_row(name, Text(value))
    _out().print(table)


def _info_rows(found: "ModelInfo") -> Iterator[tuple[str, str]]:
    recipe = found.recipe
    chosen = describe(found.chosen_layers) if found.chosen_layers else "the last layer, after the final norm"
    grouping = f"{found.query_heads} query heads on {found.value_heads} value heads, each {found.head_width} wide"
    share = found.weight_bytes / found.full_weight_bytes if found.full_weight_bytes else 1.0
    yield "model", found.name if found.source == found.name else f"{found.name} (from {found.source})"
    yield "architecture", f"{found.architecture}, {found.num_layers} layers, {found.model_width} wide"
    yield "layers with values", f"{describe(found.value_layers)} ({len(found.value_layers)} of {found.num_layers})"
    yield "attention", grouping
    yield "method", recipe.method
    yield "signal", f"{recipe.signal}, weights {recipe.weights}{', aligned' if recipe.aligned else ''}"
    yield "template", "\n".join(recipe.template)
    yield "layers read", chosen
    yield "embedding", f"{found.width} wide"
    yield "loaded", f"{found.kept_layers} of {found.num_layers} layers, as {found.dtype}"
    yield "not loaded", ", ".join(found.not_loaded) or "nothing is left out"
    yield "memory for weights", f"{_bytes(found.weight_bytes)} of {_bytes(found.full_weight_bytes)} ({share:.0%})"


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "bytes" else f"{size:.1f} {units[0]}"


def _load(options: dict[str, Any]) -> "ValueEncoder":
    _note(options["model"])
    from transformers.utils.logging import disable_progress_bar

    from valuembed.model import load

    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    return load(**options)


def _note(model: str) -> None:
    if model == BUNDLED:
        Console(stderr=True).print(Text(DEMONSTRATION_NOTE, style="dim"), soft_wrap=True)


def _table(*columns: str, title: Text | None = None, header: bool = True) -> Table:
    return Table(*columns, title=title, title_justify="left", show_header=header, box=None, pad_edge=False)


def _out() -> Console:
    return Console(highlight=False)


def _shown(text: str, limit: int) -> Text:
    """A text on one line, without what could steer a terminal."""
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))
    return Text(line if len(line) <= limit else line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}")


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
