"""Compare texts: a similarity matrix, and search over stored embeddings, exact or through an index."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valuembed._utils.options import check_keywords, parameters_of
from valuembed.backbone import LoadOptions
from valuembed.data import as_text, as_texts
from valuembed.errors import InputError
from valuembed.search.centre import Centring, centre_of_files, check_centre, wanted
from valuembed.search.index import Index
from valuembed.search.results import Hit, check_make, check_query, embed_query, unit
from valuembed.vectors import EMBEDDING, ID, PLACES, TEXT, EmbeddingFiles, Encoder, recorded_options, telling_what_made

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from valuembed.models import ValueEncoder

__all__ = [
    "Hit",
    "check_options",
    "check_query",
    "load_for",
    "nearest",
    "open_embeddings",
    "search",
    "similarity_matrix",
]

ROWS_PER_BATCH = 4096


def search(
    model: Encoder,
    query: str,
    source: str | Path | EmbeddingFiles | Index,
    k: int = 10,
    *,
    where: str | None = None,
    hybrid: bool | None = None,
    probes: int | None = None,
    refine: int | None = None,
    centre: Centring = None,
) -> list[Hit]:
    """Find the k texts that are most similar to a query.

    Files of embeddings are searched exactly: the cosine with every row, batch by batch. An index is searched as
    :meth:`valuembed.search.Index.search` says.

    Args:
        model: what :func:`load_for` returns for the source, or :func:`valuembed.load` for the same model and recipe.
        query: encoded with ``encode_query``.
        source: a file or folder that ``valuembed embed`` wrote, an index that ``valuembed index`` wrote, or what
            :func:`open_embeddings` returns for one.
        k: how many to return; fewer when there are fewer rows.
        where: of an index, see there.
        hybrid: of an index, see there.
        probes: of an index, see there.
        refine: of an index, see there.
        centre: take the mean of all rows from query and rows, and compare what is left; ``"whiten"`` scales their
            principal directions too; None is for vectors that a last token reads, as AlignedWVA's, from 100 rows on.
            Of files every row is looked at twice then.

    Returns:
        Hits, best first; of equal scores, in files, the earlier row comes first.

    Raises:
        InputError: the query cannot be embedded, the source is not readable or damaged, another model or recipe made
            its vectors, or files were asked for what only an index has.
    """
    query = as_text(query)
    check_query(query, k)
    found = open_embeddings(source) if isinstance(source, (str, Path)) else source
    check_options(found, where=where, hybrid=hybrid, probes=probes, refine=refine, centre=centre)
    if isinstance(found, Index):
        return found.search(model, query, k, where=where, hybrid=hybrid, probes=probes, refine=refine, centre=centre)
    check_make(model, found.vector_spec, found.address)
    return nearest(embed_query(model, query, found.vector_spec), found, k, centre=centre)


def nearest(vector: NDArray[np.float32], source: EmbeddingFiles, k: int = 10, *, centre: Centring = False) -> list[Hit]:
    """Find the k rows of files with the highest cosine, by looking at every one.

    Args:
        vector: float32 ``[width]``, of length 1; nobody checks it to be of the right make.
        source: the files.
        k: how many to return.
        centre: as in :func:`search`.

    Raises:
        InputError: a file is damaged, or another model or recipe made its vectors.
        ReadingError: a vector is zero or not finite.
    """
    import numpy as np

    check_centre(centre, source.vector_spec, source.address)
    taken = wanted(
        centre,
        source.vector_spec,
        rows=lambda: sum(file.count() for file in source.files),
        find=lambda: centre_of_files(source, whiten=centre == "whiten"),
    )
    vector = vector if taken is None else taken.of_query(vector)
    best: list[tuple[float, int, dict[str, Any]]] = []
    seen = 0
    for file, batch in source.batches(rows_per_batch=ROWS_PER_BATCH):
        vectors = unit(batch.vectors, f"{file.path}, rows from {batch.first}")
        scores = vectors @ vector if taken is None else taken.cosines(vectors, vector)
        # Only rows that can still enter the best k are turned into Python objects.
        for at in np.argsort(-scores, kind="stable")[:k].tolist():
            entry = (float(scores[at]), -(seen + at))
            if len(best) == k and entry <= best[0][:2]:
                break
            row = {name: batch.rows.column(name)[at].as_py() for name in batch.rows.schema.names if name != EMBEDDING}
            (heapq.heappush if len(best) < k else heapq.heapreplace)(best, (*entry, row))
        seen += batch.rows.num_rows
    best.sort(reverse=True)
    return [_hit(rank, score, row) for rank, (score, _, row) in enumerate(best, start=1)]


def _hit(rank: int, score: float, row: dict[str, Any]) -> Hit:
    own = {name: row.pop(name) for name in (ID, TEXT, *PLACES) if name in row}
    return Hit(rank, score, **own, more=row)


def open_embeddings(address: str | Path) -> EmbeddingFiles | Index:
    """What can be searched at an address: an index if there is one, else files of embeddings.

    Raises:
        InputError: there is neither.
        MissingExtraError: there is an index, and the extra ``store`` is not installed.
    """
    return Index.open(address) if Index.is_at(address) else EmbeddingFiles.open(address)


def load_for(source: str | Path | EmbeddingFiles | Index, **named: Any) -> ValueEncoder:
    """Load the model that made stored embeddings, with its recipe, as their record says.

    Args:
        source: as in :func:`search`.
        named: arguments of :func:`valuembed.load`, which go before the record. Whether the embeddings can then still be
            compared with the model's is looked at by :func:`search`.

    Raises:
        OptionError: a keyword argument that :func:`valuembed.load` does not take.
        InputError: the source is not readable, its model was a folder that is neither in the working folder nor beside
            it, or what is named does not suit the record.
        CheckpointError, RecipeError, UnsupportedModelError: as :func:`valuembed.load`.
    """
    from valuembed.models import load

    check_keywords(named, [*parameters_of(load), *LoadOptions.names()], load_for)
    found = open_embeddings(source) if isinstance(source, (str, Path)) else source
    options = recorded_options(found.vector_spec, found.address, named)
    with telling_what_made(found.vector_spec, found.address):
        return load(**options)


def check_options(
    source: EmbeddingFiles | Index,
    *,
    where: str | None = None,
    hybrid: bool | None = None,
    probes: int | None = None,
    refine: int | None = None,
    centre: Centring = None,
) -> None:
    """Raise what :func:`search` would raise before it needs a model.

    Raises:
        InputError: a filter is wrong, a search cannot be centred, or files were asked for what only an index has.
    """
    if isinstance(source, Index):
        source.check(where=where, hybrid=hybrid, probes=probes, refine=refine, centre=centre)
        return
    check_centre(centre, source.vector_spec, source.address)
    given = {"where": where, "hybrid": hybrid or None, "probes": probes, "refine": refine}
    if asked := [name for name, value in given.items() if value is not None]:
        raise InputError(
            f"{source.address} holds embeddings without an index, so there is no {', '.join(asked)}; make one with: "
            f"valuembed index {source.address} -o INDEX"
        )


def similarity_matrix(model: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity of every text with every other.

    Args:
        model: what :func:`valuembed.load` returns.
        texts: b texts, in anything that holds them in an order.

    Returns:
        float32 ``[b, b]``, symmetric, with ones on the diagonal up to rounding.
    """
    import numpy as np

    listed = as_texts(texts)
    if not listed:
        return np.zeros((0, 0), np.float32)
    vectors = unit(np.asarray(model.encode(listed, show_progress_bar=False), np.float32), "the texts")
    matrix: NDArray[np.float32] = vectors @ vectors.T
    return matrix
