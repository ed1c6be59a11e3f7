"""Options as dataclasses: each declared once, for functions that take them by keyword and for the command line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from valuembed.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Self


def option(default: Any, help: str, **shown: Any) -> Any:
    """Declare a field that is an option of the command line too.

    Args:
        default: of the field.
        help: whole sentences.
        shown: what else :func:`typer.Option` takes, such as ``metavar`` and ``min``; ``names``, where it is called
            otherwise there.
    """
    return field(default=default, metadata={"help": help, **shown})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold keyword arguments that several functions take; each field is one of them."""

    @classmethod
    def of(cls, given: Mapping[str, Any], taken_by: Callable[..., Any], base: Self | None = None) -> Self:
        """Make options of the keyword arguments of a function.

        Args:
            given: those that the function has no parameter for.
            taken_by: the function, for what is said of a wrong one.
            base: options that hold where none are given; None is the defaults.

        Raises:
            OptionError: one of them is unknown.
        """
        check_keywords(given, cls.names(), taken_by)
        return replace(base if base is not None else cls(), **given)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the fields."""
        return tuple(entry.name for entry in fields(cls))

    def keywords(self) -> dict[str, Any]:
        """The options that are not the defaults, as keyword arguments."""
        values = {entry.name: (getattr(self, entry.name), entry.default) for entry in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def check_keywords(given: Iterable[str], known: Collection[str], taken_by: Callable[..., Any]) -> None:
    """Raise where a keyword argument is unknown.

    Args:
        given: names of those that the function has no parameter for.
        known: the names among them that mean something.
        taken_by: the function.

    Raises:
        OptionError: it names the argument, and what is legal.
    """
    if unknown := [name for name in given if name not in known]:
        legal = [*parameters_of(taken_by), *known]
        raise OptionError(
            f"{taken_by.__name__}() has no option {unknown[0]!r}; {did_you_mean(unknown[0], legal)}"
            f"legal: {', '.join(legal)}"
        )


def parameters_of(function: Callable[..., Any]) -> list[str]:
    """The names of a function's own parameters, without what collects others."""
    collecting = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    return [name for name, entry in signature(function).parameters.items() if entry.kind not in collecting]


def did_you_mean(name: object, legal: Iterable[str]) -> str:
    """The beginning of an advice, for a name that is almost one of those that are legal; else empty."""
    near = get_close_matches(str(name), legal, 1)
    return f"did you mean {near[0]!r}? " if near else ""
