"""The commands ``reproduce``, the paper's experiments on a backbone, and ``cost``, what each method takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from valuembed.backbones import BUNDLED, BUNDLED_LIKE, backbones
from valuembed.commands import MEASURE, command, keeps, note, print_json, quiet
from valuembed.recipes import METHODS

RECIPES = ("method", "layers", "template", "cleaning")


@command(without=RECIPES, panel=MEASURE)
def reproduce(
    options: dict[str, Any],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="ID",
            help=f"One of {', '.join(backbones())}; {BUNDLED} (the rows of {BUNDLED_LIKE} on the bundled model); or a "
            "file of your own in the same form.",
        ),
    ] = BUNDLED,
    model: Annotated[
        str | None,
        typer.Option(
            help="What to run in place of the backbone's own hub id. In a model of another depth, layers are mapped by "
            "relative depth.",
            show_default=False,
        ),
    ] = None,
    local: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of data files: nothing is fetched, and local sets stand in for the kinds other than STS.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for report.md, report.json, charts and all scores. Scores that are there are not computed "
            "again.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(help="Only these rows, by id; * stands for anything; several with commas.", show_default=False),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Not these rows, such as meta_eol, which takes half of the time.", show_default=False),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Only these tasks, by name, as in the report.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the work, with estimated tokens and hours. Loads no weights.")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Sustained speed that --dry-run assumes, in 10^12 operations a second. Default: 100, a GPU's; for the "
            "bundled model 0.08, that of two CPU cores.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Rerun the paper's tables: every row, on every task that has data, beside the figures that others published."""
    chosen: dict[str, Any] = {
        "model": model,
        "local": local,
        **{name: _split(given) for name, given in (("rows", rows), ("skip", skip), ("tasks", tasks))},
        **options,
    }
    if dry_run:
        from valuembed.reproduce import plan

        work = plan(backbone, tflops=tflops, **chosen)
        print_json(work.to_dict()) if as_json else typer.echo(work.to_markdown(), nl=False)
        return
    note(model or backbone)
    from valuembed.reproduce import reproduce as rerun

    quiet()
    with keeps(output, f"finished scores are kept in {output}, the same command goes on from there"):
        found = rerun(backbone, output=output, **chosen)
    print_json(found.to_dict()) if as_json else typer.echo(found.to_markdown(), nl=False)
    if found.evaluation and found.evaluation.failures:
        # Each was told when it was found.
        raise typer.Exit(1)


@command(without=RECIPES, panel=MEASURE)
def cost(
    options: dict[str, Any],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'bundled'.")] = BUNDLED,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD ...",
            help=f"One or more of {', '.join(METHODS)}, or all; each with a template or layers of its own if need be, "
            "as wva:future_eol or va@20:28; or a recipe file (.json). Default: all.",
            show_default=False,
        ),
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="Texts to measure on: .txt (one a line), .jsonl, .csv or .parquet. Default: random words in the "
            "lengths of sentences.",
            show_default=False,
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column or key of the text. Default: text.", show_default=False)
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="How many texts, from the beginning of the corpus.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="How often each method is measured.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for cost.md, cost.json and cost.png.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure what each method takes: tokens, layers, arithmetic and seconds, the methods taking turns."""
    note(model)
    from valuembed.cost import measure_cost

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
