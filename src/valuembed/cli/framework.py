"""Commands of the command line: what makes one of a function, and how it comes to a model.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once. Results go to stdout, everything
else (progress, notes, errors) to stderr.
"""

import functools
import gc
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from valuembed._utils.streams import is_watched
from valuembed._utils.version import __version__
from valuembed.cli.fields import Fields
from valuembed.cli.options import INPUT, LOADING, MODEL, OUTPUT, completed, shared_options
from valuembed.cli.output import errors_in_one_line, note
from valuembed.errors import RecipeError
from valuembed.recipes import PURPOSES, check_purpose

if TYPE_CHECKING:
    from valuembed.models import TextEncoder, ValueEncoder

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


def command(
    function: Callable[..., None] | None = None,
    *,
    name: str | None = None,
    without: Sequence[str] = (),
    recorded: str | None = None,
    group: typer.Typer = app,
    panel: str | None = None,
    order: Sequence[str] = (),
    examples: Sequence[str] = (),
) -> Callable[..., Any]:
    """Register a command with the shared options added; it receives them, those that were given, as ``options``.

    A parameter that is annotated with :class:`Fields` stands for the options that these make.

    Args:
        function: the command. A parameter of its own replaces the shared option of that name.
        name: on the command line; None is the function's.
        without: shared options that the command does not take.
        recorded: what the command reads records its model: options that are not given are then not received either.
            The help says so with this name of it; empty, and the help stays as it is.
        group: what it is a command of; the program itself, unless it is one of several under one name.
        panel: heading of the help that it stands under.
        order: names of options of one heading that the help lists in this order.
        examples: command lines that run as they are; its help ends with them.
    """
    if function is None:
        return functools.partial(
            command,
            name=name,
            without=without,
            recorded=recorded,
            group=group,
            panel=panel,
            order=order,
            examples=examples,
        )
    declared = {key: entry for key, entry in inspect.signature(function).parameters.items() if key != "options"}
    made = {key: of for key, entry in declared.items() if (of := Fields.in_place_of(entry)) is not None}
    own = [key for key in declared if key not in made]
    parameters: dict[str, inspect.Parameter] = {}
    for key, entry in declared.items():
        parameters |= made[key].parameters() if key in made else {key: entry}
    # A purpose stands for a method.
    without = [*without, "purpose"] if "method" in without else without
    shared = {
        key: entry for key, entry in shared_options(recorded).items() if key not in parameters and key not in without
    }
    parameters |= shared
    listed = iter(order)
    keys = [next(listed) if key in order else key for key in parameters]
    parameters = {key: completed(parameters[key].replace(kind=inspect.Parameter.KEYWORD_ONLY)) for key in keys}

    @functools.wraps(function)
    def run(**given: Any) -> None:
        with errors_in_one_line():
            given = _with_purpose(given)
            options = {key: given[key] for key in shared if given.get(key) is not None}
            _check_names(given)
            of_fields = {key: of.values(given) for key, of in made.items()}
            function(**{key: given[key] for key in own}, **of_fields, options=options)

    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {key: entry.annotation for key, entry in parameters.items()}
    del run.__dict__["__wrapped__"]
    epilog = escape("\n".join(["Example:" if len(examples) == 1 else "Examples:", *examples])) if examples else None
    return group.command(name, cls=Command, rich_help_panel=panel, epilog=epilog)(run)


def _with_purpose(given: dict[str, Any]) -> dict[str, Any]:
    """A purpose is the name of a method, for all that a command calls; what it stands for is told.

    Raises:
        RecipeError: it is unknown, or a method is named too.
    """
    rest = {key: value for key, value in given.items() if key != "purpose"}
    if (purpose := given.get("purpose")) is None:
        return rest
    if given.get("method") is not None:
        raise RecipeError(f"--for {purpose} stands for a method, and --method {given['method']} is one; give one")
    named = check_purpose(purpose)
    typer.echo(f"for {named}: {PURPOSES[named].describe().vector}", err=True)
    return {**rest, "method": named}


def _check_names(given: dict[str, Any]) -> None:
    """Refuse a wrong name before anything slow is imported, whichever command it is given to."""
    from valuembed.models import check_load

    names = {*inspect.signature(check_load).parameters, "revision"}
    if given.get("engine") == "ray":
        # The devices are those of its workers.
        names.remove("device")
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


def load_encoder(options: dict[str, Any]) -> "ValueEncoder | TextEncoder":
    """The model that the shared options name, without sentence-transformers where vectors of texts will do."""
    note(options["model"])
    with slow_imports():
        from valuembed.models import load_text_encoder

    quiet()
    return load_text_encoder(**options) or load_model(options, is_noted=True)


def load_model(options: dict[str, Any], *, is_noted: bool = False) -> "ValueEncoder":
    """The model that the shared options name, as :func:`valuembed.load` gives it; ``is_noted``: it was told already."""
    if not is_noted:
        note(options["model"])
    with slow_imports():
        from valuembed.models import load

    quiet()
    return load(**options)


def quiet() -> None:
    """Switch off what transformers says on the side, of a process that is ours; whoever calls has imported it already.

    Its bars say nothing that a line about loading does not; those of downloads stay, for whoever watches them.
    """
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging as hub_logging  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    for log, variable in ((transformers_logging, "TRANSFORMERS_VERBOSITY"), (hub_logging, "HF_HUB_VERBOSITY")):
        if variable not in os.environ:
            log.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if is_watched() and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        enable_progress_bars()
    else:
        disable_progress_bars()
