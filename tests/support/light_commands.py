"""Commands that have to answer before anything slow is imported, in a process where nothing has been."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_SCRIPT = """
import json, sys
from importlib import import_module
from typer.testing import CliRunner

module, commands, slow = map(json.loads, sys.argv[1:])
import_module(module)
app = import_module("valuembed.cli.framework").app
for arguments in commands:
    result = CliRunner().invoke(app, arguments, prog_name="valuembed")
    found = sorted(set(slow) & set(sys.modules))
    print(json.dumps([result.exit_code, result.output, repr(result.exception), found]))
"""


class Answer(NamedTuple):
    """What came of a command.

    Attributes:
        code: its exit code.
        output: what it printed.
        exception: what ended it, as Python writes it.
        slow: what had been imported when it had ended, of what is slow to import.
    """

    code: int
    output: str
    exception: str
    slow: list[str]


def answers(
    module: str, commands: Sequence[Sequence[str]], slow: Iterable[str], cwd: Path | None = None
) -> list[Answer]:
    """Run commands one after the other in one process: what one of them imports, those after it have imported too.

    Args:
        module: the only one that is imported before the first.
        commands: their arguments.
        slow: modules that are slow to import.
        cwd: where to run them.
    """
    given = [json.dumps(value) for value in (module, [list(command) for command in commands], list(slow))]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *given], capture_output=True, text=True, cwd=cwd, check=True, timeout=120
    )
    return [Answer(*json.loads(line)) for line in done.stdout.splitlines()]
