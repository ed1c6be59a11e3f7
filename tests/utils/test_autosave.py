"""Work that ends early writes what it has, and tells what ended it."""

from __future__ import annotations

import pytest

from valuembed._utils.autosave import autosave, incomplete
from valuembed.errors import OutputError


def work(parts, **choices):
    """How many parts were done at each writing."""
    done, written = [], []
    with autosave(lambda: written.append(len(done)), **choices) as finished:
        for part in range(parts):
            done.append(part)
            finished()
    return written


def test_what_ends_well_writes_for_itself():
    assert work(3) == []
    assert work(3, every=0) == [1, 2, 3]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), RuntimeError("boom")])
def test_what_ends_early_is_written(end):
    written = []
    with pytest.raises(type(end)), autosave(lambda: written.append("kept")):
        raise end
    assert written == ["kept"]


def test_what_cannot_be_written_does_not_hide_what_ended_it():
    def write():
        raise OutputError("full")

    with pytest.raises(RuntimeError, match="boom"), autosave(write):
        raise RuntimeError("boom")


def test_incomplete():
    assert incomplete(3, 1200, "probe") == "Incomplete: ended after 3 of 1,200 probes"
