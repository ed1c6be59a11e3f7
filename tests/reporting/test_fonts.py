"""Fonts for a figure's texts."""

from __future__ import annotations

import sys

import pytest

from valuembed.errors import MissingExtraError
from valuembed.reporting import fonts as glyphs
from valuembed.reporting.fonts import BOX, lettering

pytest.importorskip("matplotlib")

RUNE = "\u16a0"


@pytest.fixture
def fonts(monkeypatch):
    """Fonts in place of the system's, the default one with Latin letters alone; the list holds which were opened."""
    opened = []
    having = {"latin": set("abc"), "runes": {RUNE}, "all": {RUNE, "\u4e2d"}, "none": set()}

    def characters(path):
        opened.append(path)
        return frozenset(having.get(path, set("abc")))

    monkeypatch.setattr(glyphs, "_characters", characters)
    monkeypatch.setattr(glyphs, "_installed", lambda: iter([("None", "none"), ("Runes", "runes"), ("All", "all")]))
    return opened


def test_latin_needs_the_default_font_alone(fonts):
    found = lettering(["abc", "cab"])
    assert found.families[-1] not in ("None", "Runes", "All")
    assert found.lacking == set()
    assert found.note == ""
    assert len(fonts) == 1


def test_fonts_are_added_until_every_character_is_there(fonts):
    assert lettering([f"a{RUNE}"]).families[-1] == "Runes"
    assert fonts[1:] == ["none", "runes"]
    assert lettering([f"\u4e2d{RUNE}"]).families[-2:] == ["Runes", "All"]


def test_what_no_font_has_is_a_box_and_is_said(fonts):
    found = lettering(["a\u0905\u0906", "\u0905b"])
    assert found.drawn("a\u0905\u0906b") == f"a{BOX}{BOX}b"
    assert found.note == f"{BOX} stands for 2 characters that no installed font has"
    assert lettering(["\u0905"]).note == f"{BOX} stands for 1 character that no installed font has"


def test_a_text_is_drawn_on_one_line():
    assert lettering(["a\nb"]).drawn("a\nb") == "a\u21b5b"


def test_the_systems_fonts_are_upright_and_one_a_family():
    names = [name for name, _ in glyphs._installed()]
    assert "DejaVu Sans" in names
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("cm", "Last Resort"))]
    assert glyphs._characters(dict(glyphs._installed())["DejaVu Sans"]) > set("abc")


def test_a_font_that_cannot_be_read_has_nothing(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert glyphs._characters(str(tmp_path / "broken.ttf")) == frozenset()
    assert glyphs._characters(str(tmp_path / "missing.ttf")) == frozenset()


def test_without_matplotlib_the_error_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.font_manager")
    with pytest.raises(MissingExtraError, match=r'matplotlib is not installed; run: pip install .*\[plot\]"'):
        lettering(["a"])
