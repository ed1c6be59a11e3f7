"""Make the map of an index, as a process of its own: it takes a minute of computing, and nobody else's memory."""

from __future__ import annotations

import heapq
import json
import os
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from valuembed.search.centre import stored_vectors
from valuembed.search.corpus_map import LANDMARKS, SEED, Plane, batches_of, find_areas, middle_of, to_square
from valuembed.search.ingest import ROWS
from valuembed.search.map_file import Area, CorpusMap, state_of
from valuembed.search.map_words import WordCounts
from valuembed.search.vector_store import Table
from valuembed.vectors import EMBEDDING, KEY, TEXT, VectorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_ROWS = 100_000
"""An index with more of them has a sample on its map."""

EXAMPLES = 20

Tell = Callable[[str, float], None]


def make_map(address: str, tell: Tell = lambda step, done: None, *, most: int = MOST_ROWS) -> CorpusMap:
    """Make the map of an index.

    Which rows are on it, and which are landmarks, is decided by a hash of their keys: rows that are added leave most of
    the others where they were among them.

    Args:
        address: of the index.
        tell: called with the step, one of ``reading``, ``placing``, ``naming``, and how much of it is done, 0 to 1.
        most: so many rows are on it at most.
    """
    import numpy as np

    tell("reading", 0.0)
    table = Table.open(address, ROWS)
    vector_spec = VectorSpec.from_metadata(address, table.schema.metadata)
    state = state_of(table.version, rows := table.count())
    hashed = ((_hash(key), key) for batch in table.scan([KEY]) for key in batch.column(KEY).to_pylist())
    keys = [key for _, key in heapq.nsmallest(most, hashed)]
    numbers = {key: number for number, key in enumerate(keys)}
    landmarks = np.zeros((min(LANDMARKS, len(keys)), vector_spec.width), np.float32)

    def vectors_on_the_map(below: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Numbers below one, and their vectors; what has no direction stays where it is, at zero."""
        for batch in table.scan([KEY, EMBEDDING]):
            found = np.array([numbers.get(key, most) for key in batch.column(KEY).to_pylist()], np.int64)
            if (kept := found < below).any():
                vectors = stored_vectors(batch, vector_spec)[kept].astype(np.float32)
                norms = np.linalg.norm(vectors, axis=1, keepdims=True)
                yield found[kept], np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    for found, vectors in vectors_on_the_map(len(landmarks)):
        landmarks[found] = vectors
    plane = Plane(landmarks, lambda done: tell("placing", 0.8 * done)) if keys else None
    del landmarks
    places = np.zeros((len(keys), 2), np.float32)
    area_of = np.zeros(len(keys), np.uint8)
    if plane is not None:
        first = len(plane.places)
        reduced = np.zeros((len(keys), plane.landmarks.shape[1]), np.float32)
        for found, vectors in vectors_on_the_map(len(keys)):
            reduced[found] = plane.reduced(vectors)
        places[:first] = plane.places
        for part in batches_of(len(keys) - first, 10_000):
            at = slice(first + part.start, first + part.stop)
            places[at] = plane.place(reduced[at], SEED + at.start)
            tell("placing", 0.8 + 0.2 * at.stop / len(keys))
        del reduced
        places = to_square(places)
        area_of = find_areas(places)
    count = int(area_of.max(initial=0)) + 1 if keys else 0
    words = WordCounts(count)
    seen = 0
    for batch in table.scan([KEY, TEXT]):
        for key, text in zip(batch.column(KEY).to_pylist(), batch.column(TEXT).to_pylist(), strict=True):
            if (number := numbers.get(key)) is not None:
                words.add(int(area_of[number]), text or "")
        seen += batch.num_rows
        tell("naming", min(1.0, seen / max(1, rows)))
    telling = words.telling()
    areas = tuple(_area(number, area_of, places, telling[number]) for number in range(count))
    return CorpusMap(state, rows, tuple(keys), places, area_of, areas)


def _area(number: int, area_of: NDArray[np.uint8], places: NDArray[np.float32], words: list[str]) -> Area:
    import numpy as np

    rows = np.flatnonzero(area_of == number)
    middle = middle_of(places[rows])
    nearest = rows[np.argsort(np.linalg.norm(places[rows] - middle, axis=1), kind="stable")[:EXAMPLES]]
    return Area(tuple(words), len(rows), (float(middle[0]), float(middle[1])), tuple(nearest.tolist()))


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def run() -> None:
    """Make the map of the index that the arguments name, into a file; tell each step on stdout, as JSON a line."""
    address, path = sys.argv[1:]
    if hasattr(os, "nice"):
        # Whoever searches meanwhile goes first.
        os.nice(10)
    # What libraries print goes another way.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:

        def tell(step: str, done: float) -> None:
            print(json.dumps({"step": step, "done": round(done, 3)}), file=out, flush=True)

        make_map(address, tell).save(Path(path))
