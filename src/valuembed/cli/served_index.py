"""An index and the model that made it, for commands that answer requests."""

from typing import TYPE_CHECKING, Any

from valuembed.cli.framework import load_model
from valuembed.cli.options import BUNDLED

if TYPE_CHECKING:
    from valuembed.models import ValueEncoder
    from valuembed.search import LiveIndex, LiveMap


def open_index(address: str, options: dict[str, Any]) -> "tuple[LiveIndex, dict[str, Any]]":
    """An index, and the shared options with what it records of its model where they were not given.

    Raises:
        InputError: there is no index, or its model is not found.
    """
    from valuembed.search import LiveIndex
    from valuembed.vectors import recorded_options

    index = LiveIndex.open(address)
    return index, recorded_options(index.vector_spec, address, options)


def load_with_index(address: str | None, options: dict[str, Any]) -> "tuple[LiveIndex | None, ValueEncoder]":
    """An index, where there is one, and the model: of the shared options, of the index, or the bundled one.

    Raises:
        InputError: there is no index, its model is not found, or the model that is named is of another make.
    """
    if address is None:
        return None, load_model({"model": BUNDLED, **options})
    index, options = open_index(address, options)
    return index, load_for_index(index, options)


def load_for_index(index: "LiveIndex", options: dict[str, Any]) -> "ValueEncoder":
    """The model of an index, as :func:`open_index` found what to load.

    Raises:
        InputError: it is of another make.
    """
    from valuembed.vectors import telling_what_made

    with telling_what_made(index.vector_spec, index.address):
        model = load_model(options)
    index.check_make(model)
    return model


def map_of(index: "LiveIndex | None") -> "LiveMap | None":
    """The map of an index, which is made once somebody asks for it."""
    if index is None:
        return None
    from valuembed.search import LiveMap

    return LiveMap(index)
