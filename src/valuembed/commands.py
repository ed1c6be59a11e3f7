"""What every command shares: the options of a model, errors in one line, tables and JSON.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once. Results go to stdout, everything
else (progress, notes, errors) to stderr.
"""

import copy
import functools
import gc
import inspect
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from valuembed import __version__
from valuembed.cleaning import CLEANINGS
from valuembed.completion import COMPLETIONS
from valuembed.errors import ValuembedError
from valuembed.loading_line import LINE
from valuembed.printable import printable, shortened
from valuembed.recipes import METHODS
from valuembed.streams import can_hold, is_watched
from valuembed.templates import TEMPLATES

if TYPE_CHECKING:
    from valuembed.encoder import ValueEncoder

BUNDLED = "bundled"
DEMONSTRATION_NOTE = (
    "note: the bundled model is a small one for demonstration; "
    "name a real one with, for example, --model Qwen/Qwen3-0.6B"
)
INTERRUPTED = 130
_LEAST_WIDTH = 20

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

MEASURE = "Measure and improve"
"""Heading of the help for commands that find out what is best, and make it so."""


LAST_OPTION = f"{__name__}.last_option"


class Command(TyperCommand):
    """A command whose repeatable options take values up to the next option: ``--methods va wva``."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters in the order of the headings that they stand under in the help."""
        order = {INPUT: 0, MODEL: 1, OUTPUT: 2, LOADING: 4}
        parameters = super().get_params(ctx)
        panels = {getattr(one, "rich_help_panel", None) for one in parameters}
        for parameter in parameters:
            if parameter.name == "help":
                parameter.rich_help_panel = OUTPUT if OUTPUT in panels else LOADING  # type: ignore[attr-defined]
        return sorted(parameters, key=lambda one: order.get(getattr(one, "rich_help_panel", None) or "", 3))

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


def command(
    function: Callable[..., None] | None = None,
    *,
    name: str | None = None,
    without: Sequence[str] = (),
    recorded: str | None = None,
    group: typer.Typer = app,
    panel: str | None = None,
    examples: Sequence[str] = (),
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
        examples: command lines that run as they are; its help ends with them.
    """
    if function is None:
        return functools.partial(
            command, name=name, without=without, recorded=recorded, group=group, panel=panel, examples=examples
        )
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
            _check_names(given)
            function(**{name: given[name] for name in own}, options=options)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: entry.annotation for name, entry in parameters.items()}
    del run.__dict__["__wrapped__"]
    epilog = escape("\n".join(["Example:" if len(examples) == 1 else "Examples:", *examples])) if examples else None
    return group.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)(run)


def _check_names(given: dict[str, Any]) -> None:
    """Refuse a wrong name before anything slow is imported, whichever command it is given to."""
    from valuembed.model_info import check_load

    names = {*inspect.signature(check_load).parameters, "revision"}
    if named := {name: value for name, value in given.items() if name in names and value is not None}:
        check_load(**named)


@contextmanager
def slow_imports() -> Iterator[None]:
    """Import without collecting garbage, which takes a seventh of the seconds that torch and the like take."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            # What was imported stays: later collections need not look at it.
            gc.freeze()


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
        option.help = f"{option.help.partition(' By default')[0]} By default it is what {where} records."
        option.show_default = False
    elif parameter.default is not None:
        option.show_default = parameter.default
    return parameter.replace(default=None, annotation=Annotated[kind, option])


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Print what this library raises, and warnings, as one line each; end with the exit code that goes with it."""
    stderr = Console(stderr=True)

    def show(kind: str, message: object, style: str) -> None:
        LINE.end()
        line = printable(" ".join(str(message).split("\n")))
        stderr.print(Text(f"{kind}: {line}", style=style), soft_wrap=True)

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

        log = logging.getLogger("valuembed.dtypes")
        log.addFilter(is_news)
        try:
            yield
        except ValuembedError as error:
            show("error", error, "red")
            raise typer.Exit(1) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            # What no function could name better, such as a full disk under a folder for temporary files.
            named = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
            said = error.strerror or error
            show("error", f"{named}: {said}" if named else said, "red")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as interrupt:
            kept = interrupt.args[0] if interrupt.args else "nothing was written"
            LINE.end()
            stderr.print(Text(f"interrupted; {kept}", style="yellow"), soft_wrap=True)
            raise typer.Exit(INTERRUPTED) from None
        finally:
            log.removeFilter(is_news)
            LINE.end()


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
    with slow_imports():
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
    if is_watched() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
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
        LINE.begin(model)


def new_table(*columns: str, title: Text | None = None, header: bool = True, right: Collection[int] = ()) -> Table:
    """A table without frames, that copies well; :func:`print_table` prints it.

    Args:
        columns: what stands above each.
        title: what stands above the table.
        header: whether the columns' names are shown.
        right: columns of numbers, by their place, which are set flush right and never broken.
    """
    table = Table(title=title, title_justify="left", show_header=header, box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if place in right else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table so that nothing is cut: texts are folded, and what is too wide then is left to the terminal."""
    console = out()
    if Measurement.get(console, console.options.update(max_width=9999), table).maximum > console.width:
        for column in table.columns:
            head, *cells = (Measurement.get(console, console.options, cell) for cell in (column.header, *column.cells))
            widest = max((cell.maximum for cell in cells), default=0)
            if column.justify == "right":
                # A number stays on one line, the words above it may stand on several.
                column.width = max(head.minimum, widest)
            else:
                column.min_width = max(head.minimum, min(widest, _LEAST_WIDTH))
        # Each column has a blank on either side.
        console.width = max(console.width, sum((one.width or one.min_width or 0) + 2 for one in table.columns))
    console.print(table)


def out() -> Console:
    """Where results are printed."""
    LINE.end()
    return Console(highlight=False)


def shown(text: str, limit: int) -> Text:
    """A text on one line, without what could steer a terminal."""
    return Text(shortened(printable(" ".join(text.split())), limit))


def print_json(value: object) -> None:
    """Print plain data as JSON, in ASCII where stdout could not hold it else."""
    LINE.end()
    text = json.dumps(value, ensure_ascii=False, indent=2)
    typer.echo(text if can_hold(text) else json.dumps(value, indent=2))
