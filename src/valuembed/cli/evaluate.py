"""The command ``evaluate``: methods on tasks, as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.measure import Measurement
from rich.text import Text

from valuembed._utils.text import counted
from valuembed.cli.framework import command, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MEASURE, METHODS_HELP, MODEL, OUTPUT, AsJson, ModelArgument
from valuembed.cli.output import keeps, new_table, note, out, print_json

if TYPE_CHECKING:
    from valuembed.evaluation import Evaluation


@command(
    without=("method",),
    panel=MEASURE,
    examples=(
        "valuembed evaluate --methods va aligned_wva hidden_mean --tasks sts:examples/sts.jsonl",
        "valuembed evaluate --methods va@half va@all --tasks sts:examples/sts.jsonl -o results",
    ),
)
def evaluate(
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD ...",
            help=f"{METHODS_HELP} By default it is aligned_wva, or what a saved model was saved with, its later "
            "modules included.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK ...",
            help="The tasks to score on: one or more of sts:FILE, classification:TRAIN,TEST, clustering:FILE, "
            "retrieval:DOCS,QUERIES,QRELS, reranking:FILE and pairs:FILE (JSON Lines), or mteb's tasks by name.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for mteb's JSON, results.md and results.png. Scores that are there already are not "
            "computed again.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score methods on tasks with mteb's metrics. Methods with one template share one pass over the texts.

    --layers is for value methods that name none themselves; --template and --cleaning are for all.
    """
    note(model)
    with slow_imports():
        from valuembed.evaluation import evaluate as score

    quiet()
    with keeps(output, f"finished scores are kept in {output}, the same command goes on from there"):
        found = score(model, methods or None, tasks or (), output=output, **options)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)
        if output is not None:
            computed = sum(not made.reused for made in found.scores)
            typer.echo(
                f"{output}: results.md, results.png and mteb's JSON; {counted(computed, 'score')} computed, "
                f"{counted(len(found.scores) - computed, 'was', 'were')} there"
            )
    if found.failures:
        # Each was told when it was found.
        raise typer.Exit(1)


def _show(found: "Evaluation") -> None:
    from valuembed.evaluation import best_of, percent

    columns = found.columns()
    table = new_table()
    table.add_column("method", overflow="fold", max_width=40)
    table.add_column("layers")
    table.add_column("width", justify="right")
    for name in columns:
        table.add_column(Text(name), justify="right", overflow="fold", max_width=14)
    for method in found.recipes:
        cells = [percent(column.get(method)) for column in columns.values()]
        best = ["bold" if cell in best_of(column) else "" for cell, column in zip(cells, columns.values(), strict=True)]
        table.add_row(Text(method), *found.about(method), *map(Text, cells, best))
    console = out()
    # Rather lines that a narrow terminal wraps than columns that are cut off.
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=9999), table).maximum)
    console.print(table)
    missing = ["-: not scored, for the reason told above"] if found.failures else []
    for line in (*missing, *found.cut()):
        console.print(Text(line), soft_wrap=True)
