"""The options that the command line's commands share, and the headings of the help that options stand under."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

import typer

from valuembed._utils.options import Options, option
from valuembed.backbone import LoadOptions
from valuembed.cli.completion import COMPLETIONS
from valuembed.cli.fields import Fields
from valuembed.recipes import CLEANINGS, METHODS, PURPOSES, TEMPLATES

BUNDLED = "bundled"

MEASURE = "Measure and improve"
"""Heading of the help for commands that find out what is best, and make it so."""

# Headings of the options in the help of a command, in this order; those of one command alone stand before the last.
INPUT = "Input"
MODEL = "Model and method"
OUTPUT = "Output"
SETTINGS = "Settings"
LOADING = "How the model is loaded and run"

MODEL_HELP = (
    "The model to use: a hub id such as Qwen/Qwen3-0.6B, a local folder, a GGUF file, or 'bundled', a small one to try."
)
METHODS_HELP = (
    f"The methods to compare: one or more of {', '.join(METHODS)}, or 'all'. Each may name a template or layers of its "
    "own, as in wva:future_eol or va@20:28, and may also be a recipe file (.json)."
)


def json_option(help: str = "Print everything as JSON instead of a table.") -> Any:
    """The option to print JSON, for a command's ``as_json``."""
    return typer.Option("--json", help=help, rich_help_panel=OUTPUT)


AsJson = Annotated[bool, json_option()]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
RECORDED = ("model", "method", "layers", "template", "cleaning")
"""Options whose values are recorded beside stored vectors."""


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(Options):
    """Name a model and what is read from it, as :func:`valuembed.load` does, in words."""

    model: str = option(BUNDLED, MODEL_HELP)
    method: str | None = option(
        None,
        f"How vectors are read from the model: one of {', '.join(METHODS)}, or a recipe file (.json). By "
        "default it is aligned_wva, or what a saved model was saved with.",
    )
    purpose: str | None = option(
        None,
        f"What the vectors are for: one of {', '.join(PURPOSES)}. It stands for the recipe that is known to be best "
        "for it, in place of --method.",
        names=("--for",),
        metavar="PURPOSE",
    )
    layers: str | None = option(
        None,
        "Which layers are read: 'all', 'half', 'third', a range such as '20:28', a list such as '14,15,16', or "
        "fractions of the depth such as '0.65:0.9'. By default they are the model's preset, or the last third of the "
        "layers for a model without one.",
    )
    template: str = option(
        "auto",
        f"What every text stands in: 'auto' for the method's own, one of {', '.join(TEMPLATES)}, 'chat' "
        "for the model's chat template, or a string with one {text}.",
    )
    cleaning: str | None = option(
        None,
        f"What is done to a text before its template: {', '.join(CLEANINGS)}. By default the recipe "
        "decides, and most recipes do nothing.",
    )


SHARED = {
    **Fields(RecipeOptions, MODEL, {"cleaning": LOADING}).parameters(),
    **Fields(LoadOptions, LOADING).parameters(),
}
"""The options that every command takes, as parameters of it; their names are arguments of :func:`valuembed.load`."""

MODEL_OPTIONS = tuple(SHARED)
"""Their names: what a command leaves out that needs no model."""


def shared_options(recorded: str | None) -> Mapping[str, inspect.Parameter]:
    """The shared options, as parameters of a command.

    Args:
        recorded: as in :func:`valuembed.cli.framework.command`.
    """
    return SHARED if recorded is None else {name: _recorded(entry, recorded) for name, entry in SHARED.items()}


def completed(parameter: inspect.Parameter) -> inspect.Parameter:
    """An option or argument with what a shell may offer for it."""
    if parameter.name not in COMPLETIONS:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)
    option.autocompletion = COMPLETIONS[parameter.name]
    return parameter.replace(annotation=Annotated[kind, option])


def _recorded(parameter: inspect.Parameter, where: str) -> inspect.Parameter:
    """A shared option whose default is what a record says, in which case it is None."""
    if parameter.name not in RECORDED:
        return parameter
    kind, option = get_args(parameter.annotation)
    option = copy.copy(option)
    if where:
        option.help = f"{option.help.partition(' By default')[0]} By default it is what {where} records."
        option.show_default = False
    elif parameter.default is not None:
        option.help = f"{option.help} By default it is {parameter.default}."
        option.show_default = False
    return parameter.replace(default=None, annotation=Annotated[kind, option])
