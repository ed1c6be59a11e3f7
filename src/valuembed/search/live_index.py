"""An index for whoever answers requests for a long time: it is searched from several threads, while others write it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed.errors import IndexUnavailableError, InputError
from valuembed.search.centre import MEAN, Centring
from valuembed.search.client_filters import check_client_filter
from valuembed.search.index import Index
from valuembed.search.ledger import IngestLedger
from valuembed.search.map_file import state_of
from valuembed.search.results import Hit, check_make, unit
from valuembed.search.vector_store import Table
from valuembed.search.words import matched_words
from valuembed.vectors import Encoder, is_remote

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CALLED = "the index"
"""What messages call it, which go to clients that the server's folders do not concern."""

PASSAGE_COLUMNS = ("title", "headings", "page", "line")
"""Columns of passages of documents; an index of other texts lacks them."""


class LiveIndex:
    """An index that is searched as it is at the moment; :meth:`open` finds one.

    Rows, columns and mean are those that the latest change left. Every method may be called from any thread, and
    raises :class:`valuembed.errors.IndexUnavailableError` where the index is gone or cannot be read.

    Attributes:
        address: where it is.
        vector_spec: which model and recipe made its vectors; it stays the same, or the index is unavailable.
    """

    def __init__(self, address: str, index: Index) -> None:
        self.address = address
        self.vector_spec = index.vector_spec
        self._lock = threading.Lock()
        self._index = index
        self._mean: Table | None = None
        self._state: tuple[object, ...] = ()

    @classmethod
    def open(cls, address: str | Path) -> LiveIndex:
        """An index that :func:`valuembed.search.build_index` made.

        Raises:
            InputError: there is none, or it is damaged.
            MissingExtraError: the extra ``store`` is not installed.
        """
        # The first messages are for whoever named the address.
        Index.open(address)
        return cls(str(address), Index.open(address, called=CALLED))

    def check_make(self, model: Encoder) -> None:
        """Raise an :class:`InputError` where a model's vectors cannot be compared with those that are stored."""
        check_make(model, self.vector_spec, self.address)

    @property
    def width(self) -> int:
        """Width of a vector that it can be asked with."""
        return self.vector_spec.width

    def check(self, *, where: str | None = None, hybrid: bool | None = None, centre: Centring = None) -> None:
        """Raise what :meth:`search` would raise before it needs a vector."""
        if where is not None:
            check_client_filter(where)
        with self._current() as index:
            index.check(where=where, hybrid=hybrid, centre=centre)

    def search(
        self,
        vector: NDArray[np.float32] | None = None,
        *,
        query: str | None = None,
        like: str | None = None,
        k: int = 10,
        where: str | None = None,
        hybrid: bool | None = None,
        centre: Centring = None,
    ) -> list[dict[str, Any]]:
        """Find the k texts that are most similar to a vector, or to the text of a row.

        Args:
            vector: float32 ``[width]`` or longer, of which the first numbers are taken, of any length above 0.
            query: the text of the vector, if there is one, whose words are looked for in what is found.
            like: the key of a row, in place of a vector; that row itself is left out.
            k: how many to return.
            where, hybrid, centre: as in :meth:`valuembed.search.Index.search`; hybrid needs a query, and None is
                never hybrid without one.

        Returns:
            Plain data, best first: see :func:`answer_of`.

        Raises:
            InputError: the filter is wrong, or one that a client may not send, or the vector has no direction.
            UnknownRowError: no row has this key.
        """
        if where is not None:
            check_client_filter(where)
        with self._current() as index:
            index.check(where=where, hybrid=hybrid, centre=centre)
            if like is not None:
                vector = index.vector_of(like)
            assert vector is not None, "there is a vector or a key"
            # A row is its own neighbour.
            count = k + (like is not None)
            try:
                hits = index.nearest(
                    unit(vector[None, : self.width], "the query")[0],
                    count,
                    words=query if (index.is_hybrid if hybrid is None else hybrid) else None,
                    where=where,
                    centre=centre,
                )
            except IndexUnavailableError as error:
                if where is None or not len(index):
                    raise
                # A condition can mean something, and still fail on what stands in a row.
                raise InputError(
                    f"the filter {where!r:.200} fails on a row; write it so that it suits every row"
                ) from error
        others = [hit for hit in hits if like is None or hit.key != like][:k]
        return [answer_of(hit, rank, query) for rank, hit in enumerate(others, start=1)]

    def around(self, key: str, before: int = 1, after: int = 1) -> list[dict[str, Any]]:
        """A row with those around it in its text or file, in order, as plain data; see :meth:`Index.around`.

        Raises:
            UnknownRowError: no row has this key.
        """
        with self._current() as index:
            hits = index.around(key, before, after)
        return [answer_of(hit, rank) for rank, hit in enumerate(hits, start=1)]

    @property
    def state(self) -> str:
        """What differs after every change of its rows."""
        with self._current() as index:
            return state_of(index.version, len(index))

    def passages(self, keys: list[str]) -> list[dict[str, Any] | None]:
        """Rows by their keys, in this order, as :func:`answer_of` gives them; None for one that is not there."""
        with self._current() as index:
            return [None if hit is None else answer_of(hit, rank) for rank, hit in enumerate(index.hits_of(keys), 1)]

    def describe(self) -> dict[str, Any]:
        """What it holds: rows, columns with their types, the width of a vector, what made it, and its sources."""
        with self._current() as index:
            return {
                "rows": len(index),
                "columns": index.columns,
                "width": self.width,
                "model": self.vector_spec.model,
                "method": str(self.vector_spec.recipe.get("method")),
                "hybrid": index.is_hybrid,
                "sources": IngestLedger.sources(self.address),
            }

    @contextmanager
    def _current(self) -> Iterator[Index]:
        """The index as it is now; what is raised while it is used tells nothing of where it is."""
        try:
            with self._lock:
                self._refresh()
                index = self._index
            yield index
        except IndexUnavailableError as error:
            if not _is_at(self.address):
                raise IndexUnavailableError(
                    f"{CALLED} is gone from where it was; it is served again once it is back"
                ) from error
            if str(error).startswith(CALLED):
                raise
            raise IndexUnavailableError(f"{CALLED} cannot be read now; ask again later") from error

    def _refresh(self) -> None:
        """Open it again where it has changed: what is known of columns, approximate index and mean may be another."""
        if self._state and self._state == self._look():
            return
        if not _is_at(self.address):
            raise IndexUnavailableError(f"{CALLED} is gone")
        index = Index.open(self.address, called=CALLED)
        if differences := self.vector_spec.differences(index.vector_spec):
            raise IndexUnavailableError(
                f"{CALLED} was made anew by another model or recipe ({'; '.join(differences)}); start the server again"
            )
        self._index = index
        self._mean = Table.open(self.address, MEAN) if Table.is_at(self.address, MEAN) else None
        self._state = self._look()

    def _look(self) -> tuple[object, ...]:
        """What differs after every change."""
        try:
            mean = self._mean.version if self._mean else Table.is_at(self.address, MEAN)
            return (_identity(self.address), self._index.version, mean)
        except IndexUnavailableError:
            return ()


def answer_of(hit: Hit, rank: int, query: str | None = None) -> dict[str, Any]:
    """A hit as plain data for JSON, with null for what is not known.

    Args:
        hit: of an index.
        rank: 1 is the best.
        query: whose words are looked for in the text.

    Returns:
        The fields of a hit; ``title``, ``headings``, ``page`` and ``line`` of a passage of a document; ``words``, the
        places ``[start, end]`` in the text where words of the query stand; and ``more``, the other columns.
    """
    more = {name: _plain(value) for name, value in hit.more.items()}
    own = {name: more.pop(name, None) for name in PASSAGE_COLUMNS}
    return {
        "rank": rank,
        "score": hit.score,
        "fused": hit.fused,
        "key": hit.key,
        "source": hit.source,
        "id": hit.id,
        "file": hit.file,
        "row": hit.row,
        "chunk": hit.chunk,
        "start": hit.start,
        "end": hit.end,
        "text": hit.text,
        **own,
        "words": matched_words(query, hit.text) if query is not None else [],
        "more": more,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _is_at(address: str) -> bool:
    try:
        return Index.is_at(address)
    except InputError:
        # An object store that cannot be reached.
        return True


def _identity(address: str) -> object:
    """Tells a folder from another one that took its place."""
    if is_remote(address):
        return None
    try:
        found = Path(address).stat()
    except OSError:
        return None
    # The number of a folder that was removed may be given to the next one.
    return (found.st_dev, found.st_ino, found.st_ctime_ns)
