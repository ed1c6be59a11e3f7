"""The command ``calibrate``: fit a calibration on unlabelled texts, tell what it does, save the model with it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed._utils.text import counted, inflected
from valuembed.cli.framework import command, load_model, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MEASURE, MODEL, OUTPUT, SETTINGS, ModelArgument, json_option
from valuembed.cli.output import keeps, new_table, note, out, print_json, print_table

if TYPE_CHECKING:
    from valuembed.analysis import CalibrationReport


@command(
    panel=MEASURE,
    examples=(
        "valuembed calibrate --method va --corpus examples/sentences.txt -o whitened",
        "valuembed calibrate --methods va --corpus examples/sentences.txt --task sts:examples/sts.jsonl",
    ),
)
def calibrate(
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Unlabelled texts, like those that you want to embed: .txt (one a line), .jsonl, .csv or .parquet. "
            "Only --kind filter needs none.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="How vectors are calibrated. centre: the mean is taken away. whiten: and directions are scaled to one "
            "variance. pca: and only the --size directions of most variance are kept. filter: the middle directions "
            "of the language model head are kept.",
            rich_help_panel=SETTINGS,
        ),
    ] = "whiten",
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The width of the calibrated vectors. By default it stays as it is.",
            rich_help_panel=SETTINGS,
            show_default=False,
        ),
    ] = None,
    shrinkage: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="How far whitening draws variances to their mean before they are made one. The default is 0.5.",
            rich_help_panel=SETTINGS,
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="N",
            help="How many different texts are drawn from the corpus at most. The default is 10,000.",
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
    task: Annotated[
        str | None,
        typer.Option(
            metavar="sts:FILE",
            help="Score every kind on these pairs at full, 1/2, 1/4 and 1/8 width, without saving any.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD ...",
            help="The methods to score on --task, as 'valuembed evaluate' takes them. By default it is --method where "
            "that is given, else all.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder for what --task found: calibration.md, calibration.json and two charts.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The folder to save the calibrated model in.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the model in the folder of -o if there is one.", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: Annotated[
        bool,
        json_option("Print everything as JSON: the report, and under 'saved' the calibration."),
    ] = False,
) -> None:
    """Make a model better without training: calibrate its vectors on unlabelled texts.

    --task tells what each kind does to every method; -o saves the model that --kind and --size describe.
    """
    if output is None and task is None:
        raise typer.BadParameter("give -o DIR to save, --task sts:FILE for a report, or both", param_hint="--output")
    if methods and task is None:
        raise typer.BadParameter("belongs to --task; a model is saved with one --method", param_hint="--methods")
    if report is not None and task is None:
        raise typer.BadParameter("belongs to --task sts:FILE, on which it reports", param_hint="--report")
    if corpus is None and (task is not None or kind != "filter"):
        raise typer.BadParameter("missing: give a file of texts", param_hint="--corpus")
    with slow_imports():
        from valuembed.analysis import Documents, calibrate as fit
        from valuembed.models import check_model_folder, find_calibration, save_model

    options["model"] = model
    documents = Documents(corpus, text_column) if corpus is not None else None
    if output is not None:
        check_model_folder(output, overwrite=overwrite)
    given = {"shrinkage": shrinkage, "max_texts": texts}
    fitting: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    results: dict[str, Any] = {}
    try:
        if task is not None:
            assert documents is not None
            from valuembed.analysis import report_calibration

            note(model)
            quiet()
            asked = {name: value for name, value in options.items() if name not in ("model", "method")}
            chosen = methods or options.get("method") or "all"
            with keeps(report, f"what was finished is in {report}, marked as incomplete; the same command starts anew"):
                found = report_calibration(model, documents, task, chosen, output=report, **fitting, **asked)
            results |= found.to_dict()
            if not as_json:
                _show(found)
                if report is not None:
                    typer.echo(f"{report}: calibration.md, calibration.json, calibration.png, calibration-small.png")
        if output is not None:
            encoder = load_model(options)
            made = fit(encoder, documents or (), kind=kind, size=size, **fitting)
            save_model(made, output, overwrite=overwrite)
            calibration = find_calibration(made)
            assert calibration is not None
            record = calibration.record
            results["saved"] = {"folder": str(output), **record.to_dict()}
            if not as_json:
                typer.echo(f"{output}: {record}; load it with --model {output}")
    finally:
        # One document for both; a report is not lost to a model that cannot be saved.
        if as_json and results:
            print_json(results)
    if documents is not None and documents.rejected:
        typer.echo(
            f"{corpus}: {counted(documents.rejected, 'row holds', 'rows hold')} no usable text and "
            f"{inflected(documents.rejected, 'was', 'were')} left out",
            err=True,
        )


def _show(report: "CalibrationReport") -> None:
    from valuembed.analysis import PARTS

    for part in PARTS:
        head, *rows = report.rows(part)
        table = new_table(head[0], title=Text(report.title(part), "bold"))
        for name in head[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            best = report.best(row[0], part)
            cells = (Text(cell, "bold green" if name == best else "") for name, cell in zip(head, row, strict=True))
            table.add_row(*cells)
        print_table(table)
        out().print()
    for line in report.notes():
        out().print(Text(line, "dim"))
