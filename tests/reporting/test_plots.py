"""Figures hold the numbers they were given."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from valuembed.errors import MissingExtraError, OutputError
from valuembed.reporting import plots
from valuembed.reporting.fonts import Lettering

pytestmark = pytest.mark.slow


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
    assert (figure.get_suptitle(), axes.get_ylabel()) == ("Scores", "Spearman x100")
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


def drawn(figure):
    """A figure with everything in its place."""
    figure.draw_without_rendering()
    return figure


class TestPanels:
    def test_are_one_a_column_with_a_bar_a_row(self):
        columns = {"A": {"va": 1.0, "wva": 3.0}, "B": {"wva": 2.0}}
        figure = plots.panels(
            columns,
            ["va", "wva"],
            title="t",
            written=lambda value: "none" if value is None else f"{value:.0f}",
            best=lambda column: {"3"} if len(column) > 1 else (),
        )
        first, second = (axes for axes in drawn(figure).axes if axes.get_visible())
        assert [bar.get_width() for bar in first.patches] == [1, 3]
        assert [text.get_text() for text in first.texts] == ["1", "3"]
        assert [text.get_text() for text in second.texts] == ["none", "2"]
        assert first.patches[0].get_facecolor() != first.patches[1].get_facecolor()
        assert len({bar.get_facecolor() for bar in second.patches}) == 1
        assert (first.get_title(), second.get_title(), figure.get_suptitle()) == ("A", "B", "t")


def similar(n):
    """Cosines from 0.2 to 0.6 beside the diagonal."""
    values = np.linspace(0.2, 0.6, n * n).reshape(n, n)
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


class TestMatrix:
    def test_of_few_texts_has_numbers_and_texts(self):
        values = np.array([[1, 0.25, 0.75], [0.25, 1, 0.5], [0.75, 0.5, 1]])
        figure = drawn(plots.matrix(values, ["one", "two", "a\nb"], title="t", label="cosine"))
        axes, bar = figure.axes
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["1.00", "0.25", "0.75", "0.25", "1.00", "0.50", "0.75", "0.50", "1.00", "one", "two", "a b"]
        # The diagonal has no colour and takes none from the others.
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0.25, 0.75)
        assert axes.images[0].get_array().mask.tolist() == np.eye(3, dtype=bool).tolist()
        assert [text.get_color() for text in axes.texts[:3]] == ["black", "black", "white"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3"]
        assert (figure.get_suptitle(), bar.get_ylabel()) == ("t", "cosine")

    def test_of_more_texts_has_texts_and_no_numbers(self):
        texts = [f"text {number} " + "is long " * 20 for number in range(30)]
        axes = drawn(plots.matrix(similar(30), texts, title="t", label="l")).axes[0]
        beside = [text.get_text() for text in axes.texts]
        assert len(beside) == 30
        assert all(text.startswith(f"text {number} ") for number, text in enumerate(beside))
        assert {len(text) for text in beside} == {44}
        assert all(text.endswith("\N{HORIZONTAL ELLIPSIS}") for text in beside)

    def test_of_many_texts_has_colours_alone(self):
        axes = drawn(plots.matrix(similar(100), ["text"] * 100, title="t", label="l")).axes[0]
        assert len(axes.texts) == 0
        # Numbers on the axes count from 1, and each is in the middle of its row.
        assert axes.get_ylim() == (100.5, 0.5)
        assert axes.images[0].get_extent() == [0.5, 100.5, 100.5, 0.5]

    def test_long_texts_are_broken_into_three_lines(self):
        axes = drawn(plots.matrix(similar(2), ["word " * 100, "\u4e2d" * 100], title="t", label="l")).axes[0]
        latin, chinese = (text.get_text().splitlines() for text in axes.texts[-2:])
        assert len(latin) == len(chinese) == 3
        assert latin[-1].endswith("\N{HORIZONTAL ELLIPSIS}")
        # Letters that are twice as wide are half as many.
        assert max(map(len, latin)) == 44
        assert max(map(len, chinese)) == 22

    def test_differences_that_are_none_get_no_colours(self):
        norm = plots.matrix(np.full((3, 3), 0.5), list("abc"), title="t", label="l").axes[0].images[0].norm
        assert norm.vmax - norm.vmin == pytest.approx(0.05)

    def test_small_differences_are_seen_in_digits_and_colours(self):
        values = np.array([[1, 0.9951, 0.9957], [0.9951, 1, 0.9903], [0.9957, 0.9903, 1]])
        axes = plots.matrix(values, list("abc"), title="t", label="l").axes[0]
        # 0.0054 apart: tenths of that are seen with 4 decimals.
        assert [text.get_text() for text in axes.texts[:3]] == ["1.0000", "0.9951", "0.9957"]
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == pytest.approx((0.9903, 0.9957))

    def test_of_one_text(self):
        drawn(plots.matrix(np.ones((1, 1)), ["alone"], title="t", label="l"))

    def test_what_is_no_glyph_is_a_box_with_a_note(self):
        letters = Lettering(["DejaVu Sans"], {"b"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plots, "lettering", lambda texts: letters)
            figure = plots.matrix(similar(2), ["ab", "c"], title="t", label="l")
        assert figure.axes[0].texts[-2].get_text() == "a\N{WHITE SQUARE}"
        assert figure.get_supxlabel().replace("\n", " ") == letters.note


def sequence(t, own, layers=2):
    weights = np.linspace(0, 0.1, layers * t).reshape(layers, t)
    return [f" w{number}" for number in range(t)], [number in own for number in range(t)], weights


class TestTokenWeights:
    def test_are_layers_by_tokens_with_their_mean_on_top(self):
        tokens, own = ["<s>", " ", "\n", " cat", "", "."], [False, True, True, True, True, False]
        weights = np.array([[0.1] * 6, [0.3] * 6])
        figure = plots.token_weights([(tokens, own, weights)], rows=["4", "7"], full=0.25, title="t")
        axes, bar = drawn(figure).axes
        labels = axes.get_xticklabels()
        assert [label.get_text() for label in labels] == ["<s>", "\N{OPEN BOX}", "\u21b5", "cat", "", "."]
        assert [label.get_style() for label in labels] == ["italic", *["normal"] * 4, "italic"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "4", "7"]
        layers, mean = axes.images
        np.testing.assert_allclose(layers.get_array(), weights)
        np.testing.assert_allclose(mean.get_array(), [[0.2] * 6])
        assert (layers.norm.vmax, layers.norm.gamma) == (0.25, 0.5)
        # A line above the text's own tokens, from the edge of the second to that of the fifth.
        (line,) = [line for line in axes.lines if line.get_color() == "black"]
        assert line.get_xdata().tolist() == [1.5, 5.5]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_color() == "white"] == [1.5, 5.5]
        assert [label.get_text() for label in bar.get_yticklabels()] == ["0%", "1%", "2%", "5%", "10%", "20%"]
        assert figure.get_supxlabel() == "black: the text's own tokens"

    def test_long_texts_are_cut_into_lines_that_are_about_equal(self):
        figure = drawn(plots.token_weights([sequence(120, range(5, 110))], rows=["0", "1"], full=0.1, title="t"))
        *strips, _ = figure.axes
        labels = [[label.get_text() for label in axes.get_xticklabels()] for axes in strips]
        assert [len(of_strip) for of_strip in labels] == [40, 40, 40]
        assert [label for of_strip in labels for label in of_strip] == [f"w{number}" for number in range(120)]
        # All have the same scale, or their cells would differ in size.
        assert {axes.get_xlim()[1] - axes.get_xlim()[0] for axes in strips} == {40}

    def test_very_long_texts_are_one_line_with_numbers(self):
        t = plots.LABELLED + 1
        figure = drawn(plots.token_weights([sequence(t, range(5, t))], rows=["0", "1"], full=0.1, title="t"))
        axes, _ = figure.axes
        assert axes.get_xlabel() == "token"
        assert axes.get_xlim() == (0.5, t + 0.5)
        assert not any(label.get_text().startswith("w") for label in axes.get_xticklabels())

    def test_more_tokens_than_can_be_seen_keep_their_peaks(self):
        tokens, own, weights = sequence(4000, range(4000))
        weights[:] = 0.001
        weights[1, 1001] = 0.7
        figure = plots.token_weights([(tokens, own, weights)], rows=["0", "1"], full=0.1, title="t")
        image = figure.axes[0].images[0].get_array()
        assert image.shape == (2, 1334)
        # Three tokens a column.
        assert [place.tolist() for place in np.nonzero(image > 0.1)] == [[1], [333]]

    def test_several_templates_stand_one_below_the_other(self):
        sequences = [sequence(6, range(2, 4)), sequence(9, range(3, 8))]
        figure = drawn(plots.token_weights(sequences, rows=["0", "1"], full=0.1, title="t"))
        first, second, _ = figure.axes
        assert [axes.get_ylabel() for axes in (first, second)] == ["template 1, layer", "template 2, layer"]
        assert first.get_xlim() == second.get_xlim() == (0.5, 9.5)

    def test_of_many_layers_only_some_are_named(self):
        figure = drawn(
            plots.token_weights(
                [sequence(6, range(6), layers=80)], rows=[str(n) for n in range(80)], full=0.1, title="t"
            )
        )
        names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert names[:4] == ["mean", "0", "2", "4"]

    def test_weights_beyond_the_darkest_colour_are_shown_to_be(self):
        for full, extend in ((0.05, "max"), (0.1, "neither")):
            figure = plots.token_weights([sequence(6, range(6))], rows=["0", "1"], full=full, title="t")
            assert figure.axes[0].images[0].colorbar.extend == extend

    def test_of_weights_that_are_all_zero(self):
        tokens, own, weights = sequence(3, range(3))
        drawn(plots.token_weights([(tokens, own, 0 * weights)], rows=["0", "1"], full=0.0, title="t"))


@pytest.mark.parametrize("name", ["from $5} to $6", "$x^2$"])
def test_a_name_is_no_formula(tmp_path, name):
    """Not parsed, which would fail or show something else: drawn to the end, and as it was given."""
    lines = {name: [(0, 1.0), (1, 2.0)], f"{name} too": [(0, 1.0), (1, 2.0)]}
    plots.save(plots.matrix(similar(2), [name, name], title=name, label="l"), tmp_path / "x.png")
    weights = ([name, name], [True, False], similar(2))
    plots.save(plots.token_weights([weights], rows=["0", "1"], full=0.1, title=name), tmp_path / "x.png")
    for figure in (
        plots.bars({name: {name: 1.0, f"{name} too": 2.0}}, title=name, ylabel=name),
        plots.curves(lines, title=name, xlabel=name, ylabel=name),
    ):
        plots.save(figure, tmp_path / "x.png")
        (axes,) = figure.axes
        texts = [*figure.texts, axes.yaxis.label, *axes.get_legend().get_texts()]
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
    with pytest.raises(MissingExtraError, match=r'matplotlib is not installed; run: pip install .*\[plot\]"'):
        plots.bars({"a": {"b": 1.0}}, title="t", ylabel="y")


LONG = "some-organisation/a-model-with-a-name-of-many-parts-7B-Instruct: mean over STS12, STS13, STS14, STS15 and STS16"


def overlaps(figure):
    """Pairs of texts of a figure that stand on each other, and texts that leave it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    # Numbers on an axis are also made for places beyond its ends, and not drawn there.
    written = re.compile(r"[^\W\d]")
    texts = [text for text in figure.findobj(Text) if written.search(text.get_text()) and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if not text.get_rotation() % 90]
    whole = figure.bbox
    out = [name for name, box in boxes if box.x0 < -2 or box.x1 > whole.x1 + 2 or box.y0 < -2 or box.y1 > whole.y1 + 2]
    over = [
        (one, other)
        for number, (one, first) in enumerate(boxes)
        for other, second in boxes[number + 1 :]
        # Ends that touch are no overlap.
        if min(first.x1, second.x1) - max(first.x0, second.x0) > 1
        and min(first.y1, second.y1) - max(first.y0, second.y0) > 1
    ]
    return out, over


class TestTexts:
    @pytest.mark.parametrize("groups", [1, 3, 8])
    def test_of_bars_fit_and_do_not_overlap(self, groups):
        names = ["STSBenchmark", "sickr-with-a-long-name-$x_1$.jsonl@dev", "Banking77Classification", *"abcde"]
        scores = {name: {"va": 50.0, "a method with a long name @20:28": 60.0} for name in names[:groups]}
        assert overlaps(plots.bars(scores, title=LONG, ylabel="score (%)")) == ([], [])

    def test_of_panels_fit_and_do_not_overlap(self):
        columns = {name: {"va": 50.0, "wva": 60.0} for name in ("STS12", "a-file-with-a-long-name.jsonl@dev and more")}
        figure = plots.panels(
            columns, ["va", "wva"], title=LONG, written=lambda value: f"{value:.2f}", best=lambda _: ()
        )
        assert overlaps(figure) == ([], [])

    def test_of_curves_fit_and_do_not_overlap(self):
        lines = {f"a signal with a long name {number}": [(0, 1.0), (1, 2.0)] for number in range(6)}
        figure = plots.curves(
            lines, title=f"{LONG}\n{LONG}", xlabel="layer", ylabel="y", span=("default", [0]), peaks="best"
        )
        assert overlaps(figure) == ([], [])

    @pytest.mark.parametrize("count", [2, 5, 12, 30])
    def test_of_a_matrix_fit_and_do_not_overlap(self, count):
        texts = ["It costs $5_000 or $7", "\u05e9\u05dc\u05d5\u05dd", "word " * 60, *["text"] * count][:count]
        out, over = overlaps(plots.matrix(similar(count), texts, title=LONG, label="cosine"))
        assert (out, over) == ([], [])


class TestMarks:
    def test_a_span_and_the_highest_points(self):
        lines = {"a": [(0, 1.0), (1, 3.0), (2, 2.0)], "b": [(0, float("nan")), (1, 0.0), (2, 5.25)], "c": []}
        figure = plots.curves(
            lines, title="t", xlabel="layer", ylabel="y", span=("default: layers 0-1, 4", (0, 1, 4)), peaks="best layer"
        )
        axes = drawn(figure).axes[0]
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["a", "b", "c", "default: layers 0-1, 4", "best layer"]
        # A run of neighbours is one shade, from half a layer before to half a layer behind.
        assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(-0.5, 2.0), (3.5, 1.0)]
        (rings,) = axes.collections
        assert rings.get_offsets().tolist() == [[1.0, 3.0], [2.0, 5.25]]
        assert [text.get_text() for text in axes.texts] == ["layer 2: 5.25"]

    def test_without_any_score_nothing_is_marked(self):
        axes = drawn(plots.curves({"a": []}, title="t", xlabel="x", ylabel="y", peaks="best")).axes[0]
        assert (len(axes.collections), len(axes.texts)) == (0, 0)
