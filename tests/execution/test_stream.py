"""Batches that are made ahead of what is computed."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from some_texts import some_texts

import valuembed
from valuembed.errors import ReadingError
from valuembed.execution import stream
from valuembed.execution.stream import AHEAD_FROM, prefetch

NAME = "valuembed-tokenizing"


def at_work():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def gone():
    """Whether the threads end, given some time."""
    for _ in range(100):
        if not at_work():
            return True
        time.sleep(0.05)
    return False


class TestAhead:
    def test_gives_the_same_in_the_same_order(self):
        assert list(prefetch(iter(range(100)))) == list(range(100))
        assert list(prefetch(iter([]))) == []
        assert gone()

    def test_makes_a_few_before_they_are_asked_for_and_no_more(self):
        made = []

        def items():
            for number in range(100):
                made.append(number)
                yield number

        given = prefetch(items(), most=3)
        assert made == []
        assert next(given) == 0
        for _ in range(100):
            if len(made) >= 5:
                break
            time.sleep(0.05)
        # The one that was taken, three that wait, and one in the hand.
        assert made == [0, 1, 2, 3, 4]
        given.close()
        assert gone()

    def test_what_goes_wrong_is_raised_where_the_items_are_taken(self):
        def items():
            yield 1
            raise ReadingError("row 3 is damaged")

        given = prefetch(items())
        assert next(given) == 1
        with pytest.raises(ReadingError, match=r"^row 3 is damaged$"):
            next(given)
        assert gone()

    def test_ends_when_it_is_dropped(self):
        given = prefetch(iter(range(1000)))
        next(given)
        assert at_work()
        del given
        gc.collect()
        assert gone()


class TestEncoder:
    @pytest.fixture
    def asked(self, monkeypatch):
        """Whether each call had its batches made ahead."""
        calls = []
        real = prefetch

        def watch(items):
            calls.append(1)
            return real(items)

        monkeypatch.setattr(stream, "prefetch", watch)
        return calls

    def test_few_texts_need_no_thread(self, folder, asked):
        model = valuembed.load(folder, "va")
        model.encode(some_texts(AHEAD_FROM - 1))
        assert asked == []
        model.encode(some_texts(AHEAD_FROM))
        assert asked == [1]

    def test_a_failure_leaves_no_thread_behind(self, folder, monkeypatch):
        model = valuembed.load(folder, "va")

        def fail(*args):
            raise ReadingError("no more")

        monkeypatch.setattr(model.reader, "read", fail)
        with pytest.raises(ReadingError, match="no more"):
            model.encode(some_texts(AHEAD_FROM))
        gc.collect()
        assert gone()
