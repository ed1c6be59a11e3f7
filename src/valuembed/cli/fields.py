"""Options of commands made of the fields of dataclasses, which declare name, type, default and help once for all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from inspect import Parameter
from typing import Annotated, Any, get_args

import typer

from valuembed._utils.options import Options

KINDS: dict[str, type] = {"bool": bool, "float": float, "int": int}
"""What the command line makes of a value, by the first word of a field's type; of all others a text."""


@dataclass(frozen=True)
class Fields:
    """Stand in the signature of a command for the options that a dataclass declares; it receives them by name.

    Attributes:
        of: the dataclass; its fields that :func:`valuembed._utils.options.option` made are options.
        panel: heading of the help.
        panels: other headings, by name of the field.
        is_open: hand on only what was given, because a record may say the rest.
    """

    of: type[Options]
    panel: str
    panels: Mapping[str, str] = field(default_factory=dict)
    is_open: bool = False

    @classmethod
    def in_place_of(cls, parameter: Parameter) -> Fields | None:
        """What a parameter of a command stands for; None where that is itself."""
        return next((entry for entry in get_args(parameter.annotation) if isinstance(entry, cls)), None)

    def parameters(self) -> dict[str, Parameter]:
        """The options, as parameters of a command."""
        return {entry.name: self._parameter(entry) for entry in self._shown()}

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a command was given for them; a list is empty where it was not given."""
        found = {entry: given[entry.name] for entry in self._shown()}
        return {
            entry.name: entry.default if value in (None, []) else tuple(value) if isinstance(value, list) else value
            for entry, value in found.items()
            if not (self.is_open and (value in (None, []) or value is False))
        }

    def _shown(self) -> list[Field[Any]]:
        """The fields that are options: what a dataclass adds to those of its parent comes before them."""
        shown = [entry for entry in fields(self.of) if "help" in entry.metadata]
        return sorted(shown, key=lambda entry: entry.name not in self.of.__annotations__)

    def _parameter(self, entry: Field[Any]) -> Parameter:
        held_in, first = re.match(r"(tuple\[|Sequence\[|)(\w+)", str(entry.type)).groups()  # type: ignore[union-attr]
        kind = KINDS.get(first, str)
        is_flag = kind is bool
        default = None if held_in or (self.is_open and not is_flag) else entry.default
        shown = dict(entry.metadata)
        names = shown.pop("names", [f"--{entry.name.replace('_', '-')}"] if is_flag else [])
        panel = self.panels.get(entry.name, self.panel)
        option = typer.Option(*names, rich_help_panel=panel, show_default=default is not None, **shown)
        taken: Any = list[kind] if held_in else kind  # type: ignore[valid-type]
        annotation: Any = Annotated[taken if default is not None else taken | None, option]
        return Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
