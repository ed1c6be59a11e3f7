"""Servers for tests: an engine that needs no model, and real servers on free ports of this machine."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager

import numpy as np

from valuembed.errors import InputError, ReadingError, TemplateError
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
