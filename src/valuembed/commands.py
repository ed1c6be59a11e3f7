"""What every command shares: the options of a model, errors in one line, tables and JSON.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once. Results go to stdout, everything
else (progress, notes, errors) to stderr.
"""

import copy
import functools
import inspect
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from valuembed import __version__
from valuembed.cleaning import CLEANINGS
from valuembed.completion import COMPLETIONS
from valuembed.errors import ValuembedError
from valuembed.loading_line import LOADING
from valuembed.printable import printable, shortened
from valuembed.recipes import METHODS
from valuembed.templates import TEMPLATES

if TYPE_CHECKING:
    from valuembed.encoder import ValueEncoder

BUNDLED = "bundled"
DEMONSTRATION_NOTE = (
    "note: the bundled model is a small one for demonstration; "
    "name a real one with, for example, --model Qwen/Qwen3-0.6B"
)
INTERRUPTED = 130
SHARED = "Model (the same for every command)"

RECORDED = ("model", "method", "layers", "template", "cleaning")
"""Options whose values are recorded beside stored vectors."""

MEASURE = "Measure and improve"
"""Heading of the help for commands that find out what is best, and make it so."""


LAST_OPTION = f"{__name__}.last_option"


class Command(TyperCommand):
    """A command whose repeatable options take values up to the next option: ``--methods va wva``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Name such an option again before each of its values, which is the form that the parser knows."""
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option = ""
        for arg in [*args, "--"]:
            if arg.startswith("-"):
                if spread and spread[-1] in repeatable and not ctx.resilient_parsing:
                    ctx.fail(f"Option {spread[-1]!r} requires one value or more.")
                option = arg if arg in repeatable else ""
            elif option and spread[-1] != option:
                spread.append(option)
            spread.append(arg)
            if arg != "--":
                ctx.meta[LAST_OPTION] = option
        return super().parse_args(ctx, spread[:-1])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Offer further values of a repeatable option too."""
        last = ctx.meta.get(LAST_OPTION)
        if last and not incomplete.startswith("-"):
            option = next(option for option in self.params if last in option.opts)
            return list(option.shell_complete(ctx, incomplete))
        return super().shell_complete(ctx, incomplete)


app = typer.Typer(
    help="Sentence embeddings from any decoder language model, without training: its attention values are read.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)


def _model_options(
    model: Annotated[str, typer.Option(help="Hub id, local folder, or 'bundled'.", rich_help_panel=SHARED)] = BUNDLED,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(METHODS)}, or a recipe file (.json). Default: aligned_wva, or what a saved "
            "model was saved with.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="'all', 'half', '20:28', '14,15,16', fractions such as '0.65:0.9'. Default: the model's preset, else "
            "0.65 to 0.90 of the depth.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str,
        typer.Option(
            help=f"'auto' (the method's own), one of {', '.join(TEMPLATES)}, chat, or a string with one {{text}}.",
            rich_help_panel=SHARED,
        ),
    ] = "auto",
    cleaning: Annotated[
        str | None,
        typer.Option(
            help=f"What is done to a text before its template: {', '.join(CLEANINGS)}. Default: the recipe's, nothing.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16, or int8 or fp8 for the weights. Default: the checkpoint's.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Such as cpu, cuda or cuda:1. Default: a GPU if there is one.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest sequence, template included; longer texts are cut.",
            rich_help_panel=SHARED,
            show_default=False,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=SHARED, show_default=False),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.", rich_help_panel=SHARED),
    ] = False,
) -> None:
    """Declare the options that every command takes; their names are arguments of :func:`valuembed.load`."""


MODEL_OPTIONS = tuple(inspect.signature(_model_options).parameters)
"""Their names: what a command leaves out that needs no model."""


def command(
    function: Callable[..., None] | None = None,
    *,
    name: str | None = None,
    without: Sequence[str] = (),
    recorded: str | None = None,
    group: typer.Typer = app,
    panel: str | None = None,
) -> Callable[..., Any]:
    """Register a command with the shared options added; it receives them, those that were given, as ``options``.

    Args:
        function: the command. A parameter of its own replaces the shared option of that name.
        name: on the command line; None is the function's.
        without: shared options that the command does not take.
        recorded: what the command reads records its model: options that are not given are then not received either.
            The help says so with this name of it; empty, and the help stays as it is.
        group: what it is a command of; the program itself, unless it is one of several under one name.
        panel: heading of the help that it stands under.
    """
    if function is None:
        return functools.partial(command, name=name, without=without, recorded=recorded, group=group, panel=panel)
    own = [parameter for parameter in inspect.signature(function).parameters if parameter != "options"]
    shared: Mapping[str, inspect.Parameter] = inspect.signature(_model_options).parameters
    if recorded is not None:
        shared = {name: _recorded(entry, recorded) for name, entry in shared.items()}
    parameters = {
        **{name: inspect.signature(function).parameters[name] for name in own},
        **{name: entry for name, entry in shared.items() if name not in own and name not in without},
    }

    parameters = {name: _completed(entry) for name, entry in parameters.items()}

    @functools.wraps(function)
    def run(**given: Any) -> None:
        options = {name: value for name, value in given.items() if name not in own and value is not None}
        with _errors_in_one_line():
            function(**{name: given[name] for name in own}, options=options)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: entry.annotation for name, entry in parameters.items()}
    del run.__dict__["__wrapped__"]
    return group.command(name, cls=Command, rich_help_panel=panel)(run)


def _completed(parameter: inspect.Parameter) -> inspect.Parameter:
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
        option.help = f"{option.help.partition(' Default:')[0]} Default: what {where} records."
        option.show_default = False
    elif parameter.default is not None:
        option.show_default = parameter.default
    return parameter.replace(default=None, annotation=Annotated[kind, option])


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Print what this library raises, and warnings, as one line each; end with the exit code that goes with it."""
    stderr = Console(stderr=True)

    def show(kind: str, message: object, style: str) -> None:
        LOADING.end()
        stderr.print(Text(f"{kind}: {message}", style=style), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **more: show("warning", message, "yellow")
        # Addressed to those who write code, not to those who run a command.
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        told: set[str] = set()

        def is_news(record: logging.LogRecord) -> bool:
            """Whether it was not said before: a command may load a model several times."""
            message = record.getMessage()
            known = message in told
            told.add(message)
            return not known

        log = logging.getLogger("valuembed.decoder")
        log.addFilter(is_news)
        try:
            yield
        except ValuembedError as error:
            show("error", error, "red")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            kept = interrupt.args[0] if interrupt.args else "nothing was written"
            LOADING.end()
            stderr.print(Text(f"interrupted; {kept}", style="yellow"), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            log.removeFilter(is_news)
            LOADING.end()


@contextmanager
def keeps(folder: Path | None, what: str, files: str = "**/*") -> Iterator[None]:
    """Tell with an interrupt what is kept of the work that it ends, if any of it was written.

    Args:
        folder: where such work writes; None is nowhere.
        what: in words, and how to go on.
        files: pattern of what is written into the folder.
    """
    # File systems may round down what they note.
    began = time.time() - 0.05
    try:
        yield
    except KeyboardInterrupt:
        there = folder.glob(files) if folder is not None else ()
        if any(path.is_file() and path.stat().st_mtime >= began for path in there):
            raise KeyboardInterrupt(what) from None
        raise


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"valuembed {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def load_encoder(options: dict[str, Any]) -> "ValueEncoder":
    """The model that the shared options name."""
    note(options["model"])
    from valuembed.model import load

    quiet()
    return load(**options)


def quiet() -> None:
    """Switch off what transformers says on the side, of a process that is ours; whoever calls has imported it already.

    Its bars say nothing that a line about loading does not; those of downloads stay, for whoever watches them.
    """
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    for log, variable in ((transformers_logging, "TRANSFORMERS_VERBOSITY"), (hub_logging, "HF_HUB_VERBOSITY")):
        if variable not in os.environ:
            log.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if sys.stderr.isatty() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()
    else:
        disable_progress_bars()


def note(model: str, *, loads: bool = True) -> None:
    """Say what the bundled model is, to those who run it, and that a model is being loaded.

    Args:
        model: its name.
        loads: whether it will be loaded here.
    """
    if model == BUNDLED:
        Console(stderr=True).print(Text(DEMONSTRATION_NOTE, style="dim"), soft_wrap=True)
    if loads:
        LOADING.begin(model)


def new_table(*columns: str, title: Text | None = None, header: bool = True) -> Table:
    """A table without frames, that copies well."""
    return Table(*columns, title=title, title_justify="left", show_header=header, box=None, pad_edge=False)


def out() -> Console:
    """Where results are printed."""
    LOADING.end()
    return Console(highlight=False)


def shown(text: str, limit: int) -> Text:
    """A text on one line, without what could steer a terminal."""
    return Text(shortened(printable(" ".join(text.split())), limit))


def print_json(value: object) -> None:
    """Print plain data as JSON."""
    LOADING.end()
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))
