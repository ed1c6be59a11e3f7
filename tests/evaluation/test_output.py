"""What an evaluation keeps is not computed again, and what is new never gets an old figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from some_texts import some_texts

from valuembed.analysis.calibration_fit import fit_calibrations
from valuembed.evaluation import runner as module
from valuembed.evaluation.runner import evaluate
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.recipe import Recipe

pytestmark = pytest.mark.slow

mteb = pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")

TEXTS = some_texts(60)
GOLD = [float(value) for value in np.random.default_rng(0).integers(0, 6, 30)]
PAIRS = [{"sentence1": a, "sentence2": b, "score": s} for a, b, s in zip(TEXTS[:30], TEXTS[30:], GOLD, strict=True)]


def to_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"sts:{path}"


@pytest.fixture
def sts(tmp_path):
    return to_file(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def other(tmp_path):
    return to_file(tmp_path / "other.jsonl", PAIRS[::-3])


@pytest.fixture
def out(tmp_path):
    pytest.importorskip("matplotlib")
    return tmp_path / "deep" / "out"


def test_files(folder, sts, other, out):
    found = evaluate(folder, ["va", "prompt_eol"], [sts, other], output=out)
    assert (out / "results.md").read_text() == found.to_markdown()
    assert (out / "results.png").exists()
    files = list(out.glob("results/local__tiny/*/*-*.json"))
    assert len(files) == 4
    for path in files:
        notes = json.loads(path.read_text())["valuembed"]
        recipe = Recipe.from_dict(notes["recipe"])
        assert (notes["model"], notes["fingerprint"]) == ("tiny", path.parent.name)
        assert recipe == found.recipes[recipe.method]
        assert {"valuembed", "torch", "transformers", "mteb"} <= set(notes["versions"])
        assert str(folder) not in path.read_text()


@pytest.fixture
def written(monkeypatch):
    """What would be written as table and chart, which takes longer than all the rest."""
    found = []
    monkeypatch.setattr(module, "write", lambda evaluation, folder: found.append(evaluation))
    return found


def test_a_rerun_loads_no_model(folder, sts, other, out, written, monkeypatch):
    first = evaluate(folder, ["va", "wva"], [sts, other], output=out)
    monkeypatch.setattr(MultiReadout, "load", None)
    again = evaluate(folder, ["va", "wva"], [sts, other], output=out)
    assert all(score.reused for score in again.scores)
    for before, after in zip(first.scores, again.scores, strict=True):
        # Files hold scores of 6 decimals, which are 4 in percent.
        assert after.score == pytest.approx(before.score, abs=1e-4)
        assert (after.width, after.tokens, after.layers) == (before.width, before.tokens, before.layers)


def test_only_what_is_missing_is_computed(folder, sts, other, out, written, monkeypatch):
    evaluate(folder, ["va"], [sts], output=out)
    loaded = []
    real = MultiReadout.load

    def load(model, recipes, **more):
        loaded.append(list(recipes))
        return real(model, recipes, **more)

    monkeypatch.setattr(MultiReadout, "load", load)
    found = evaluate(folder, ["va", "wva"], [sts], output=out)
    assert loaded == [["wva"]]
    assert {score.method: score.reused for score in found.scores} == {"va": True, "wva": False}
    # A new task for a method that has the other one already; under another label it is the same method.
    found = evaluate(folder, {"mine": "va"}, [sts, other], output=out)
    assert {score.task: score.reused for score in found.scores} == {"pairs": True, "other": False}


def test_what_is_new_gets_no_old_figure(folder, tmp_path, sts, out, written):
    model = Path(shutil.copytree(folder, tmp_path / "tiny"))

    def reused(**options):
        return evaluate(model, ["va"], [sts], output=out, **options).scores[0].reused

    assert not reused()
    assert reused()
    for change in (
        {"layers": [0]},
        {"template": "a {text}"},
        {"cleaning": "sentence"},
        {"dtype": "float64"},
        {"max_tokens": 9},
        {"model_kwargs": {"attn_implementation": "eager"}},
    ):
        assert not reused(**change), change
    path = model / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert not reused()
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert not reused()
    to_file(tmp_path / "pairs.jsonl", [{**PAIRS[0], "score": 0.5}, *PAIRS[1:]])
    assert not reused()


def test_a_calibration_counts_with_its_numbers(folder, sts, out, written):
    readouts = MultiReadout.load(folder, {"va": "va"})
    # Fitted on the same texts under an instruction, which the record does not say.
    first, second = (fit_calibrations(readouts, TEXTS, prompt=prompt)["va"] for prompt in (None, "About: "))
    assert first.record == second.record

    def reused(**calibrations):
        return evaluate(folder, ["va"], [sts], output=out, calibrations=calibrations).scores[0].reused

    assert not reused()
    assert not reused(va=first)
    assert reused(va=first)
    assert not reused(va=second)


def test_the_same_model_in_another_place_is_the_same(folder, tmp_path, sts, out, written):
    evaluate(folder, ["va"], [sts], output=out)
    copy = shutil.copytree(folder, tmp_path / "tiny")
    assert evaluate(copy, ["va"], [sts], output=out).scores[0].reused


def test_an_interrupted_run_keeps_what_it_has(folder, sts, other, out, written, monkeypatch):
    with monkeypatch.context() as patched:
        real = mteb.evaluate

        def interrupted(encoder, task, **more):
            if "other" in task.metadata.name:
                raise KeyboardInterrupt
            return real(encoder, task, **more)

        patched.setattr(mteb, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, ["va", "wva"], [sts, other], output=out)
    assert written[-1].columns()["other"] == {}
    assert list(written[-1].columns()["pairs"]) == ["va", "wva"]
    found = evaluate(folder, ["va", "wva"], [sts, other], output=out)
    assert [(score.task, score.reused) for score in found.scores] == [("pairs", True), ("other", False)] * 2


def test_what_cannot_be_written_does_not_hide_the_interruption(folder, sts, other, out, monkeypatch):
    def interrupted(encoder, task, **more):
        if "other" in task.metadata.name:
            raise KeyboardInterrupt
        return real(encoder, task, **more)

    def broken(evaluation, folder):
        raise ZeroDivisionError("the chart")

    real = mteb.evaluate
    monkeypatch.setattr(mteb, "evaluate", interrupted)
    monkeypatch.setattr(module, "write", broken)
    # Warnings are errors here, and one must not hide it either.
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, ["va"], [sts, other], output=out)
    with pytest.warns(UserWarning, match="no table and chart of what there is: the chart"):  # noqa: SIM117
        with pytest.raises(KeyboardInterrupt):
            evaluate(folder, ["va"], [sts, other], output=out)
    # A run that came to its end says so itself.
    with pytest.raises(ZeroDivisionError, match="the chart"):
        evaluate(folder, ["va"], [sts], output=out)


def test_without_it_nothing_is_written(folder, sts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {path for root in (tmp_path, Path(mteb.ResultCache().cache_path)) for path in root.rglob("*")}
    evaluate(folder, ["va"], [sts])
    assert before == {path for root in (tmp_path, Path(mteb.ResultCache().cache_path)) for path in root.rglob("*")}
