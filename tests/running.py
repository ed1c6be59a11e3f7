"""Running commands of the program inside the tests' own process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from valuembed.commands import app


def run(*arguments: object, width: int = 200) -> Any:
    """What a command gives, on a terminal that is wide enough to break no line unless another width is asked for."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(width)})


def succeeds(*arguments: object, width: int = 200) -> str:
    """What a command prints on stdout; it has to end well."""
    result = run(*arguments, width=width)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fails(*arguments: object, code: int = 1) -> str:
    """A command's error as one line, without a frame around it; nothing else is printed."""
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())
