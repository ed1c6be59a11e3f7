"""Running commands of the program inside the tests' own process."""

from __future__ import annotations

import io
import signal
import sys
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from valuembed.__main__ import main
from valuembed._utils import streams
from valuembed.cli.main import app
from valuembed.execution import cpu_memory


def run(*arguments: object, stdin: bytes | None = None, width: int = 200) -> Any:
    """What a command gives, on a terminal that is wide enough to break no line unless another width is asked for."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": str(width)})


def succeeds(*arguments: object, stdin: bytes | None = None, width: int = 200) -> str:
    """What a command prints on stdout; it has to end well."""
    result = run(*arguments, stdin=stdin, width=width)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fails(*arguments: object, code: int = 1, stdin: bytes | None = None) -> str:
    """A command's error as one line, without a frame around it; nothing else is printed."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())


class Ended(NamedTuple):
    """How a program ended, and the bytes that it wrote."""

    code: int
    stdout: bytes
    stderr: bytes


def started(*arguments: object, encoding: str = "utf-8", stdout: io.RawIOBase | None = None) -> Ended:
    """Run the program from its entry point on, with streams in an encoding, as a shell would start it.

    Args:
        arguments: of the program.
        encoding: of both streams.
        stdout: where results go; None is into memory.
    """
    results, notes = io.BytesIO(), io.BytesIO()
    before = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["valuembed", *map(str, arguments)])
        patch.setattr(cpu_memory, "tune_memory", lambda: None)
        for name in ("stdout", "stderr"):
            patch.setattr(sys, f"__{name}__", getattr(sys, f"__{name}__"))
        buffer = results if stdout is None else io.BufferedWriter(stdout)
        patch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
        patch.setattr(sys, "stderr", io.TextIOWrapper(notes, encoding=encoding))
        # Where a stream cannot be written, the real one would be led to nowhere.
        patch.setattr(streams, "give_up", lambda number=1: None)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
            if stdout is None:
                sys.stdout.flush()
            sys.stderr.flush()
        finally:
            signal.signal(signal.SIGINT, before[0])
            sys.unraisablehook = before[1]
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.detach()  # type: ignore[union-attr]
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, results.getvalue(), notes.getvalue())
