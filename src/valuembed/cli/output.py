"""What the command line prints: tables and JSON on stdout; notes, warnings and errors, a line each, on stderr."""

import json
import logging
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from valuembed._utils.loading_line import LINE
from valuembed._utils.streams import can_hold
from valuembed._utils.text import printable, shortened
from valuembed.cli.options import BUNDLED
from valuembed.errors import ValuembedError

DEMONSTRATION_NOTE = (
    "note: the bundled model is a small one for demonstration; "
    "name a real one with, for example, --model Qwen/Qwen3-0.6B"
)
INTERRUPTED = 130
_LEAST_WIDTH = 20


@contextmanager
def errors_in_one_line() -> Iterator[None]:
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

        log = logging.getLogger("valuembed.backbone.dtypes")
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
