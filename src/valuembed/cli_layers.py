"""Commands about layers: ``sweep`` and ``select-layers``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed.commands import BUNDLED, MEASURE, command, keeps, new_table, note, out, print_json, quiet
from valuembed.templates import TEMPLATES

if TYPE_CHECKING:
    from rich.table import Table

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'bundled'.")]


@command(without=("method", "layers"), panel=MEASURE)
def sweep(
    task: Annotated[
        str, typer.Option(help="sts:FILE, or any task that 'valuembed evaluate' takes.", show_default=False)
    ],
    options: dict[str, Any],
    model: Model = BUNDLED,
    template: Annotated[
        str,
        typer.Option(help=f"What every text stands in: one of {', '.join(TEMPLATES)}, or a string with one {{text}}."),
    ] = "none",
    signals: Annotated[
        str | None,
        typer.Option(help="Some of them, comma-separated, such as 'values raw,hidden mean'.", show_default="all six"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for sweep.png, sweep.md and sweep.json.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Score every layer x every signal of a model on a task, from one pass over the texts."""
    from valuembed.panel import SIGNALS
    from valuembed.sweep import sweep as run

    note(model)
    quiet()
    names = tuple(SIGNALS) if signals is None else [name.strip() for name in signals.split(",")]
    with keeps(output, f"finished scores are kept in {output}, the same command goes on from there"):
        found = run(model, task, template=template, signals=names, output=output, **options)
    if as_json:
        print_json(found.to_dict())
        return
    table = new_table("layer", *found.scores)
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


@command(name="select-layers", without=("layers",), panel=MEASURE)
def select_layers(
    options: dict[str, Any],
    model: Model = BUNDLED,
    dev: Annotated[
        str | None,
        typer.Option(help="sts:FILE, pairs with scores; never test data.", show_default=False),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(help="Documents without labels: .txt (one a line), .jsonl, .csv or .parquet.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write the choice: a recipe file (.json) for --method, or a folder for the model.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the --dev file. Default: dev, else train.", show_default=False)
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column or key of the corpus's text. Default: text.", show_default=False)
    ] = None,
    segments: Annotated[
        int | None, typer.Option(min=4, help="Segments of the corpus. Default: 2000.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Choose the layers that a method averages, with labels (--dev) or without (--corpus)."""
    from valuembed.select import select_layers as run

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
    table = new_table(*head)
    for row in rows:
        table.add_row(*(Text(cell, "bold green" if row[0] == found.chosen else "") for cell in row))
    _print(found.title, table, found.notes())
    typer.echo(found.verdict)
    if output is not None:
        use = f"--method {output}" if output.suffix == ".json" else f"--model {output}"
        typer.echo(f"{output}: written; use it with {use}")


def _print(title: str, table: "Table", notes: list[str]) -> None:
    """A title and notes are not wrapped to the width of their table."""
    out().print(Text(title), soft_wrap=True)
    out().print(table)
    for line in notes:
        out().print(Text(line, "dim"), soft_wrap=True)
