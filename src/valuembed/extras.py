"""Optional dependencies: one import helper, whose error is the line that installs what is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from valuembed.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import a module that only one of the extras installs.

    Args:
        module: dotted name of the module.
        extra: name of the extra in ``pyproject.toml`` that brings it.

    Raises:
        MissingExtraError: the module's package is not installed. A package that is there but fails while it is imported
            raises its own error, for installing it again would not help.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(f'{package} is not installed; run: pip install "valuembed[{extra}]"') from error
