"""Servers for tests: an engine that needs no model, and real servers on free ports of this machine."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager

import numpy as np

from valuembed.errors import IndexUnavailableError, InputError, ReadingError, TemplateError, UnknownRowError
from valuembed.serving.addresses import listen
from valuembed.serving.jobs import Engine, Tokenized
from valuembed.serving.server import Server, create_app, read_keys, serve

WIDTH = 32


def vector_of(text, width=WIDTH):
    """Counts letters, scaled to length 1: other texts have other vectors."""
    counts = np.full(width, 0.01, np.float32)
    for at, char in enumerate(text):
        counts[(ord(char) + at) % width] += 1
    return counts / np.linalg.norm(counts)


class FakeEngine(Engine):
    """Embeds by letters. A text has a token a word; ids are characters.

    Texts with such a word fail: ``untokenizable``, ``unreadable`` (an error of the library), ``poison`` (any other).
    """

    def __init__(self, name="fake", width=WIDTH, step_tokens=64, seconds=0.0):
        self.name, self.width, self.step_tokens, self.step_cost = name, width, step_tokens, 4
        self.seconds = seconds
        self.steps, self.prepared = [], []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.broken = None

    def prepare(self, texts, manner):
        if manner.template == "nonsense":
            raise TemplateError("template 'nonsense' is unknown")
        words = []
        for text in texts:
            if not isinstance(text, str) and max(text) > 0xD7FF:
                raise InputError("its ids are no characters")
            string = text if isinstance(text, str) else "".join(map(chr, text))
            if "untokenizable" in string:
                raise InputError("it is untokenizable")
            words.append(string)
        self.prepared.append(list(words))
        frame = f"{manner.role or ''}{manner.prompt or ''}{manner.template or ''}"
        return [
            Tokenized(len(text.split()) or 1, len(text.split()) or 1, len(text) > 1000, 0, frame + text[:1000])
            for text in words
        ]

    def run(self, batch):
        self.entered.set()
        assert self.open.wait(30)
        time.sleep(self.seconds)
        if self.broken:
            raise self.broken
        texts = [item.payload for item in batch]
        self.steps.append(texts)
        if any("unreadable" in text for text in texts):
            raise ReadingError("a vector is not finite")
        if any("poison" in text for text in texts):
            raise RuntimeError("failed on a text with poison")
        return np.stack([vector_of(text, self.width) for text in texts])

    def hold(self):
        """Let the next step hang until :attr:`open` is set."""
        self.open.clear()
        self.entered.clear()


ROWS = ["a cat sleeps", "shares fell", "a late train"]
"""Texts of the rows of a fake index; their keys are k0, k1, k2."""


class FakeIndex:
    """An index of :data:`ROWS` as documents of a :class:`FakeEngine`; it notes what it is asked.

    A filter has to be ``true``. Where :attr:`broken` is an error, everything raises it.
    """

    width = WIDTH

    def __init__(self):
        self.asked = []
        self.broken = None
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def check(self, *, where=None, hybrid=None, centre=None):
        if self.broken:
            raise self.broken
        if where not in (None, "true"):
            raise InputError(f"the filter {where!r} cannot be applied; columns of the index: text (string)")

    def search(self, vector=None, *, query=None, like=None, k=10, where=None, hybrid=None, centre=None):
        self.check(where=where)
        self.entered.set()
        assert self.open.wait(30)
        self.asked.append({"query": query, "like": like, "k": k, "where": where, "hybrid": hybrid, "centre": centre})
        if like is not None:
            if like not in ("k0", "k1", "k2"):
                raise UnknownRowError(f"the index has no row with the key {like!r}; give the key of a hit")
            vector = vector_of("document" + ROWS[int(like[1])])
        scores = [float(vector_of("document" + text) @ vector) for text in ROWS]
        order = sorted(range(len(ROWS)), key=lambda at: -scores[at])
        found = [at for at in order if like != f"k{at}"][:k]
        return [self._row(at, rank, scores[at], query) for rank, at in enumerate(found, start=1)]

    @staticmethod
    def _row(at, rank, score, query):
        known = {"file": "a.txt", "line": at + 1} if at < 2 else {}
        return {
            "rank": rank,
            "score": score,
            "fused": None,
            "key": f"k{at}",
            "source": "rows",
            "id": at,
            **dict.fromkeys(("file", "row", "chunk", "start", "end", "title", "headings", "page", "line")),
            **known,
            "text": ROWS[at],
            "words": [[0, 1]] if query else [],
            "more": {"label": None},
        }

    def around(self, key, before=1, after=1):
        self.check()
        if key not in ("k0", "k1", "k2"):
            raise UnknownRowError(f"the index has no row with the key {key!r}; give the key of a hit")
        at = int(key[1])
        rows = range(max(0, at - before), min(len(ROWS), at + after + 1))
        return [self._row(row, number, 0.0, None) for number, row in enumerate(rows, start=1)]

    def describe(self):
        self.check()
        made = {"width": WIDTH, "model": "fake", "method": "va", "hybrid": False, "sources": ["rows"]}
        return {"rows": len(ROWS), "columns": {"text": "string"}, **made}


def gone():
    """What an index raises that is not there any more."""
    return IndexUnavailableError("the index is gone from where it was; it is served again once it is back")


@contextmanager
def running(engine, **options):
    """A real server in a thread; its URL, and the application."""
    app = create_app(engine, **options)
    listener = listen("127.0.0.1", 0)
    server = Server(app, drain_seconds=0)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until(lambda: server.started and app.state.serving.batcher.state != "starting")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def until(true, seconds=20.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def main():
    """A server as a process of its own: seconds a step, seconds to drain."""
    seconds, drain_seconds = map(float, sys.argv[1:])
    serve(FakeEngine(seconds=seconds), port=0, keys=read_keys(), drain_seconds=drain_seconds)


if __name__ == "__main__":
    main()
