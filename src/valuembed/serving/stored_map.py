"""What a server needs of the map of an index: whoever starts it makes one, as the rooms know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class MapArea(Protocol):
    """Rows of a map that are similar.

    Attributes:
        words: that tell it from the other areas.
        rows: how many of the map's rows it has.
        place: where they crowd.
        examples: numbers of the rows next to that place.
    """

    @property
    def words(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def rows(self) -> int: ...  # noqa: D102

    @property
    def place(self) -> tuple[float, float]: ...  # noqa: D102

    @property
    def examples(self) -> Sequence[int]: ...  # noqa: D102


class PlacedRows(Protocol):
    """A map of an index, or of a sample of it.

    Attributes:
        version: differs between maps.
        rows: of the index.
        keys: of the rows that are on the map.
        numbers: the place of each key in that list.
        places: ``[b, 2]``, from -1 to 1.
        area_of: ``[b]`` uint8, the area of each row.
        areas: the largest first.
    """

    @property
    def version(self) -> str: ...  # noqa: D102

    @property
    def rows(self) -> int: ...  # noqa: D102

    @property
    def keys(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def numbers(self) -> Mapping[str, int]: ...  # noqa: D102

    @property
    def places(self) -> NDArray[np.float32]: ...  # noqa: D102

    @property
    def area_of(self) -> NDArray[np.uint8]: ...  # noqa: D102

    @property
    def areas(self) -> Sequence[MapArea]: ...  # noqa: D102


class StoredMap(Protocol):
    """A map that is made while a server runs; :class:`valuembed.search.LiveMap` is one.

    Its methods are called from several threads at once, and raise
    :class:`valuembed.errors.IndexUnavailableError` where the index is gone or cannot be read.
    """

    def find(self) -> tuple[PlacedRows | None, dict[str, Any]]:
        """The latest map, or None, and what is going on: ``{"state", "step", "done"}``."""

    def passages(self, keys: list[str]) -> Sequence[dict[str, Any] | None]:
        """Rows by their keys, as :meth:`valuembed.serving.stored_index.StoredIndex.search` gives them, or None."""

    def close(self) -> None:
        """End what is being made."""
