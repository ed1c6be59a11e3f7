"""The shell scripts among the examples: their shell is sound, and the program takes the commands that they give."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from valuembed.cli import main as cli

SCRIPTS = sorted((Path(__file__).parents[2] / "examples").glob("*.sh"))


def commands(script: Path) -> list[list[str]]:
    """What the script gives to ``valuembed``, a default in the place of a variable that has one."""
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    given = [shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", line)) for line in lines if not line.startswith("#")]
    return [words[1:] for words in given if words[:1] == ["valuembed"]]


@pytest.mark.process
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_is_sound(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert script.read_text(encoding="utf-8").startswith("#!/bin/bash\n")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_program_takes_the_command(script: Path) -> None:
    program = typer.main.get_command(cli.app)
    assert commands(script)
    for name, *arguments in commands(script):
        # Parsed with every value checked, and not run.
        context = program.commands[name].make_context(name, arguments)
        assert (context.params["inputs"], context.params["output"]) == (["data"], Path("vectors"))


def test_there_is_a_script_for_slurm_and_one_for_a_cluster() -> None:
    engines = {script.name: "--engine" in words for script in SCRIPTS for words in commands(script)}
    assert engines == {"ray_cluster.sh": True, "slurm_array.sh": False, "slurm_ray.sh": True}
