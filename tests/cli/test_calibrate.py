"""``valuembed calibrate``: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from saved_models import WHITENED, assert_same_vectors
from some_texts import some_texts
from typer.testing import CliRunner

import valuembed.cli.calibrate  # noqa: F401
from valuembed.analysis.calibration_fit import MAX_TEXTS, calibrate
from valuembed.analysis.calibration_report import PARTS, CalibrationReport
from valuembed.cli.framework import app
from valuembed.models.calibration import CALIBRATIONS, DEFAULT_SHRINKAGE
from valuembed.models.loading import load

pytestmark = pytest.mark.slow

TEXTS = list(dict.fromkeys(some_texts(70)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.txt"
    path.write_text("\n".join([*TEXTS[:50], "", ""]))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sts") / "pairs.jsonl"
    rows = [{"sentence1": a, "sentence2": b, "score": len(a) % 5} for a, b in pairwise(TEXTS[50:])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """What a command prints, on stdout and on stderr with its lines joined."""
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout, " ".join(re.sub("[│╭╮╰╯─]", " ", result.stderr).split())


def test_saves_the_model_that_the_function_makes(folder, corpus, tmp_path):
    out, err = run(folder, "--corpus", corpus, "--method", "va", "--size", 6, "--shrinkage", 0.1, "-o", tmp_path / "a")
    assert out == (
        f"{tmp_path / 'a'}: whiten, shrinkage 0.1, 16 numbers to 6, fitted on 50 texts; load it with --model "
        f"{tmp_path / 'a'}\n"
    )
    assert f"{corpus}: 1 row holds no usable text and was left out" in err
    expected = calibrate(load(folder, "va"), TEXTS[:50], size=6, shrinkage=0.1)
    assert_same_vectors(load(tmp_path / "a"), expected, TEXTS[:3], tolerance=WHITENED)


def test_fewer_texts_and_another_column(folder, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    out, err = run(
        folder, "--corpus", path, "--text-column", "body", "--texts", 9, "--kind", "pca", "-o", tmp_path / "a"
    )
    assert "pca, 32 numbers to 32, fitted on 9 texts" in out
    assert err == ""


def test_the_filter_needs_no_texts(tmp_path):
    out, err = run("--kind", "filter", "--size", 64, "-o", tmp_path / "a")
    assert "filter, 256 numbers to 64, from the language model head" in out
    assert err.startswith("note: the bundled model is a small one for demonstration")
    assert load(tmp_path / "a").get_embedding_dimension() == 64


def test_reports_on_several_methods(folder, corpus, pairs):
    out, err = run(folder, "--corpus", corpus, "--task", f"sts:{pairs}", "--methods", "va", "hidden_last@2")
    assert "the filter is left out" not in err
    assert [out.count(name) for name in ("Full width", "1/2 of the width", "1/8 of the width")] == [1, 1, 1]
    rows = [line.split() for line in out.splitlines() if line.startswith(("method ", "va ", "hidden_last@2 "))]
    assert len(rows) == 3 * len(PARTS)
    assert rows[0] == ["method", "size", "none", *CALIBRATIONS]
    assert [row[1] for row in rows if row[0] == "va"] == ["16", "8", "4", "2"]
    assert "Fitted on 50 unlabelled texts" in " ".join(out.split())


def test_reports_on_the_method_that_is_asked_for(folder, corpus, pairs):
    given = ("--corpus", corpus, "--task", f"sts:{pairs}", "--json")
    assert list(json.loads(run(folder, *given, "--method", "va")[0])["scores"]) == ["va"]
    with_layers = json.loads(run(folder, *given, "--method", "va", "--layers", "0")[0])["scores"]
    assert with_layers["va"] == json.loads(run(folder, *given, "--methods", "va@0")[0])["scores"]["va@0"]


def test_reports_on_every_method_by_default(folder, corpus, pairs, monkeypatch):
    asked = []

    def report(model, texts, task, methods, **more):
        asked.append(methods)
        return CalibrationReport("m", "f", 1, 1, "c", 0, 0.1, {}, {})

    monkeypatch.setattr("valuembed.analysis.report_calibration", report)
    given = (folder, "--corpus", corpus, "--task", f"sts:{pairs}", "--json")
    for more in ((), ("--method", "va"), ("--method", "va", "--methods", "wva", "echo")):
        run(*given, *more)
    assert asked == ["all", "va", ["wva", "echo"]]


def test_a_report_in_a_folder(folder, corpus, pairs, tmp_path):
    pytest.importorskip("matplotlib")
    given = ("--corpus", corpus, "--task", f"sts:{pairs}", "--methods", "va", "--report", tmp_path / "new")
    out, _ = run(folder, *given)
    names = ["calibration-small.png", "calibration.json", "calibration.md", "calibration.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'new'}: calibration.md, ")


def test_json_is_one_document(folder, corpus, pairs, tmp_path):
    save = ("--corpus", corpus, "--method", "va", "--kind", "centre", "--overwrite", "--json", "-o", tmp_path / "a")
    saved = json.loads(run(folder, *save)[0])["saved"]
    assert (saved["folder"], saved["kind"], saved["texts"]) == (str(tmp_path / "a"), "centre", 50)
    both = json.loads(run(folder, *save, "--task", f"sts:{pairs}")[0])
    assert (both["saved"], list(both["scores"])) == (saved, ["va"])


def test_a_model_that_cannot_be_saved_costs_no_report(folder, corpus, pairs, tmp_path):
    save = ("--corpus", corpus, "--method", "va", "--size", 99, "--json", "-o", tmp_path / "a")
    out, err = run(folder, *save, "--task", f"sts:{pairs}", code=1)
    assert list(json.loads(out)["scores"]) == ["va"]
    assert "error: size=99" in err


def test_reports_and_saves_in_one_go(folder, corpus, pairs, tmp_path):
    out, _ = run(folder, "--corpus", corpus, "--task", f"sts:{pairs}", "--method", "va", "-o", tmp_path / "a")
    assert out.index("Full width") < out.index("fitted on 50 texts; load it")
    assert load(tmp_path / "a").recipe.method == "va"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "Invalid value for --output: give -o DIR to save, --task sts:FILE for a report, or both"),
        (("-o", "a"), "Invalid value for --corpus: missing: give a file of texts"),
        (("--task", "sts:x", "--kind", "filter"), "Invalid value for --corpus: missing: give a file of texts"),
        (("-o", "a", "--methods", "va"), "Invalid value for --methods: belongs to --task; a model is saved with one"),
        (("-o", "a", "--report", "b"), "Invalid value for --report: belongs to --task sts:FILE, on which it reports"),
        (("-o", "a", "--size", "0"), "Invalid value for '--size': "),
        (("-o", "a", "--shrinkage", "2"), "Invalid value for '--shrinkage': "),
        (("-o", "a", "--texts", "1"), "Invalid value for '--texts': "),
    ],
)
def test_options_that_do_not_fit_together(folder, given, message):
    out, err = run(folder, *given, code=2)
    assert out == ""
    assert message in err


def test_errors_are_one_line(folder, corpus, pairs, tmp_path):
    save = ("--corpus", corpus, "-o", tmp_path / "a")
    for given, message in (
        ((folder, *save, "--kind", "svd"), "kind='svd' is unknown; legal: centre, whiten, pca, filter"),
        ((folder, *save, "--size", 99), "size=99 has to be a whole number from 1 to 32, the width of the vectors"),
        (
            (folder, "--corpus", tmp_path / "no.txt", "-o", tmp_path / "a"),
            f"input {tmp_path / 'no.txt'} does not exist",
        ),
        ((folder, "--corpus", corpus, "-o", tmp_path), f"output {tmp_path} holds no model of valuembed"),
        ((folder, "--corpus", corpus, "--task", "STS12"), "task 'STS12' cannot be reported on; give sts:FILE"),
        ((tmp_path / "none", *save), f"no folder '{tmp_path / 'none'}'"),
    ):
        (tmp_path / "mine").touch()  # so that the folder is not empty
        out, err = run(*given, "--overwrite", code=1)
        assert out == ""
        assert err.startswith(f"error: {message}")
    assert not (tmp_path / "a").exists()


def test_an_output_that_is_there_is_refused_before_any_work(folder, corpus, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    _, err = run("someone/none", "--corpus", corpus, "-o", tmp_path / "a", code=1)
    assert err == f"error: output {tmp_path / 'a'} exists and is not empty; choose another name or overwrite it"


def test_help_tells_the_defaults_of_the_function():
    shown, _ = run("--help")
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", shown).split())
    assert f"The default is {DEFAULT_SHRINKAGE:g}." in words
    assert f"The default is {MAX_TEXTS:,}." in words
    assert all(f"{kind}: " in words for kind in CALIBRATIONS)
