"""What a server needs of an index: whoever starts it opens one, as the rooms know nothing of each other."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class StoredIndex(Protocol):
    """An index that is searched while others write it; :meth:`valuembed.search.LiveIndex.open` gives one.

    Its methods are called from several threads at once, and raise
    :class:`valuembed.errors.IndexUnavailableError` where it is gone or cannot be read.
    """

    @property
    def width(self) -> int:
        """Width of a vector that it can be asked with."""

    def check(
        self, *, where: str | None = None, hybrid: bool | None = None, centre: bool | Literal["whiten"] | None = None
    ) -> None:
        """Raise an :class:`valuembed.errors.InputError` for what cannot be asked, whatever the vector."""

    def search(
        self,
        vector: NDArray[np.float32] | None = None,
        *,
        query: str | None = None,
        like: str | None = None,
        k: int = 10,
        where: str | None = None,
        hybrid: bool | None = None,
        centre: bool | Literal["whiten"] | None = None,
    ) -> list[dict[str, Any]]:
        """The k rows that are most similar to a vector ``[width]`` or to the row with a key, as plain data."""

    def around(self, key: str, before: int = 1, after: int = 1) -> list[dict[str, Any]]:
        """The row with a key and those around it in its text or file, in order, as plain data."""

    def describe(self) -> dict[str, Any]:
        """Rows, columns with their types, width, model, method and names of the sources."""
