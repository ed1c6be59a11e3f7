"""The line that says that a model is being loaded is gone when it is there, and never gets in the way of results."""

import io

import pytest

from valuembed._utils import loading_line
from valuembed._utils.loading_line import LINE, LoadingLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal; called within a test, since pytest puts its own there before each."""

    def vector_spec():
        made = Terminal()
        monkeypatch.setattr(loading_line.sys, "stderr", made)
        return made

    return vector_spec


def test_on_a_terminal_it_stands_there_and_is_taken_away(terminal):
    terminal = terminal()
    line = LoadingLine()
    line.begin("/home/someone/models/tiny")
    assert terminal.getvalue() == "\r\x1b[Kloading tiny ...\r"
    line.end()
    line.end()
    assert terminal.getvalue() == "\r\x1b[Kloading tiny ...\r\r\x1b[K"


def test_a_hub_id_is_shown_whole(terminal):
    terminal = terminal()
    LoadingLine().begin("Qwen/Qwen3-0.6B")
    assert "loading Qwen/Qwen3-0.6B ..." in terminal.getvalue()


def test_a_log_is_told_only_when_it_takes_long(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(loading_line.sys, "stderr", log)
    monkeypatch.setattr(loading_line, "LATE", 0.0)
    line = LoadingLine()
    line.begin("a/b")
    line._late.join()
    assert log.getvalue() == "still loading a/b ...\n"
    monkeypatch.setattr(loading_line, "LATE", 1e6)
    line.begin("a/b")
    late = line._late
    line.end()
    late.join()
    assert log.getvalue() == "still loading a/b ...\n"


def test_whoever_watched_may_be_gone(terminal):
    terminal = terminal()
    line = LoadingLine()
    line.begin("a/b")
    terminal.close()
    line.end()


def test_a_model_that_is_built_ends_it(terminal, folder):
    from valuembed.models.loading import load

    terminal = terminal()
    LINE.begin("tiny")
    load(folder)
    assert terminal.getvalue().endswith("\r\x1b[K")
