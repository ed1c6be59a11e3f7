"""Options of commands made of the fields of dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Annotated, Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from valuembed._utils.options import Options, option
from valuembed.backbone import LoadOptions
from valuembed.cli.fields import Fields
from valuembed.cli.framework import command
from valuembed.cli.options import SHARED
from valuembed.cli.train import ORDER
from valuembed.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Parent(Options):
    inherited: str = option("a", "A word.")


@dataclass(frozen=True, kw_only=True)
class Some(Parent):
    count: int = option(3, "A number.", min=1, metavar="N")
    share: float | None = option(None, "A share.")
    is_quick: bool = option(False, "Be quick.")
    widths: tuple[int, ...] = option((), "Widths.")
    words: Sequence[str] | None = option(None, "Words.")
    of_python: str | None = None


def _invoke(fields, *arguments):
    got: dict[str, Any] = {}
    group = typer.Typer()

    def shown(options, some, own=1):
        got.update(some=some, own=own, options=options)

    shown.__annotations__ = {"some": Annotated[dict[str, Any], fields], "own": int}
    command(shown, group=group, without=tuple(SHARED))
    result = CliRunner().invoke(group, [str(argument) for argument in arguments])
    return got if result.exit_code == 0 else result.output


def test_values_arrive_in_the_types_of_the_fields():
    given = ["--count", 4, "--share", 0.5, "--is-quick", "--widths", 8, 9, "--words", "x", "--inherited", "b"]
    assert _invoke(Fields(Some, "Heading"), *given, "--own", 2) == {
        "some": {"count": 4, "share": 0.5, "is_quick": True, "widths": (8, 9), "words": ("x",), "inherited": "b"},
        "own": 2,
        "options": {},
    }
    assert Some.of(_invoke(Fields(Some, "Heading"))["some"], _invoke) == Some()


def test_of_open_ones_only_what_is_given_is_handed_on():
    assert _invoke(Fields(Some, "Heading", is_open=True))["some"] == {}
    assert _invoke(Fields(Some, "Heading", is_open=True), "--is-quick")["some"] == {"is_quick": True}
    assert _invoke(Fields(Some, "Heading", is_open=True), "--count", 3)["some"] == {"count": 3}


def test_limits_and_types_are_held():
    assert "greater than or equal to 1" in _invoke(Fields(Some, "Heading"), "--count", 0)
    assert "Invalid value for '--widths'" in _invoke(Fields(Some, "Heading"), "--widths", "x")
    assert "No such option: --of-python" in _invoke(Fields(Some, "Heading"), "--of-python", 1)


def test_what_a_class_adds_stands_before_what_it_inherits():
    assert [*Fields(Some, "Heading").parameters()][-1] == "inherited"


def test_headings():
    made = Fields(Some, "A", {"share": "B"}).parameters()
    panels = {name: get_args(entry.annotation)[1].rich_help_panel for name, entry in made.items()}
    assert panels == {name: "B" if name == "share" else "A" for name in panels}


@pytest.mark.parametrize("entry", [Parameter("x", Parameter.KEYWORD_ONLY, annotation=Annotated[int, "no"])])
def test_other_parameters_stand_for_themselves(entry):
    assert Fields.in_place_of(entry) is None


def test_every_option_of_loading_that_has_help_is_shared():
    of_commands = {"dtype", "device", "max_tokens", "revision", "trust_remote_code"}
    assert of_commands == set(LoadOptions.names()) & SHARED.keys()


def test_the_order_of_training_names_every_setting_that_has_help():
    assert Fields(TrainSettings, "Heading").parameters().keys() == set(ORDER) - {"query_prompt", "document_prompt"}
