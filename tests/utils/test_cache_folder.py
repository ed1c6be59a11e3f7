"""Where results are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from valuembed._utils import cache_folder


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "{named}/valuembed"),
        ("linux", None, "{home}/.cache/valuembed"),
        ("darwin", None, "{home}/Library/Caches/valuembed"),
        ("win32", "LOCALAPPDATA", "{named}/valuembed"),
        ("win32", None, "{home}/AppData/Local/valuembed"),
    ],
)
def test_the_usual_place_is_that_of_the_system(platform, variable, expected, tmp_path, monkeypatch):
    for name in ("VALUEMBED_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "named"))
    monkeypatch.setattr(cache_folder.sys, "platform", platform)
    places = {"named": tmp_path / "named", "home": tmp_path / "home"}
    assert cache_folder.cache_folder() == Path(expected.format(**places))


def test_named_as_nothing_nothing_is_kept(monkeypatch):
    monkeypatch.setenv(cache_folder.CACHE_VARIABLE, "")
    assert cache_folder.cache_folder() is None
