"""The options that the command line's commands share, and the headings of the help that options stand under."""

import copy
import inspect
from collections.abc import Mapping
from typing import Annotated, get_args

import typer

from valuembed.cli.completion import COMPLETIONS
from valuembed.recipes import CLEANINGS, METHODS, TEMPLATES

BUNDLED = "bundled"

MEASURE = "Measure and improve"
"""Heading of the help for commands that find out what is best, and make it so."""

# Headings of the options in the help of a command, in this order; those of one command alone stand before the last.
INPUT = "Input"
MODEL = "Model and method"
OUTPUT = "Output"
SETTINGS = "Settings"
LOADING = "How the model is loaded and run"

MODEL_HELP = "The model to use: a hub id such as Qwen/Qwen3-0.6B, a local folder, or 'bundled', a small one to try."
METHODS_HELP = (
    f"The methods to compare: one or more of {', '.join(METHODS)}, or 'all'. Each may name a template or layers of its "
    "own, as in wva:future_eol or va@20:28, and may also be a recipe file (.json)."
)

JSON_HELP = "Print everything as JSON instead of a table."

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
RECORDED = ("model", "method", "layers", "template", "cleaning")
"""Options whose values are recorded beside stored vectors."""


def _model_options(
    model: Annotated[str, typer.Option(help=MODEL_HELP, rich_help_panel=MODEL)] = BUNDLED,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"How vectors are read from the model: one of {', '.join(METHODS)}, or a recipe file (.json). By "
            "default it is aligned_wva, or what a saved model was saved with.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Which layers are read: 'all', 'half', a range such as '20:28', a list such as '14,15,16', or "
            "fractions of the depth such as '0.65:0.9'. By default they are the model's preset, or 0.65 to 0.90 of the "
            "depth for a model without one.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help=f"What every text stands in: 'auto' for the method's own, one of {', '.join(TEMPLATES)}, 'chat' for "
            "the model's chat template, or a string with one {text}.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    cleaning: Annotated[
        str | None,
        typer.Option(
            help=f"What is done to a text before its template: {', '.join(CLEANINGS)}. By default the recipe decides, "
            "and most recipes do nothing.",
            rich_help_panel=LOADING,
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The precision of the weights: float32, bfloat16, float16, or 8 bits as int8 or fp8. By default it "
            "is the checkpoint's, or float32 on a CPU that would be slow with it.",
            rich_help_panel=LOADING,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to compute, such as cpu, cuda or cuda:1. By default it is a GPU if there is one.",
            rich_help_panel=LOADING,
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The longest sequence in tokens, template included; longer texts are cut. By default it is as long as "
            "the model allows.",
            rich_help_panel=LOADING,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Which version of a model on the hub is taken: a branch, a tag or a commit.",
            rich_help_panel=LOADING,
            show_default=False,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python code that comes with the checkpoint, which can do anything on this machine.",
            rich_help_panel=LOADING,
        ),
    ] = False,
) -> None:
    """Declare the options that every command takes; their names are arguments of :func:`valuembed.load`."""


MODEL_OPTIONS = tuple(inspect.signature(_model_options).parameters)
"""Their names: what a command leaves out that needs no model."""


def shared_options(recorded: str | None) -> Mapping[str, inspect.Parameter]:
    """The shared options, as parameters of a command.

    Args:
        recorded: as in :func:`valuembed.cli.framework.command`.
    """
    shared = inspect.signature(_model_options).parameters
    return shared if recorded is None else {name: _recorded(entry, recorded) for name, entry in shared.items()}


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
