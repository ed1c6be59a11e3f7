"""The paper's two analyses: ``probe segments`` and ``probe next-token``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed.cli.framework import app, command, quiet, slow_imports
from valuembed.cli.options import BUNDLED, INPUT, MEASURE, MODEL, OUTPUT, SETTINGS, AsJson, ModelArgument
from valuembed.cli.output import keeps, new_table, note, out, print_json, print_table

if TYPE_CHECKING:
    from valuembed.research import LayerProbe

probe = typer.Typer(help="What the values of each layer know, beside its hidden states.", no_args_is_help=True)
app.add_typer(probe, name="probe", rich_help_panel=MEASURE)

FINISHED = "what was finished is in {output}, marked as incomplete; the same command starts anew"

_NOT_TAKEN = ("method", "template", "cleaning")

Corpus = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="The documents to read: .txt (one a line), .jsonl, .csv or .parquet.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Which layers are probed: 'all', 'half', a range such as '4:8', a list such as '0,3,7', or fractions of "
        "the depth such as '0.5:1.0'. By default all are.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The column or key of the documents that holds the text. By default it is text.",
        rich_help_panel=INPUT,
        show_default=False,
    ),
]


def _output(name: str) -> Any:
    return typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help=f"The folder for {name}.png, {name}.md and {name}.json.",
        rich_help_panel=OUTPUT,
        show_default=False,
    )


@command(
    group=probe,
    without=_NOT_TAKEN,
    examples=("valuembed probe segments --corpus examples/sentences.txt --tokens 4",),
)
def segments(
    corpus: Corpus,
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many tokens a segment has.", rich_help_panel=INPUT)
    ] = 128,
    segments: Annotated[
        int,
        typer.Option(
            min=2,
            metavar="N",
            help="How many segments are used at most, from the start of the corpus.",
            rich_help_panel=INPUT,
        ),
    ] = 2000,
    layers: Layers = None,
    text_column: TextColumn = None,
    output: Annotated[Path | None, _output("segments")] = None,
    as_json: AsJson = False,
) -> None:
    """Cut documents into segments and find each one's next by its vector: accuracy and MRR by layer.

    Values raw, values aligned and hidden states, each the mean over a segment's tokens, from one pass.
    """
    note(model)
    with slow_imports():
        from valuembed.research import probe_segments

    quiet()
    with keeps(output, FINISHED.format(output=output)):
        found = probe_segments(
            model,
            corpus,
            tokens=tokens,
            segments=segments,
            layers=layers,
            text_column=text_column,
            output=output,
            **options,
        )
    _show(found, output, as_json)


@command(
    name="next-token",
    group=probe,
    without=_NOT_TAKEN,
    examples=("valuembed probe next-token --corpus examples/sentences.txt --positions 1000 --layers half",),
)
def next_token(
    corpus: Corpus,
    options: dict[str, Any],
    model: ModelArgument = BUNDLED,
    positions: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many positions are used in all; every fifth document is held out.",
            rich_help_panel=INPUT,
        ),
    ] = 20_000,
    width: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many inputs each linear probe has at most.", rich_help_panel=SETTINGS
        ),
    ] = 256,
    layers: Layers = None,
    text_column: TextColumn = None,
    output: Annotated[Path | None, _output("next-token")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the next token from the values and from the hidden states of each layer, with a linear probe."""
    note(model)
    with slow_imports():
        from valuembed.research import probe_next_token

    quiet()
    with keeps(output, FINISHED.format(output=output)):
        found = probe_next_token(
            model,
            corpus,
            positions=positions,
            width=width,
            layers=layers,
            text_column=text_column,
            output=output,
            **options,
        )
    _show(found, output, as_json)


def _show(found: "LayerProbe", output: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(found.to_dict())
        return
    head, *rows = found.rows()
    # Not as the table's own title, which would be folded to its width.
    out().print(Text(found.title), soft_wrap=True)
    table = new_table(head[0])
    for signal in head[1:]:
        table.add_column(Text(signal), justify="right", overflow="fold")
    best = [found.best(signal) for signal in head[1:]]
    for label, *cells in rows:
        marked = (Text(cell, "bold green" if label == row else "") for cell, row in zip(cells, best, strict=True))
        table.add_row(label, *marked)
    print_table(table)
    for line in found.footnotes():
        out().print(Text(line, "dim"), soft_wrap=True)
    if output is not None:
        typer.echo(f"{output}: {found.name}.png, {found.name}.md, {found.name}.json")
