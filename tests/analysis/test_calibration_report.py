"""The report on calibrations: its figures are those of the calibrated models, and its tables say which is best."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from some_texts import some_texts

from valuembed.analysis import calibration_report
from valuembed.analysis.calibration_fit import calibrate, fit_calibrations, load_head, sample_texts
from valuembed.analysis.calibration_report import (
    PARTS,
    CalibrationReport,
    LeakWarning,
    report_calibration,
    score_calibrations,
)
from valuembed.data.labelled import read_sts
from valuembed.errors import CheckpointError, InputError, OutputError, ReadingError, RecipeError, TruncationWarning
from valuembed.models.loading import load
from valuembed.models.multi_readout import MultiReadout

pytestmark = pytest.mark.slow

TEXTS = list(dict.fromkeys(some_texts(100)))
CORPUS, SCORED = TEXTS[:60], TEXTS[60:]
METHODS = {"va": 16, "aligned_wva": 32, "hidden_mean": 32}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sts") / "pairs.jsonl"
    rows = pairwise(SCORED)
    path.write_text(
        "".join(
            json.dumps({"sentence1": a, "sentence2": b, "score": (7 * row) % 11 / 2}) + "\n"
            for row, (a, b) in enumerate(rows)
        )
    )
    return path


@pytest.fixture(scope="module")
def report(folder: Path, pairs: Path) -> CalibrationReport:
    return report_calibration(folder, CORPUS, f"sts:{pairs}", list(METHODS), shrinkage=0.1)


def spearman(vectors: np.ndarray, pairs: Path) -> float:
    """By scipy, of float64 cosines."""
    unit = vectors.astype("float64") / np.linalg.norm(vectors.astype("float64"), axis=1, keepdims=True)
    return 100 * spearmanr((unit[:-1] * unit[1:]).sum(axis=1), read_sts(pairs).scores).statistic


class TestFigures:
    def test_every_method_kind_and_size_is_there(self, report):
        assert report.widths == METHODS
        assert report.kinds == ["none", "centre", "whiten", "pca", "filter"]
        assert {method: list(kinds) for method, kinds in report.scores.items()} == {
            "va": ["none", "centre", "whiten", "pca"],
            "aligned_wva": report.kinds,
            "hidden_mean": report.kinds,
        }
        assert all(list(parts) == list(PARTS) for kinds in report.scores.values() for parts in kinds.values())

    @pytest.mark.parametrize("method", METHODS)
    def test_without_a_calibration_they_are_of_the_first_coordinates(self, report, folder, pairs, method):
        vectors = load(folder, method).encode(SCORED)
        for part, divisor in PARTS.items():
            expected = spearman(vectors[:, : METHODS[method] // divisor], pairs)
            assert report.scores[method]["none"][part] == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("kind", ["centre", "whiten", "pca", "filter"])
    @pytest.mark.parametrize("part", PARTS)
    def test_with_one_they_are_of_the_calibrated_model(self, report, folder, pairs, kind, part):
        size = 32 // PARTS[part]
        head = load_head(folder) if kind == "filter" else None
        model = calibrate(load(folder), CORPUS, kind=kind, size=size, shrinkage=0.1, head=head)
        # Ranks of nearly equal cosines may change places.
        expected = spearman(model.encode(SCORED), pairs)
        assert report.scores["aligned_wva"][kind][part] == pytest.approx(expected, abs=0.2)

    def test_at_full_width_a_turn_changes_nothing(self, report):
        for method, kinds in report.scores.items():
            assert kinds["pca"]["1"] == pytest.approx(kinds["centre"]["1"], abs=0.2)
            if method != "va":
                assert kinds["filter"]["1"] == pytest.approx(kinds["none"]["1"], abs=0.2)

    def test_say_what_they_were_fitted_on(self, report, pairs):
        assert (report.model, report.file, report.pairs) == ("tiny", "pairs.jsonl", len(SCORED) - 1)
        assert (report.texts, report.corpus) == (len(CORPUS), sample_texts(CORPUS).digest)
        assert (report.shared, report.shrinkage) == (0, 0.1)

    def test_calibrations_of_the_panel_play_no_part(self, folder, pairs):
        readouts = MultiReadout.load(folder, {"va": "va"})
        with_one = MultiReadout(readouts.reader, readouts.plans, fit_calibrations(readouts, CORPUS, size=3))
        sts = read_sts(pairs)
        assert score_calibrations(with_one, CORPUS, sts) == score_calibrations(readouts, CORPUS, sts)

    def test_one_group_of_methods_is_held_at_a_time(self, folder, pairs, monkeypatch):
        asked = []
        encode = MultiReadout.encode

        def noted(self, texts, *, names, **more):
            asked.append((len(texts), tuple(names)))
            return encode(self, texts, names=names, **more)

        monkeypatch.setattr(MultiReadout, "encode", noted)
        report_calibration(folder, CORPUS, f"sts:{pairs}", ["va", "wva", "aligned_va"], kinds=["centre"])
        shared = ("va", "aligned_va")
        assert asked == [(60, shared), (len(SCORED), shared), (60, ("wva",)), (len(SCORED), ("wva",))]

    def test_a_saved_folder_is_reported_on_by_its_own_recipe(self, folder, pairs, tmp_path):
        calibrate(load(folder, "va"), CORPUS).save_pretrained(str(tmp_path))
        found = report_calibration(tmp_path, CORPUS, f"sts:{pairs}", None, kinds=["centre"])
        plain = report_calibration(folder, CORPUS, f"sts:{pairs}", "va", kinds=["centre"])
        assert found.scores == {"va (as saved)": plain.scores["va"]}


def made(**scores: dict[str, float]) -> CalibrationReport:
    """A report with the same score at every size."""
    spread = {
        method: {kind: dict.fromkeys(PARTS, score) for kind, score in kinds.items()} for method, kinds in scores.items()
    }
    return CalibrationReport("m", "f", 3, 4, "ab", 0, 0.01, dict.fromkeys(scores, 8), spread)


class TestTables:
    REPORT = made(
        a={"none": 50, "whiten": 9.5}, b={"none": 60, "whiten": 8}, c={"none": 55, "whiten": 70, "filter": 100}
    )

    def test_ranking(self):
        assert self.REPORT.ranking("none") == ["b", "c", "a"]
        assert self.REPORT.ranking("whiten") == ["c", "a", "b"]
        assert self.REPORT.ranking("filter") == ["c"]

    def test_cells(self):
        assert self.REPORT.rows("1") == [
            ["method", "size", "none", "whiten", "filter"],
            ["a", "8", "50.00 (3)", "9.50 (2)", "-"],
            ["b", "8", "60.00 (1)", "8.00 (3)", "-"],
            ["c", "8", "55.00 (2)", "70.00 (1)", "100.00 (1)"],
        ]
        assert self.REPORT.rows("1/8")[1] == ["a", "1", "50.00", "9.50", "-"]

    def test_markdown_marks_the_best_of_each_method(self):
        text = self.REPORT.to_markdown()
        assert text.startswith(
            "# Calibration of m\n\nSpearman x100 of cosine similarity on f (3 pairs). Fitted on 4 unl"
        )
        assert text.count("\n## ") == len(PARTS)
        assert "| a | 8 | **50.00 (3)** | 9.50 (2) | - |\n" in text
        assert "| c | 4 | 55.00 | 70.00 | **100.00** |\n" in text
        tables = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
        assert [{row.count("|") for row in table.splitlines()} for table in tables] == [{6}] * len(PARTS)

    def test_a_method_with_a_bar_in_its_name_is_one_cell(self):
        assert "| a\\|b | 8 |" in made(**{"a|b": {"none": 1.0}}).to_markdown()

    def test_plain_data(self, report):
        again = CalibrationReport(**json.loads(json.dumps(report.to_dict())))
        assert again.to_markdown() == report.to_markdown()
        assert (again.details["origin"]["name"], again.details["dtype"]) == ("tiny", "float32")


class TestFiles:
    def test_are_written(self, folder, pairs, tmp_path):
        pytest.importorskip("matplotlib")
        found = report_calibration(folder, CORPUS, f"sts:{pairs}", "va", kinds=["centre"], output=tmp_path / "new")
        written = {path.name: path for path in (tmp_path / "new").iterdir()}
        assert written["calibration.md"].read_text() == found.to_markdown()
        assert json.loads(written["calibration.json"].read_text())["scores"] == found.scores
        charts = [written[name].read_bytes() for name in ("calibration.png", "calibration-small.png")]
        assert len(written) == 4
        assert charts[0] != charts[1]
        assert all(chart.startswith(b"\x89PNG") for chart in charts)

    def test_chart(self):
        pytest.importorskip("matplotlib")
        axes = TestTables.REPORT.figure("1/8").axes[0]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
        assert axes.figure.get_suptitle() == "Calibrations of m on f, 1/8 of the width"
        assert [bar.get_height() for bar in axes.patches][:3] == [50, 60, 55]

    def test_a_bad_place_is_known_before_the_model_is_read(self, tmp_path, pairs):
        pytest.importorskip("matplotlib")
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write into .*file: "):
            report_calibration("no/such-model", CORPUS, f"sts:{pairs}", output=tmp_path / "file")

    def test_methods_that_are_finished_are_kept(self, folder, pairs, tmp_path, monkeypatch):
        pytest.importorskip("matplotlib")
        fitted = []

        def fit(*arguments, **more):
            fitted.append(None)
            if len(fitted) == 4:
                raise KeyboardInterrupt
            return real(*arguments, **more)

        real = calibration_report.fit
        monkeypatch.setattr(calibration_report, "fit", fit)
        given = (folder, CORPUS, f"sts:{pairs}", ["wva", "va"])
        with pytest.raises(KeyboardInterrupt):
            report_calibration(*given, kinds=["centre", "whiten"], output=tmp_path)
        kept = json.loads((tmp_path / "calibration.json").read_text())
        assert kept["unfinished"] == "Incomplete: ended after 1 of 2 methods"
        assert "\nIncomplete: ended after 1 of 2 methods.\n" in (tmp_path / "calibration.md").read_text()
        whole = report_calibration(*given, kinds=["centre", "whiten"])
        assert kept["scores"] == {"wva": whole.scores["wva"]}


class TestBadInput:
    def test_texts_that_are_scored_are_told(self, folder, pairs):
        # The corpus is read as a stream, and drawn from: what counts is what stands in it.
        def corpus() -> Iterator[str]:
            yield from CORPUS
            yield from SCORED[:4]

        with pytest.warns(LeakWarning, match=rf"^4 of the {len(SCORED)} texts of pairs.jsonl stand in the corpus too"):
            found = report_calibration(folder, corpus(), f"sts:{pairs}", "va", kinds=[], max_texts=5)
        assert (found.shared, found.texts) == (4, 5)

    @pytest.mark.parametrize("task", ["STS12", "pairs:x.jsonl", "x.jsonl"])
    def test_other_tasks(self, folder, task):
        with pytest.raises(InputError, match=f"task '{task}' cannot be reported on; give sts:FILE, or save a calibrat"):
            report_calibration(folder, CORPUS, task)

    def test_wrong_choices(self, folder, pairs):
        with pytest.raises(RecipeError, match="kind='zca' is unknown; legal: centre, whiten, pca, filter"):
            report_calibration(folder, CORPUS, f"sts:{pairs}", "va", kinds=["zca"])
        with pytest.raises(RecipeError, match="shrinkage=-1 has to be a number from 0 to 1"):
            report_calibration(folder, CORPUS, f"sts:{pairs}", "va", shrinkage=-1)
        with pytest.raises(RecipeError, match="method 'av' is unknown; give one of va, "):
            report_calibration(folder, CORPUS, f"sts:{pairs}", "av")

    def test_without_a_head_there_is_no_filter_and_a_word_about_it(self, folder, pairs, tmp_path):
        load(folder, "aligned_va").save_pretrained(str(tmp_path))
        with pytest.warns(UserWarning, match=r"^the filter is left out: model .* holds no weights of a language model"):
            found = report_calibration(tmp_path, CORPUS, f"sts:{pairs}", "aligned_va")
        assert found.kinds == ["none", "centre", "whiten", "pca"]

    @pytest.mark.parametrize(
        ("fill", "message"),
        [
            (
                0.0,
                rf"^va, none at 16 numbers, on pairs\.jsonl: the vector of {re.escape(repr(SCORED[0][:60]))} is zero",
            ),
            (1.0, r"^va, none at 16 numbers, on pairs\.jsonl: all \d+ pairs have the same similarity, of which there"),
        ],
    )
    def test_a_method_without_a_score(self, folder, pairs, monkeypatch, fill, message):
        encode = MultiReadout.encode

        def alike(self, texts, **more):
            return {name: np.full_like(found, fill) for name, found in encode(self, texts, **more).items()}

        monkeypatch.setattr(MultiReadout, "encode", alike)
        with pytest.raises(ReadingError, match=message):
            report_calibration(folder, CORPUS, f"sts:{pairs}", "va", kinds=[])

    def test_cut_texts_of_the_corpus_are_told_too(self, folder, pairs):
        long = [f"{text} {' '.join(CORPUS)}" for text in CORPUS[:20]]
        with pytest.warns(TruncationWarning, match="^20 of 20 texts were cut to fit max_tokens=400"):
            report_calibration(folder, long, f"sts:{pairs}", "va", kinds=["centre"], max_tokens=400)

    def test_a_head_that_nobody_needs_is_not_looked_for(self, folder, pairs, monkeypatch):
        def never(*args: object, **kwargs: object) -> None:
            raise CheckpointError("looked for")

        monkeypatch.setattr(calibration_report, "load_head", never)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report_calibration(folder, CORPUS, f"sts:{pairs}", "va")
            report_calibration(folder, CORPUS, f"sts:{pairs}", "hidden_mean", kinds=["whiten"])
