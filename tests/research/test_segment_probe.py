"""Segment matching by layer: the figures are those of the vectors that ``load`` gives, laid out to be read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from some_texts import WORDS

import valuembed
from valuembed.analysis.segments import Documents, cut, match
from valuembed.errors import InputError, LayerError, MissingExtraError, OutputError, RecipeError
from valuembed.models.multi_readout import SIGNALS
from valuembed.reporting import outputs
from valuembed.research import segment_probe
from valuembed.research.segment_probe import FINAL, LayerProbe, probe_segments

pytestmark = pytest.mark.slow

PNG = b"\x89PNG"

TABLE = LayerProbe(
    name="segments",
    heading="Segment matching",
    model="m",
    corpus="c.txt",
    num_layers=3,
    metrics=("accuracy@1 (%)", "MRR x100"),
    scores={"values raw": {1: (50.0, 61.234), 2: (40.0, 70.0)}, "hidden mean": {0: (10.0, 20.0), 2: (30.0, 40.0)}},
    final={"hidden mean": (31.0, 39.0)},
    baselines={"chance": (0.5, 2.0)},
    notes=("One.", "Two."),
    details={"seconds": 1},
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Twelve documents of about 60 words, and two short ones."""
    generator = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("corpus") / "documents.jsonl"
    texts = [" ".join(generator.choice(WORDS, size=60)) for _ in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["Short.", *texts, "Too."]) + "no json\n")
    return path


@pytest.fixture(scope="module")
def found(folder, corpus):
    return probe_segments(folder, corpus, tokens=20, progress=False)


def layers_of(found):
    return {signal: sorted(of_signal) for signal, of_signal in found.scores.items()}


def vectors_of(folder, recipe, texts, **choices):
    return valuembed.load(folder, recipe, template="none", normalize=False, **choices).encode(list(texts))


class TestEndedEarly:
    @pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
    def test_what_is_finished_is_written_and_marked(self, folder, corpus, found, tmp_path, monkeypatch, end):
        pytest.importorskip("matplotlib")
        matched = []

        def interrupted(vectors, documents):
            if len(matched) == 6:
                raise end
            matched.append(None)
            return match(vectors, documents)

        monkeypatch.setattr(segment_probe, "match", interrupted)
        with pytest.raises(end):
            probe_segments(folder, corpus, tokens=20, output=tmp_path, progress=False)
        kept = json.loads((tmp_path / "segments.json").read_text())
        # Three signals at four layers, and the final norm.
        assert kept["unfinished"] == "Incomplete: ended after 6 of 13 signals and layers"
        assert "Incomplete: ended after 6 of 13" in (tmp_path / "segments.md").read_text().splitlines()[0]
        assert (tmp_path / "segments.png").read_bytes().startswith(PNG)
        scores = {(signal, int(layer)): tuple(f) for signal, of in kept["scores"].items() for layer, f in of.items()}
        assert len(scores) == 6
        assert all(found.scores[signal][layer] == figures for (signal, layer), figures in scores.items())

    def test_nothing_finished_writes_nothing(self, folder, corpus, tmp_path, monkeypatch):
        pytest.importorskip("matplotlib")
        monkeypatch.setattr(segment_probe, "match", None)
        with pytest.raises(TypeError):
            probe_segments(folder, corpus, tokens=20, output=tmp_path, progress=False)
        assert list(tmp_path.iterdir()) == []


class TestSegments:
    def test_every_layer_of_the_three_signals(self, found):
        whole = [0, 1, 2, 3]
        assert layers_of(found) == {"values raw": whole, "values aligned": whole, "hidden mean": whole}
        assert list(found.final) == ["hidden mean"]

    @pytest.mark.parametrize("signal", segment_probe.SEGMENT_SIGNALS)
    def test_a_figure_is_that_of_the_layers_vectors(self, folder, corpus, found, signal):
        tokenizer = valuembed.load(folder).reader.texts.tokenizer
        segments = cut(Documents(corpus), tokenizer, 20)
        vectors = vectors_of(folder, SIGNALS[signal], segments.texts, layers=[2])
        score = match(vectors, segments.documents)
        assert found.scores[signal][2] == pytest.approx((100 * score.accuracy, 100 * score.mrr))

    def test_the_reference_is_the_stream_after_the_final_norm(self, folder, corpus, found):
        segments = cut(Documents(corpus), valuembed.load(folder).reader.texts.tokenizer, 20)
        score = match(vectors_of(folder, "hidden_mean", segments.texts), segments.documents)
        assert found.final["hidden mean"] == pytest.approx((100 * score.accuracy, 100 * score.mrr))

    def test_says_what_was_read(self, found):
        details = found.details
        assert (details["documents"], details["documents_read"], details["documents_too_short"]) == (12, 14, 2)
        assert details["rows_rejected"] == 1
        n = details["segments"]
        assert (details["queries"], details["candidates"]) == (n - 12, n - 1)
        assert f"{n} segments of 20 tokens from 12 documents; 2 of 14 documents read are shorter" in found.notes[0]
        assert "1 row holds no text" in found.notes[0]

    def test_chance(self, found):
        # The next segment is as likely at any of the n - 1 ranks.
        ranks = range(1, found.details["candidates"] + 1)
        expected = (100 / len(ranks), 100 * sum(1 / rank for rank in ranks) / len(ranks))
        assert found.baselines["chance"] == pytest.approx(expected)

    def test_chunks_do_not_count(self, folder, corpus, found, monkeypatch):
        monkeypatch.setattr(segment_probe, "_CHUNK", 5)
        again = probe_segments(folder, corpus, tokens=20, progress=False)
        for signal, of_signal in found.scores.items():
            for layer, figures in of_signal.items():
                assert again.scores[signal][layer] == pytest.approx(figures, abs=0.5)
        assert again.details["tokens"] == found.details["tokens"]

    def test_some_layers_some_signals_some_segments(self, folder, corpus):
        found = probe_segments(
            folder, corpus, tokens=20, segments=10, layers="1,3", signals=["weighted raw"], progress=False
        )
        assert layers_of(found) == {"weighted raw": [1, 3]}
        assert found.final == {}
        assert found.details["segments"] <= 10

    def test_a_folder_that_was_saved_cut(self, folder, corpus, tmp_path):
        valuembed.load(folder, "va", layers=[1]).save(str(tmp_path))
        found = probe_segments(tmp_path, corpus, tokens=20, progress=False)
        assert sorted(found.scores["hidden mean"]) == [0, 1]
        assert found.final == {}

    def test_texts_that_do_not_fit_are_reported(self, folder, corpus):
        with pytest.warns(valuembed.TruncationWarning, match=r"texts were cut to fit max_tokens=12"):
            probe_segments(folder, corpus, tokens=20, max_tokens=12, segments=4, layers=[0], progress=False)

    def test_writes_table_chart_and_json(self, folder, corpus, tmp_path):
        output = tmp_path / "new"
        found = probe_segments(folder, corpus, tokens=20, segments=6, layers=[0, 1], output=output, progress=False)
        assert {path.name for path in output.iterdir()} == {"segments.json", "segments.md", "segments.png"}
        assert (output / "segments.md").read_text() == found.to_markdown()
        held = json.loads((output / "segments.json").read_text())
        assert held["scores"]["values raw"]["0"] == pytest.approx(list(found.scores["values raw"][0]))
        assert held["details"]["origin"]["num_layers"] == 4
        assert (output / "segments.png").read_bytes().startswith(PNG)


class TestErrors:
    def test_no_document_is_long_enough(self, folder, corpus):
        with pytest.raises(InputError, match=r"none of 14 documents has two segments of 128 tokens: 256 tokens are"):
            probe_segments(folder, corpus, progress=False)

    def test_no_such_file(self, folder, tmp_path):
        with pytest.raises(InputError, match=r"input .*none\.jsonl does not exist"):
            probe_segments(folder, tmp_path / "none.jsonl")

    def test_unknown_signal(self, folder, corpus):
        with pytest.raises(RecipeError, match="no signal is named 'raw'; legal: values raw, values aligned, "):
            probe_segments(folder, corpus, signals=["raw"])

    def test_unknown_layer(self, folder, corpus):
        with pytest.raises(LayerError, match="9"):
            probe_segments(folder, corpus, layers=[9])

    def test_no_chart_can_be_drawn(self, folder, corpus, tmp_path, monkeypatch):
        def require(module, extra):
            raise MissingExtraError(f"{module} is not installed")

        # Known before anything is loaded.
        monkeypatch.setattr(outputs, "require", require)
        monkeypatch.setattr(segment_probe, "inspect_checkpoint", None)
        with pytest.raises(MissingExtraError, match="matplotlib is not installed"):
            probe_segments(folder, corpus, output=tmp_path)

    def test_no_folder_can_be_made(self, folder, corpus, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write into .*file: "):
            TABLE.write(tmp_path / "file")
        # Known before anything is loaded.
        monkeypatch.setattr(segment_probe, "inspect_checkpoint", None)
        with pytest.raises(OutputError, match=r"cannot write into .*file: "):
            probe_segments(folder, corpus, output=tmp_path / "file")


class TestTable:
    def test_rows(self):
        assert TABLE.rows() == [
            ["layer", "values raw", "hidden mean"],
            ["0", "-", "10.00 / 20.00"],
            ["1", "50.00 / 61.23", "-"],
            ["2", "40.00 / 70.00", "30.00 / 40.00"],
            ["final norm", "-", "31.00 / 39.00"],
            ["chance", "0.50 / 2.00", "0.50 / 2.00"],
        ]

    def test_best_goes_by_the_first_figure(self):
        assert (TABLE.best("values raw"), TABLE.best("hidden mean")) == ("1", FINAL)

    def test_markdown(self):
        assert TABLE.to_markdown().splitlines() == [
            "Segment matching, accuracy@1 (%) / MRR x100: m on c.txt",
            "",
            "| layer | values raw | hidden mean |",
            "|--:|--:|--:|",
            "| 0 | - | 10.00 / 20.00 |",
            "| 1 | **50.00 / 61.23** | - |",
            "| 2 | 40.00 / 70.00 | 30.00 / 40.00 |",
            "| final norm | - | **31.00 / 39.00** |",
            "| chance | 0.50 / 2.00 | 0.50 / 2.00 |",
            "",
            "- One.",
            "- Two.",
            "- -: the layer does not have this signal, or was not reached",
        ]

    def test_figure(self):
        (axes,) = TABLE.figure().axes
        lines = {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
        # The final norm stands where layer 3 would.
        assert lines == {
            "values raw": ([1, 2], [50, 40]),
            "hidden mean": ([0, 2, 3], [10, 30, 31]),
            "chance": ([0, 3], [0.5, 0.5]),
        }
        assert axes.get_xlabel() == "layer (3: the last one after the final norm)"
        assert replace(TABLE, final={}).figure().axes[0].get_xlabel() == "layer"
