"""An index and a map for tests of a server that need neither LanceDB nor scikit-learn."""

from __future__ import annotations

import threading

import numpy as np
from serving import WIDTH, vector_of

from valuembed.errors import InputError, UnknownRowError
from valuembed.search.map_file import Area, CorpusMap
from valuembed.search.words import matched_words

PASSAGES = {
    "harbour.md": [
        "Ships leave the harbour at dawn.",
        "The harbour master counts ships.",
        "A ship waits for the tide.",
    ],
    "garden.pdf": ["Herbs grow on the balcony.", "Tomatoes need the sun.", "Water the herbs in the evening."],
}
COLUMNS = {"source": "string", "file": "string", "text": "string", "label name": "string"}


def hit(key, rank=1, score=1.0, query=None):
    """A row as an index answers with it."""
    file, number = key.split("#")
    text = PASSAGES[file][int(number)]
    return {
        "rank": rank, "score": score, "fused": None, "key": key, "source": "guide", "id": key, "file": file,
        "row": 0, "chunk": int(number), "start": 0, "end": len(text), "text": text, "title": file.split(".")[0].title(),
        "headings": "First > Second" if file.endswith("md") else None,
        "page": None if file.endswith("md") else int(number) + 1,
        "line": int(number) * 3 + 1 if file.endswith("md") else None,
        "words": matched_words(query, text) if query else [], "more": {},
    }  # fmt: skip


class FakeIndex:
    """Holds six passages of two files; those with most of the query's words come first.

    A filter is the start of a file's name in quotes; others are wrong.

    Attributes:
        open: clear it, and a search for "slow" hangs.
        asked: what was searched for.
    """

    width = WIDTH

    def __init__(self, passages=PASSAGES):
        self.keys = [f"{file}#{at}" for file, texts in passages.items() for at in range(len(texts))]
        self.open = threading.Event()
        self.open.set()
        self.asked = []

    def check(self, *, where=None, hybrid=None, centre=None):
        if where is not None and not where.startswith("file LIKE '"):
            raise InputError(
                f"the filter {where!r} cannot be applied: no field named weather; columns of the index: file"
            )

    def search(self, vector=None, *, query=None, like=None, k=10, where=None, hybrid=None, centre=None):
        self.check(where=where)
        self.asked.append({"query": query, "like": like, "k": k, "where": where, "hybrid": hybrid})
        assert query != "slow" or self.open.wait(30)
        if like is not None:
            if like not in self.keys:
                raise UnknownRowError(f"the index has no row with the key {like!r}; give the key of a hit")
            vector = vector_of(hit(like)["text"])
        start = where.split("'")[1].rstrip("%") if where else ""
        keys = [key for key in self.keys if key.startswith(start) and key != like]
        scores = {key: float(vector_of(hit(key)["text"]) @ vector) for key in keys}
        keys.sort(key=lambda key: (-len(hit(key, query=query)["words"]), -scores[key], key))
        return [hit(key, rank, scores[key], query) for rank, key in enumerate(keys[:k], 1)]

    def describe(self):
        return {
            "rows": len(self.keys), "columns": COLUMNS, "width": WIDTH, "model": "fake/model", "method": "va",
            "hybrid": False,
            "sources": ["guide"],
        }  # fmt: skip


class FakeMap:
    """A map of a :class:`FakeIndex`: passages of a file lie in a row, the files far apart.

    Attributes:
        told: what is going on.
        found: the map, or None.
    """

    def __init__(self, index, state="1:6"):
        self.index = index
        self.told = {"state": "ready", "step": None, "done": None}
        self.found = map_of(index.keys, state)
        self.closed = False

    def find(self):
        return self.found, self.told

    def passages(self, keys):
        return [hit(key) if key in self.index.keys else None for key in keys]

    def close(self):
        self.closed = True


def map_of(keys, state="1:6"):
    """The map of keys whose first half is one area and whose second half another."""
    half = len(keys) // 2
    places = np.array([[-0.6 if at < half else 0.6, 0.4 * (at % half - 1)] for at in range(len(keys))], np.float32)
    area_of = np.array([0] * half + [1] * half, np.uint8)
    areas = (
        Area(("harbour", "ships"), half, (-0.6, 0.0), tuple(range(half))),
        Area(("herbs", "sun"), half, (0.6, 0.0), tuple(range(half, 2 * half))),
    )
    return CorpusMap(state, len(keys), tuple(keys), places, area_of, areas)
