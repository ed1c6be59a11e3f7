"""The help of every command: whole sentences, the same headings in the same order, examples that parse."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer
from rich.text import Text
from running import succeeds

from valuembed.cli import main as cli, output as cli_output
from valuembed.cli.options import BUNDLED, INPUT, LOADING, MODEL, OUTPUT

pytestmark = pytest.mark.slow

PROGRAM: Any = typer.main.get_command(cli.app)


def every(group: Any, typed: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= every(command, f"{typed}{name} ")
        # Other tests register commands of their own.
        elif command.callback.__module__.startswith("valuembed."):
            found[typed + name] = command
    return found


EVERY = every(PROGRAM)
"""Every command by what is typed for it."""


def parameters(command: Any) -> list[Any]:
    context = command.make_context("x", [], resilient_parsing=True)
    return [parameter for parameter in command.get_params(context) if parameter.name != "help"]


def examples(command: Any) -> list[str]:
    heading, *lines = command.epilog.splitlines()
    assert heading == ("Example:" if len(lines) == 1 else "Examples:")
    return lines


@pytest.mark.parametrize("name", EVERY)
def test_every_option_is_told_in_whole_sentences(name):
    for parameter in parameters(EVERY[name]):
        told = f"{name} {parameter.name}: {parameter.help!r}"
        assert parameter.help, told
        assert parameter.help.endswith("."), told
        assert parameter.help[0].isupper(), told
        assert len(parameter.help.split()) >= 4, told
        assert "Default:" not in parameter.help, told
    assert EVERY[name].help.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", EVERY)
def test_headings_are_the_same_and_in_the_same_order(name):
    panels = [entry.rich_help_panel for entry in parameters(EVERY[name]) if entry.param_type_name == "option"]
    assert None not in panels, f"{name}: give each option one of the headings of commands.py"
    order = list(dict.fromkeys(panels))
    # An option of a heading that stood before would make the heading stand there twice.
    assert [panel for index, panel in enumerate(panels) if index == 0 or panel != panels[index - 1]] == order
    shared = [INPUT, MODEL, OUTPUT, LOADING]
    assert [panel for panel in order if panel in shared] == [panel for panel in shared if panel in order]
    assert all(order.index(panel) > order.index(OUTPUT) for panel in order if panel not in shared if OUTPUT in order)
    assert LOADING not in order or order[-1] == LOADING


@pytest.mark.parametrize("name", EVERY)
def test_examples_parse_and_show_this_command(name):
    lines = examples(EVERY[name])
    assert any(line.startswith(f"valuembed {name} ") or line == f"valuembed {name}" for line in lines)
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "valuembed"
        assert len(line) < 100, line
        command = PROGRAM
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        command.make_context(line, words)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", EVERY)
def test_no_word_of_the_help_is_lost_in_a_narrow_terminal(name, width):
    shown = succeeds(*name.split(), "--help", width=width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    letters = "".join(shown.replace("│", " ").split())
    for parameter in parameters(EVERY[name]):
        for word in parameter.help.split():
            assert word in letters, (parameter.name, word)
    for line in examples(EVERY[name]):
        assert "".join(line.split()) in letters


def test_help_ends_with_the_examples():
    shown = succeeds("info", "--help").rstrip().splitlines()
    assert [line.strip() for line in shown[-3:]] == [
        "Examples:",
        "valuembed info",
        f"valuembed info {BUNDLED} --method va --layers half",
    ]


@pytest.mark.parametrize("width", [45, 60, 80, 120])
def test_a_table_breaks_texts_and_no_number(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    table = cli_output.new_table("name of it", "some score held out", "text", right=[1])
    table.add_row("a", Text("61.23"), Text("several words that go on for more than one line of a narrow terminal"))
    table.add_row("b", Text("-7.00"), Text("short"))
    cli_output.print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert all(number in "\n".join(lines) for number in ("61.23", "-7.00"))
    assert "".join("".join(lines).split()).count("name") == 1
    letters = "".join("".join(lines).split())
    assert all(word in letters for word in ("several", "words", "narrow", "terminal", "score", "held", "short"))
    assert "\N{HORIZONTAL ELLIPSIS}" not in letters
    first, second = (next(line for line in lines if number in line) for number in ("61.23", "-7.00"))
    assert first.index("61.23") == second.index("-7.00")
