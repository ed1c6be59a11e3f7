"""Commands about layers: ``sweep`` and ``select-layers``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed.cli.framework import command, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MEASURE, MODEL, OUTPUT, AsJson, ModelArgument
from valuembed.cli.output import keeps, new_table, note, out, print_json, print_table
from valuembed.recipes import TEMPLATES

if TYPE_CHECKING:
    from rich.table import Table


@command(
    without=("method", "layers"),
    panel=MEASURE,
    examples=(
        "valuembed sweep --task sts:examples/sts.jsonl",
        "valuembed sweep --task sts:examples/sts.jsonl --template prompt_eol -o sweep",
    ),
)
def sweep(
    task: Annotated[
        str,
        typer.Option(
            help="The task to score on: sts:FILE, or any task that 'valuembed evaluate' takes.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    template: Annotated[
        str,
        typer.Option(
            help=f"What every text stands in: one of {', '.join(TEMPLATES)}, or a string with one {{text}}.",
            rich_help_panel=MODEL,
        ),
    ] = "none",
    signals: Annotated[
        str | None,
        typer.Option(
            help="The signals to score, separated by commas, such as 'values raw,hidden mean'.",
            rich_help_panel=MODEL,
            show_default="all six",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for sweep.png, sweep.md and sweep.json.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score every layer x every signal of a model on a task, from one pass over the texts."""
    with slow_imports():
        from valuembed.analysis import sweep as run
        from valuembed.models import SIGNALS

    note(model)
    quiet()
    names = tuple(SIGNALS) if signals is None else [name.strip() for name in signals.split(",")]
    with keeps(output, f"finished scores are kept in {output}, the same command goes on from there"):
        found = run(model, task, template=template, signals=names, output=output, **options)
    if as_json:
        print_json(found.to_dict())
        return
    table = new_table("layer", *found.scores, right=range(len(found.scores) + 1))
    for layer in found.layers:
        cells = zip(found.scores, found.row(layer), strict=True)
        table.add_row(
            str(layer), *(Text(cell, "bold green" if found.best.get(name) == layer else "") for name, cell in cells)
        )
    if found.default:
        table.add_row("default", *found.row(None))
    _print(found.title, table, found.notes())
    if output is not None:
        typer.echo(f"{output}: sweep.png, sweep.md, sweep.json")


@command(
    name="select-layers",
    without=("layers",),
    panel=MEASURE,
    examples=(
        "valuembed select-layers --method va --dev sts:examples/sts.jsonl -o va-layers.json",
        'valuembed similarity "A cat sleeps." "A kitten naps." --method va-layers.json',
    ),
)
def select_layers(
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    dev: Annotated[
        str | None,
        typer.Option(
            metavar="sts:FILE",
            help="The pairs with scores to choose by. Never give test data here.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The split of the --dev file that is read. By default it is dev, else train.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The documents to choose by, without labels: .txt (one a line), .jsonl, .csv or .parquet.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column or key of the corpus that holds the text. By default it is text.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    segments: Annotated[
        int | None,
        typer.Option(
            min=4,
            metavar="N",
            help="How many segments of the corpus are used at most. The default is 2000.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the choice: a recipe file (.json) for --method, or a folder for the model.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists already.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Choose the layers that a method averages, with labels (--dev) or without (--corpus)."""
    with slow_imports():
        from valuembed.analysis import select_layers as run

    if (dev is None) == (corpus is None):
        raise typer.BadParameter("give one of --dev sts:FILE and --corpus FILE", param_hint="--dev / --corpus")
    note(model)
    quiet()
    data: dict[str, Any] = {"dev": dev, "split": split, "corpus": corpus, "text_column": text_column}
    if segments is not None:
        data["segments"] = segments
    found = run(model, output=output, overwrite=overwrite, **data, **options)
    if as_json:
        print_json(found.to_dict())
        return
    head, *rows = found.rows()
    table = new_table(*head, right=range(2, len(head)))
    for row in rows:
        table.add_row(*(Text(cell, "bold green" if row[0] == found.chosen else "") for cell in row))
    _print(found.title, table, found.notes())
    out().print(Text(found.verdict), soft_wrap=True)
    if output is not None:
        use = f"--method {output}" if output.suffix == ".json" else f"--model {output}"
        typer.echo(f"{output}: written; use it with {use}")


def _print(title: str, table: "Table", notes: list[str]) -> None:
    """A title and notes are not wrapped to the width of their table."""
    out().print(Text(title), soft_wrap=True)
    print_table(table)
    for line in notes:
        out().print(Text(line, "dim"), soft_wrap=True)
