"""Running commands of the program inside the tests' own process."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from valuembed.commands import app


def run(*arguments: object, stdin: bytes | None = None) -> Any:
    """What a command gives, on a terminal wide enough to break no line."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "200"})


def succeeds(*arguments: object, stdin: bytes | None = None) -> str:
    """What a command prints on stdout; it has to end well."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fails(*arguments: object, code: int = 1, stdin: bytes | None = None) -> str:
    """A command's error as one line, without a frame around it; nothing else is printed."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())
