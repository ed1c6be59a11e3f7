"""The command line: parse, call one function, print.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once. Results go to stdout, everything
else (progress, notes, errors) to stderr.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from valuembed._utils.text import counted, decimals, inflected

# Imported to register their commands.
from valuembed.cli import calibrate, embed, evaluate, index, layers, mcp, probe, reproduce, search, serve, train  # noqa: F401
from valuembed.cli.explain import explain
from valuembed.cli.framework import app, command, load_encoder
from valuembed.cli.options import BUNDLED, OUTPUT, AsJson, json_option
from valuembed.cli.output import new_table, note, print_json, print_table, shown
from valuembed.cli.texts import given_texts
from valuembed.recipes import LAST_LAYER, describe

if TYPE_CHECKING:
    from valuembed.models import ModelInfo

__all__ = ["app"]


@command(
    examples=(
        'valuembed similarity "A cat sleeps." "A kitten naps." "Shares fell."',
        'valuembed similarity "A cat sleeps." "A kitten naps." --method va --plot matrix.png',
    )
)
def similarity(
    texts: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT TEXT ...",
            help="The texts to compare, two or more; - reads them from the lines of stdin.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the matrix as a picture to this .png file too.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        json_option("Print the texts and the matrix as JSON instead of a table."),
    ] = False,
) -> None:
    """Compare texts: the cosine similarity of each with each."""
    texts = given_texts(texts)
    if len(texts) < 2:
        raise typer.BadParameter("give two texts or more", param_hint="TEXT")
    from valuembed.reporting import check_picture, plots
    from valuembed.search import similarity_matrix

    if plot is not None:
        check_picture(plot)
    encoder = load_encoder(options)
    matrix = similarity_matrix(encoder, texts)
    if plot is not None:
        title = f"{encoder.reader.origin.name}, {encoder.recipe.method}"
        plots.save(plots.matrix(matrix, texts, title=title, label="cosine similarity"), plot)
    if as_json:
        print_json({"texts": texts, "similarity": [[round(float(value), 6) for value in row] for row in matrix]})
        return
    count = len(texts)
    table = new_table("", "text", *map(str, range(1, count + 1)), right=(0, *range(2, count + 2)))
    others = [float(value) for row, line in enumerate(matrix) for column, value in enumerate(line) if row != column]
    digits = max(3, decimals(min(others), max(others)))
    for number, (text, row) in enumerate(zip(texts, matrix, strict=True), start=1):
        table.add_row(str(number), shown(text, 60), *(Text(f"{value:.{digits}f}") for value in row))
    print_table(table)
    if plot is not None:
        typer.echo(f"{plot}: written")


# Registered here, for its place in the help.
command(
    explain,
    examples=(
        'valuembed explain "The doctor examined the patient."',
        'valuembed explain "The doctor examined the patient." --layers all --by contribution',
    ),
)


@command(examples=("valuembed info", "valuembed info bundled --method va --layers half"))
def info(
    options: dict[str, Any],
    named: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model to look at, in place of --model.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe would read from a model, and how much memory its weights take. No weights are read."""
    from valuembed.models import info as inspect_checkpoint

    if named is not None:
        if options["model"] not in (BUNDLED, named):
            raise typer.BadParameter(f"names {named!r}, --model {options['model']!r}; give one", param_hint="MODEL")
        options["model"] = named
    note(options["model"], loads=False)
    # A limit on tokens changes nothing that is shown here.
    options.pop("max_tokens", None)
    found = inspect_checkpoint(**options)
    if as_json:
        print_json({**asdict(found), "recipe": found.recipe.to_dict()})
        return
    table = new_table("", "", header=False)
    for name, value in _info_rows(found):
        table.add_row(name, Text(value))
    print_table(table)


def _info_rows(found: "ModelInfo") -> Iterator[tuple[str, str]]:
    recipe = found.recipe
    grouping = (
        f"{counted(found.query_heads, 'query head')} on {counted(found.value_heads, 'value head')}, "
        f"{inflected(found.value_heads, '', 'each ')}{found.head_width} wide"
    )
    share = found.weight_bytes / found.full_weight_bytes if found.full_weight_bytes else 1.0
    yield "model", found.name if found.source == found.name else f"{found.name} (from {found.source})"
    yield "architecture", f"{found.architecture}, {counted(found.num_layers, 'layer')}, {found.model_width} wide"
    yield "layers with values", f"{describe(found.value_layers)} ({len(found.value_layers)} of {found.num_layers})"
    yield "attention", grouping
    yield "method", recipe.method
    for at, part in enumerate(recipe.parts):
        if recipe.joined:
            yield f"part {at + 1} of {len(recipe.parts)}", f"weight {part.weight:g}"
        words = part.describe()
        through = f", aligned through {words.alignment}" if words.alignment else ""
        yield "signal", f"{part.signal}, weights {part.weights}{through}"
        yield "template", "\n".join(part.template)
        yield "layers read", LAST_LAYER if part.reads_final_norm else words.layers
        if part.centring != "none":
            yield "centred by", "the mean of general sentences, read when the model is loaded first"
    yield "text cleaning", recipe.cleaning
    yield "cost of a text", _cost(found)
    if found.calibration:
        yield "calibrated", found.calibration
    for name, prompt in found.prompts.items():
        default = " (default)" if name == found.default_prompt_name else ""
        yield "prompt", f"{name}{default}: {shown(prompt, 100)}"
    if found.not_used:
        yield "not used", f"what sentence-transformers saved beside the decoder: {', '.join(found.not_used)}"
    yield "embedding", f"{found.width} wide"
    yield "loaded", f"{found.kept_layers} of {counted(found.num_layers, 'layer')}, as {found.dtype}"
    yield "not loaded", ", ".join(found.not_loaded) or "nothing is left out"
    yield "memory for weights", f"{_bytes(found.weight_bytes)} of {_bytes(found.full_weight_bytes)} ({share:.0%})"
    if found.quantization:
        yield "quantized", found.quantization
    if found.tokens_without_embedding:
        yield "tokenizer", found.tokens_without_embedding


def _cost(found: "ModelInfo") -> str:
    if found.template_characters == 0 and found.copies == 1:
        return "1 sequence, the text alone"
    copies = "once" if found.copies == 1 else f"{found.copies} times"
    around = counted(found.template_characters, "character")
    return f"{counted(found.sequences, 'sequence')}, with the text {copies} and {around} of templates"


def _bytes(count: int) -> str:
    size, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "bytes" else f"{size:.1f} {units[0]}"
