"""Figures hold the numbers they were given."""

from __future__ import annotations

import math
import sys

import pytest
from matplotlib.figure import Figure

from valuembed import plots
from valuembed.errors import MissingExtraError, OutputError


def test_bars_are_one_group_a_key_and_one_colour_a_series():
    figure = plots.bars(
        {"STS12": {"va": 40.0, "wva": 50.0}, "STS13": {"va": 60.0}}, title="Scores", ylabel="Spearman x100"
    )
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in series] for series in axes.containers]
    assert heights[0] == [40.0, 60.0]
    assert heights[1][0] == 50.0
    assert math.isnan(heights[1][1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["STS12", "STS13"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["va", "wva"]
    assert (axes.get_title(), axes.get_ylabel()) == ("Scores", "Spearman x100")
    colours = [series[0].get_facecolor() for series in axes.containers]
    assert colours[0] != colours[1]


def test_curves_are_one_line_a_series_over_whole_layers():
    figure = plots.curves(
        {"values": [(0, 1.0), (1, 3.0)], "hidden": [(0, 2.0), (1, 0.5)]}, title="t", xlabel="layer", ylabel="score"
    )
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1.0, 3.0], [2.0, 0.5]]
    assert [line.get_label() for line in axes.lines] == ["values", "hidden"]
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_many_series_stay_apart():
    figure = plots.curves({f"s{i}": [(0, i)] for i in range(20)}, title="t", xlabel="x", ylabel="y")
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines}
    assert len(styles) == 20


@pytest.mark.parametrize("name", ["from $5} to $6", "$x^2$"])
def test_a_name_is_no_formula(tmp_path, name):
    """Not parsed, which would fail or show something else: drawn to the end, and as it was given."""
    lines = {name: [(0, 1.0), (1, 2.0)], f"{name} too": [(0, 1.0), (1, 2.0)]}
    for figure in (
        plots.bars({name: {name: 1.0, f"{name} too": 2.0}}, title=name, ylabel=name),
        plots.curves(lines, title=name, xlabel=name, ylabel=name),
    ):
        plots.save(figure, tmp_path / "x.png")
        (axes,) = figure.axes
        texts = [axes.title, axes.yaxis.label, *axes.get_legend().get_texts()]
        texts += axes.get_xticklabels() if axes.containers else [axes.xaxis.label]
        assert len(texts) == 5
        assert {text.get_text() for text in texts} == {name, f"{name} too"}
        assert not any(text.get_parse_math() for text in texts)


def test_is_saved_whole_as_png(tmp_path):
    plots.save(plots.bars({"a": {"b": 1.0}}, title="t", ylabel="y"), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*x\.png: No such file or directory"):
        plots.save(plots.bars({"a": {"b": 1.0}}, title="t", ylabel="y"), tmp_path / "no" / "x.png")


def test_no_window_system_is_asked_for():
    figure = plots.bars({"a": {"b": 1.0}}, title="t", ylabel="y")
    assert isinstance(figure, Figure)
    assert figure.canvas.manager is None


def test_without_matplotlib_the_error_is_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'matplotlib is not installed; run: pip install "valuembed\[plot\]"'):
        plots.bars({"a": {"b": 1.0}}, title="t", ylabel="y")
