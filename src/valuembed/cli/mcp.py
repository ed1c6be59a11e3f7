"""The command ``mcp``: an index as tools of an assistant."""

import logging
import sys
from typing import Annotated, Any

import typer

from valuembed._utils.optional import require
from valuembed.cli.framework import command
from valuembed.cli.options import INPUT


@command(
    recorded="INDEX",
    examples=("valuembed mcp --index notes.index",),
)
def mcp(
    index: Annotated[
        str,
        typer.Option(
            metavar="INDEX",
            help="The index that 'valuembed index' made, or its address.",
            rich_help_panel=INPUT,
            show_default=False,
        ),
    ],
    options: dict[str, Any],
) -> None:
    """Let an assistant search an index, by the Model Context Protocol over stdin and stdout.

    Assistants start it themselves: name it in their configuration. It answers at once, and loads the model meanwhile.
    """
    require("mcp", "mcp")
    from valuembed.cli.served_index import load_for_index, open_index
    from valuembed.serving import serve_mcp

    live, options = open_index(index, options)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    logging.getLogger("valuembed").setLevel(logging.INFO)
    if sys.stdin.isatty():
        typer.echo("waiting for an assistant on stdin; Ctrl-C ends it", err=True)
    serve_mcp(live, lambda: load_for_index(live, options))
