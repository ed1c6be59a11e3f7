"""The command ``explain``: token weights as shades where a terminal has colours, as numbers elsewhere."""

from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed._utils.text import printable, shortened
from valuembed.cli.framework import load_encoder
from valuembed.cli.options import OUTPUT, json_option
from valuembed.cli.output import new_table, out, print_json, print_table
from valuembed.cli.texts import given_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from valuembed.models import Explanation, Token, TokenWeights

# As light as each other: a token must not stand out on a dark terminal because it weighs little, nor on a light one.
_SHADES = ("", "on #b8b0a8", "on #cfae86", "on #e2a95f", "on #f29f3a", "on #ff7f1f")
_LAYERS = 8
_TOP = 4


def explain(
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT", help="The text to look at, in quotes; - reads it from stdin.", show_default=False
        ),
    ],
    options: dict[str, Any],
    by: Annotated[
        str,
        typer.Option(
            help="What a token's weight is: 'attention', or 'contribution', which is attention times the length of the "
            "value, as a share.",
            rich_help_panel=OUTPUT,
        ),
    ] = "attention",
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the weights as a picture to this .png file too.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, json_option("Print every weight as JSON instead of tables.")] = False,
) -> None:
    """Show what each token of a text counts for in its vector, with a method that weighs tokens (wva, aligned_wva)."""
    from valuembed.models import explain as run
    from valuembed.reporting import check_picture, plots

    if plot is not None:
        check_picture(plot)
    text = given_text(text)
    found = run(load_encoder(options), text, by=by)
    if plot is not None:
        plots.save(found.figure(), plot)
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)
    if plot is not None:
        typer.echo(f"{plot}: written")


def _print(found: "Explanation") -> None:
    console = out()
    console.print(Text(found.title), soft_wrap=True)
    coloured = console.is_terminal and not console.no_color and console.color_system is not None
    for number, sequence in enumerate(found.sequences, start=1):
        if len(found.sequences) > 1:
            console.print(Text(f"template {number} of {len(found.sequences)}", "bold"))
        if coloured:
            _print_shades(sequence)
        else:
            _print_numbers(sequence)
        _print_layers(sequence)
        if sequence.truncated:
            console.print(Text("the text was cut to the longest sequence that is fed (--max-tokens)", "dim"))


def _print_shades(sequence: "TokenWeights") -> None:
    """The sequence with each token shaded: by the mean, and, of a few layers, by each."""
    console, full = out(), sequence.full()
    rows = {"mean": sequence.mean()}
    if 1 < len(sequence.layers) <= _LAYERS:
        rows.update({f"layer {layer}": row for layer, row in zip(sequence.layers, sequence.by_layer(), strict=True)})
    for name, weights in rows.items():
        console.print(Text.assemble((f"{name:9}", "bold"), _shaded(sequence, weights, full)))
    bounds = [full * (level / len(_SHADES)) ** 2 for level in range(1, len(_SHADES))]
    legend = Text("weight   ")
    for bound, shade in zip(bounds, _SHADES[1:], strict=True):
        legend.append(f" {bound:.1%} ", f"black {shade}").append(" ")
    console.print(legend.append("and more; italic: template", "dim"))


def _shaded(sequence: "TokenWeights", weights: "NDArray[np.float32]", full: float) -> Text:
    line = Text()
    for group in sequence.visible():
        token, weight = sequence.tokens[group[0]], float(weights[group].sum())
        # As in pictures: on an even scale hardly any token would be seen.
        level = min(int(len(_SHADES) * sqrt(weight / full)), len(_SHADES) - 1) if full else 0
        shade = f"black {_SHADES[level]}" if level else ""
        line.append(printable(token.text), f"{shade}{'' if token.is_text else ' italic'}".strip())
    return line


def _print_numbers(sequence: "TokenWeights") -> None:
    """A row for each token: the mean, and, of a few layers, each."""
    layers = sequence.layers if 1 < len(sequence.layers) <= _LAYERS else ()
    table = new_table(
        "", "token", "", "mean %", *(f"L{layer} %" for layer in layers), right=(0, *range(3, 4 + len(layers)))
    )
    columns = [sequence.mean(), *(sequence.by_layer() if layers else ())]
    for number, token in enumerate(sequence.tokens):
        cells = (f"{100 * column[number]:.1f}" for column in columns)
        table.add_row(str(number + 1), _named(token), "" if token.is_text else "template", *cells)
    print_table(table)


def _print_layers(sequence: "TokenWeights") -> None:
    """A row for each layer: what the text weighs, and its tokens that weigh most."""
    table = new_table("layer", "text", "template", "most in the text", right=(0, 1, 2))
    own = [number for number, token in enumerate(sequence.tokens) if token.is_text]
    groups = [group for group in sequence.visible() if sequence.tokens[group[0]].is_text]
    for layer, weights in zip(sequence.layers, sequence.by_layer(), strict=True):
        sums = {group[0]: float(weights[group].sum()) for group in groups}
        most = sorted(sums, key=lambda number: -sums[number])[:_TOP]
        named = Text("  ").join(_named(sequence.tokens[number]).append(f" {_percent(sums[number])}") for number in most)
        text = float(weights[own].sum())
        table.add_row(str(layer), _percent(text), _percent(float(weights.sum()) - text), named)
    print_table(table)
    if sequence.by_layer().sum(axis=1).min() < 0.99:
        out().print(Text("what is missing to 100% goes to the model's attention sinks", "dim"))


def _named(token: "Token") -> Text:
    """A token on its own: a blank is only seen where there is nothing else."""
    return Text(shortened(printable(token.text.strip(" ")) or ("\N{OPEN BOX}" if token.text else "(byte)"), 24))


def _percent(weight: float) -> str:
    return f"{weight:.1%}"
