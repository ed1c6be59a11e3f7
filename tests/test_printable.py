"""Texts on one line, without what could steer a terminal."""

from __future__ import annotations

from valuembed.printable import printable, shortened


def test_controls_become_visible():
    assert printable("a\nb\tc") == "a\u21b5b\u21e5c"
    assert printable("\x1b[31m\u202e\x00") == "\ufffd[31m\ufffd\ufffd"


def test_spelling_is_kept():
    text = "caf\u00e9 \u4e2d \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f467"
    assert printable(text) == text


def test_long_texts_end_in_an_ellipsis():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde\u2026"
