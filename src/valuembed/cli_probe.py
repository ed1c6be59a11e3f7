"""The paper's two analyses: ``probe segments`` and ``probe next-token``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed.commands import BUNDLED, MEASURE, app, command, keeps, new_table, note, out, print_json, quiet

if TYPE_CHECKING:
    from valuembed.probe import LayerProbe

probe = typer.Typer(help="What the values of each layer know, beside its hidden states.", no_args_is_help=True)
app.add_typer(probe, name="probe", rich_help_panel=MEASURE)

FINISHED = "what was finished is in {output}, marked as incomplete; the same command starts anew"

_NOT_TAKEN = ("method", "template", "cleaning")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or 'bundled'.")]
Corpus = Annotated[
    Path,
    typer.Option(metavar="FILE", help="Documents: .txt (one a line), .jsonl, .csv or .parquet.", show_default=False),
]
Layers = Annotated[
    str | None,
    typer.Option(help="'all', 'half', '4:8', '0,3,7', fractions such as '0.5:1.0'. Default: all.", show_default=False),
]
TextColumn = Annotated[
    str | None, typer.Option(help="Column or key of the documents' text. Default: text.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def _output(name: str) -> Any:
    return typer.Option(
        "--output", "-o", metavar="DIR", help=f"Folder for {name}.png, {name}.md and {name}.json.", show_default=False
    )


@command(group=probe, without=_NOT_TAKEN)
def segments(
    corpus: Corpus,
    options: dict[str, Any],
    model: Model = BUNDLED,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a segment.")] = 128,
    segments: Annotated[int, typer.Option(min=2, help="Segments at most, from the corpus's start.")] = 2000,
    layers: Layers = None,
    text_column: TextColumn = None,
    output: Annotated[Path | None, _output("segments")] = None,
    as_json: Json = False,
) -> None:
    """Cut documents into segments and find each one's next by its vector: accuracy and MRR by layer.

    Values raw, values aligned and hidden states, each the mean over a segment's tokens, from one pass.
    """
    note(model)
    from valuembed.probe import probe_segments

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


@command(name="next-token", group=probe, without=_NOT_TAKEN)
def next_token(
    corpus: Corpus,
    options: dict[str, Any],
    model: Model = BUNDLED,
    positions: Annotated[int, typer.Option(min=1, help="Positions in all; every fifth document is held out.")] = 20_000,
    width: Annotated[int, typer.Option(min=1, help="Inputs of each probe, at most.")] = 256,
    layers: Layers = None,
    text_column: TextColumn = None,
    output: Annotated[Path | None, _output("next-token")] = None,
    as_json: Json = False,
) -> None:
    """Predict the next token from the values and from the hidden states of each layer, with a linear probe."""
    note(model)
    from valuembed.next_token import probe_next_token

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
    out().print(Text(found.title))
    table = new_table(head[0])
    for signal in head[1:]:
        table.add_column(Text(signal), justify="right")
    best = [found.best(signal) for signal in head[1:]]
    for label, *cells in rows:
        marked = (Text(cell, "bold green" if label == row else "") for cell, row in zip(cells, best, strict=True))
        table.add_row(label, *marked)
    out().print(table)
    out().print(Text("\n".join(found.notes)), style="dim")
    if output is not None:
        typer.echo(f"{output}: {found.name}.png, {found.name}.md, {found.name}.json")
