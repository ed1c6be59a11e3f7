"""The commands ``reproduce``, the paper's experiments on a backbone, and ``cost``, what each method takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed.cli.framework import command, quiet, slow_imports
from valuembed.cli.options import INPUT, MEASURE, METHODS_HELP, MODEL, OUTPUT, SETTINGS, AsJson, ModelArgument
from valuembed.cli.output import keeps, note, print_json
from valuembed.research import BUNDLED, BUNDLED_LIKE, backbones

RECIPES = ("method", "layers", "template", "cleaning")


@command(
    without=RECIPES,
    panel=MEASURE,
    examples=("valuembed reproduce --dry-run", "valuembed reproduce --backbone qwen-3-8b --rows va --dry-run"),
)
def reproduce(
    options: dict[str, Any],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help=f"Which tables to rerun: those of {' or '.join(backbones())}; {BUNDLED}, the rows of {BUNDLED_LIKE} "
            "on the bundled model; or a file of your own in the same form.",
            rich_help_panel=INPUT,
        ),
    ] = BUNDLED,
    model: Annotated[
        str | None,
        typer.Option(
            help="What to run in place of the backbone's own hub id. In a model of another depth, layers are mapped by "
            "relative depth.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder of data files. With it nothing is fetched, and local sets stand in for the kinds other than "
            "STS.",
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
            help="The folder for report.md, report.json, charts and all scores. Scores that are there already are not "
            "computed again.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only these rows of the tables, by id, separated by commas; * stands for anything.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave these rows out, such as meta_eol, which takes half of the time.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only these tasks, by their names in the report, separated by commas.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only list the work, with estimated tokens and hours, without loading weights.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="The sustained speed that --dry-run assumes, in 10^12 operations a second. The default is 100, a "
            "GPU's; for the bundled model it is 0.08, that of two CPU cores.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rerun the paper's tables: every row, on every task that has data, beside the figures that others published."""
    chosen: dict[str, Any] = {
        "model": model,
        "local": local,
        **{name: _split(given) for name, given in (("rows", rows), ("skip", skip), ("tasks", tasks))},
        **options,
    }
    if dry_run:
        with slow_imports():
            from valuembed.research import plan

        work = plan(backbone, tflops=tflops, **chosen)
        print_json(work.to_dict()) if as_json else typer.echo(work.to_markdown(), nl=False)
        return
    note(model or backbone)
    with slow_imports():
        from valuembed.research import reproduce as rerun

    quiet()
    with keeps(output, f"finished scores are kept in {output}, the same command goes on from there"):
        found = rerun(backbone, output=output, **chosen)
    print_json(found.to_dict()) if as_json else typer.echo(found.to_markdown(), nl=False)
    if found.evaluation and found.evaluation.failures:
        # Each was told when it was found.
        raise typer.Exit(1)


@command(
    without=RECIPES,
    panel=MEASURE,
    examples=("valuembed cost --methods aligned_wva prompt_eol --texts 20 --rounds 1",),
)
def cost(
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD ...",
            help=f"{METHODS_HELP} By default all are compared.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The texts to measure on: .txt (one a line), .jsonl, .csv or .parquet. By default they are random "
            "words in the lengths of sentences.",
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
    texts: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many texts are taken, from the beginning of the corpus.",
            rich_help_panel=INPUT,
        ),
    ] = 200,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often each method is measured.", rich_help_panel=SETTINGS)
    ] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder for cost.md, cost.json and cost.png.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what each method takes: tokens, layers, arithmetic and seconds, the methods taking turns."""
    note(model)
    with slow_imports():
        from valuembed.research import measure_cost

    quiet()
    with keeps(output, f"what was finished is in {output}, marked as incomplete; the same command starts anew"):
        found = measure_cost(
            model,
            methods or "all",
            corpus=corpus,
            text_column=text_column,
            count=texts,
            rounds=rounds,
            output=output,
            progress=True,
            **options,
        )
    print_json(found.to_dict()) if as_json else typer.echo(found.to_markdown(), nl=False)


def _split(given: Sequence[str] | None) -> list[str]:
    """Names that were separated by commas or given one by one."""
    return [name for entry in given or () for name in map(str.strip, entry.split(",")) if name]
