"""The command ``explain``: shades where there are colours, numbers elsewhere."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from rich.console import Console
from running import fails, run, succeeds

import valuembed
from valuembed.cli import explain as cli_explain
from valuembed.models.explanation import Explanation, Token, TokenWeights, explain

pytestmark = pytest.mark.slow

TEXT = "A good map."


def made(layers: int = 2, sinks: float = 0.0, truncated: bool = False, sequences: int = 1) -> Explanation:
    """A template's token, a word, a character of two bytes, a line break, a template's token."""
    tokens = (
        Token("<s>", 0, 0, False),
        Token(" map", 0, 4, True),
        Token("\u05e9", 4, 5, True),
        Token("", 5, 5, True),
        Token("\n", 5, 6, True),
        Token('"', 6, 7, False),
    )
    row = np.array([0.5, 0.01, 0.1, 0.15, 0.04, 0.2], np.float32) * (1 - sinks)
    sequence = TokenWeights(tokens, tuple(range(layers)), np.broadcast_to(row, (layers, 3, 6)), truncated)
    return Explanation("some/model", "wva", tuple(range(layers)), "attention", (sequence,) * sequences)


@pytest.fixture
def found(monkeypatch):
    """The command gets a finished explanation; the list holds what is printed next."""
    queue = [made()]
    monkeypatch.setattr(cli_explain, "load_encoder", lambda options: None)
    monkeypatch.setattr("valuembed.models.explain", lambda encoder, text, by: queue[0])
    return queue


@pytest.fixture
def coloured(monkeypatch):
    """A terminal of sixteen million colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def out() -> Console:
        return Console(highlight=False, force_terminal=True, color_system="truecolor", width=120)

    monkeypatch.setattr(cli_explain, "out", out)


def test_numbers_without_colours(found):
    lines = [line.split() for line in succeeds("explain", TEXT).splitlines()]
    assert lines == [
        ["some/model,", "wva,", "layers", "0-1:", "attention", "of", "the", "last", "token,", "mean", "over", "heads"],
        ["token", "mean", "%", "L0", "%", "L1", "%"],
        ["1", "<s>", "template", "50.0", "50.0", "50.0"],
        ["2", "map", "1.0", "1.0", "1.0"],
        ["3", "\u05e9", "10.0", "10.0", "10.0"],
        ["4", "(byte)", "15.0", "15.0", "15.0"],
        ["5", "\u21b5", "4.0", "4.0", "4.0"],
        ["6", '"', "template", "20.0", "20.0", "20.0"],
        ["layer", "text", "template", "most", "in", "the", "text"],
        # A character that takes two tokens counts once.
        ["0", "30.0%", "70.0%", "\u05e9", "25.0%", "\u21b5", "4.0%", "map", "1.0%"],
        ["1", "30.0%", "70.0%", "\u05e9", "25.0%", "\u21b5", "4.0%", "map", "1.0%"],
    ]


def test_many_layers_have_numbers_of_their_mean_alone(found):
    found[0] = made(layers=30)
    lines = succeeds("explain", TEXT).splitlines()
    assert lines[1].split() == ["token", "mean", "%"]
    assert lines[-1].split()[:2] == ["29", "30.0%"]


def test_shades_where_there_are_colours(found, coloured):
    shown = succeeds("explain", TEXT)
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert plain[1] == 'mean     <s> map\u05e9\u21b5"'
    assert [line[:9] for line in plain[2:4]] == ["layer 0  ", "layer 1  "]
    # Full colour is 0.15, and each of six shades begins at (k/6)**2 of it.
    assert plain[4] == "weight    0.4%   1.7%   3.8%   6.7%   10.4%  and more; italic: template"
    row = shown.splitlines()[1]
    deepest, third, lightest = (
        "30;48;2;{};{};{}m".format(*(int(shade[start : start + 2], 16) for start in (4, 6, 8)))
        for shade in (cli_explain._SHADES[5], cli_explain._SHADES[3], cli_explain._SHADES[1])
    )
    assert f"\x1b[3;{deepest}<s>" in row
    assert f"\x1b[{lightest} map" in row
    assert f"\x1b[{deepest}\u05e9" in row
    assert f"\x1b[{third}\u21b5" in row


def test_a_weight_of_nothing_has_no_shade(found, coloured):
    found[0] = made(sinks=1.0)
    row = succeeds("explain", TEXT).splitlines()[1]
    assert "48;2" not in row


@pytest.mark.parametrize("reason", ["NO_COLOR", "no terminal"])
def test_numbers_where_colours_are_not_wanted(found, monkeypatch, reason):
    if reason == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = reason == "NO_COLOR"
    monkeypatch.setattr(cli_explain, "out", lambda: Console(highlight=False, force_terminal=terminal, width=120))
    shown = succeeds("explain", TEXT)
    assert "mean %" in shown
    assert "48;2" not in shown


def test_what_sinks_take_is_said(found):
    said = "what is missing to 100% goes to the model's attention sinks"
    assert said not in succeeds("explain", TEXT)
    found[0] = made(sinks=0.25)
    assert said in succeeds("explain", TEXT)


def test_a_text_that_was_cut_is_said(found):
    assert "was cut" not in succeeds("explain", TEXT)
    found[0] = made(truncated=True)
    assert "the text was cut to the longest sequence that is fed (--max-tokens)" in succeeds("explain", TEXT)


def test_several_templates_are_shown_one_after_the_other(found):
    found[0] = made(sequences=3)
    assert re.findall(r"^template \d of 3$", succeeds("explain", TEXT), re.MULTILINE) == [
        "template 1 of 3",
        "template 2 of 3",
        "template 3 of 3",
    ]


def test_a_real_model_as_numbers_json_and_picture(folder, tmp_path):
    pytest.importorskip("matplotlib")
    options = ["--model", folder, "--method", "wva", "--layers", "1,3", "--by", "contribution"]
    expected = explain(valuembed.load(folder, method="wva", layers="1,3"), TEXT, by="contribution")
    assert json.loads(succeeds("explain", TEXT, *options, "--json")) == expected.to_dict()
    picture = tmp_path / "weights.png"
    shown = succeeds("explain", TEXT, *options, "--plot", picture)
    assert "share in the last token's weighted values, mean over heads\n" in shown
    assert shown.endswith(f"{picture}: written\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "written" not in succeeds("explain", TEXT, *options, "--plot", picture, "--json")


def test_errors_are_one_line(folder, monkeypatch):
    message = fails("explain", TEXT, "--model", folder, "--method", "va")
    assert message.startswith("error: method 'va' gives the text's tokens the same weight each, so there is nothing")
    assert fails("explain", " ", "--model", folder).startswith("error: the text ' ' is blank")
    assert fails("explain", TEXT, "--model", folder, "--by", "x").startswith("error: by='x' is unknown; legal: ")
    monkeypatch.setattr(cli_explain, "load_encoder", lambda options: 1 / 0)
    assert fails("explain", TEXT, "--plot", "weights.jpg").startswith("error: picture weights.jpg has the extension")


def test_the_bundled_model_is_the_default():
    assert run("explain", TEXT).stdout.startswith("bundled, aligned_wva, layers ")
