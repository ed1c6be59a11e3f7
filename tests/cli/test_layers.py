"""``sweep`` and ``select-layers`` parse, call one function, and print what it gives."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from light_commands import answers
from running import fails, succeeds
from some_texts import some_texts

import valuembed.cli.layers  # noqa: F401
from valuembed.analysis.held_out import Candidate, Selection
from valuembed.analysis.layer_sweep import Sweep
from valuembed.errors import InputError
from valuembed.models.multi_readout import SIGNALS
from valuembed.recipes.methods import METHODS, read_recipe

TEXTS = some_texts(60)


@pytest.fixture
def called(monkeypatch):
    """Both verbs are recorded in place of being run."""
    calls = []
    swept = Sweep(
        model="m",
        task="t",
        metric="accuracy x100",
        scores={"values raw": {0: 50.0, 1: 61.234}, "hidden last": {0: math.nan, 1: 7.0}},
        default={"values raw": 55.5},
        default_layers=(1,),
        template=("[bold]{text}",),
        details={},
    )
    chosen = Selection(
        model="m",
        recipe=METHODS["va"],
        chosen="all layers",
        reason="It holds up.",
        candidates=(
            Candidate("best window", (1,), {"MRR": (1.0, 2.0)}),
            Candidate("all layers", (0, 1), {"MRR": (3.0, 4.0)}),
        ),
        left_out={"second half": "gone"},
        data={"file": "f", "split": "dev", "unit": "pairs", "chosen_on": 1200, "held_out": 9, "halves": "by turns"},
        details={},
    )
    monkeypatch.setattr("valuembed.analysis.sweep", lambda *given, **more: calls.append((given, more)) or swept)
    monkeypatch.setattr(
        "valuembed.analysis.select_layers", lambda *given, **more: calls.append((given, more)) or chosen
    )
    return calls


class TestSweep:
    def test_prints_a_table(self, called, tmp_path):
        shown = succeeds("sweep", "--task", "sts:x.jsonl", "-o", tmp_path / "out").splitlines()
        assert [line.split() for line in shown[1:5]] == [
            ["layer", "values", "raw", "hidden", "last"],
            ["0", "50.00", "-"],
            ["1", "61.23", "7.00"],
            ["default", "55.50", "-"],
        ]
        # Brackets of a template are text, and no markup.
        assert shown[0] == "accuracy x100: m, t, template [bold]{text}"
        assert shown[5] == "default: of values, the mean over layer 1"
        assert shown[6] == "-: no score, for all similarities are equal there"
        assert shown[7] == f"{tmp_path / 'out'}: sweep.png, sweep.md, sweep.json"

    def test_passes_on_what_is_given(self, called, tmp_path):
        succeeds("sweep", "--task", "sts:x.jsonl")
        defaults = {"template": "none", "signals": tuple(SIGNALS), "output": None, "trust_remote_code": False}
        assert called.pop() == (("bundled", "sts:x.jsonl"), defaults)
        given = [
            "--template",
            "prompt_eol",
            "--signals",
            "values raw, hidden last",
            "-o",
            tmp_path,
            "--dtype",
            "float32",
        ]
        succeeds("sweep", "some/model", "--task", "Banking77", *given, "--max-tokens", 9, "--cleaning", "sentence")
        assert called.pop() == (
            ("some/model", "Banking77"),
            {
                **defaults,
                "template": "prompt_eol",
                "signals": ["values raw", "hidden last"],
                "output": tmp_path,
                "dtype": "float32",
                "max_tokens": 9,
                "cleaning": "sentence",
            },
        )

    def test_json(self, called):
        data = json.loads(succeeds("sweep", "--task", "t", "--json"))
        assert data["scores"]["hidden last"] == {"0": None, "1": 7.0}

    def test_takes_no_method_and_no_layers(self, called):
        for option in ("--method", "--layers"):
            assert f"No such option: {option}" in fails("sweep", "--task", "t", option, "va", code=2)

    def test_errors_are_one_line(self, folder):
        shown = fails("sweep", folder, "--task", "sts:none.jsonl")
        assert shown == "error: cannot read none.jsonl: No such file or directory; expected a JSON Lines file"


class TestSelectLayers:
    def test_prints_a_table(self, called):
        shown = succeeds("select-layers", "--dev", "sts:x.jsonl", "-o", "va.json").splitlines()
        assert [line.split() for line in shown[:4]] == [
            ["Layers", "for", "va", "on", "m", "(scores", "x100)"],
            ["layers", "MRR", "chosen", "on", "MRR", "held", "out"],
            ["best", "window", "1", "1.00", "2.00"],
            ["all", "layers", "0-1", "3.00", "4.00"],
        ]
        assert shown[4:] == [
            "f, split dev: 1,200 pairs to choose on, 9 held out (by turns)",
            "second half: left out, gone",
            "chosen: all layers, layers 0-1; MRR 4.00 held out. It holds up.",
            "va.json: written; use it with --method va.json",
        ]

    def test_a_folder_is_used_as_a_model(self, called):
        assert succeeds("select-layers", "--corpus", "x.txt", "-o", "made").endswith("use it with --model made\n")

    def test_passes_on_what_is_given(self, called):
        succeeds("select-layers", "--dev", "sts:x.jsonl")
        nothing = {"split": None, "text_column": None, "output": None, "overwrite": False}
        shared = {"template": "auto", "trust_remote_code": False}
        assert called.pop() == (("bundled",), {"dev": "sts:x.jsonl", "corpus": None, **nothing, **shared})
        given = ["--method", "wva", "--segments", 40, "--text-column", "body", "-o", "va.json", "--overwrite"]
        succeeds("select-layers", "some/model", "--corpus", "docs.csv", *given)
        expected = {
            "text_column": "body",
            "output": Path("va.json"),
            "overwrite": True,
            "segments": 40,
            "method": "wva",
        }
        data = {"dev": None, "corpus": Path("docs.csv")}
        assert called.pop() == (("some/model",), {**nothing, **shared, **data, **expected})

    def test_json(self, called):
        assert json.loads(succeeds("select-layers", "--corpus", "x.txt", "--json"))["chosen"] == "all layers"

    @pytest.mark.parametrize("given", [[], ["--dev", "sts:a", "--corpus", "b"]])
    def test_one_kind_of_data(self, called, given):
        assert "give one of --dev sts:FILE and --corpus FILE" in fails("select-layers", *given, code=2)
        assert called == []

    def test_errors_are_one_line(self, monkeypatch):
        def refuse(*given, **more):
            raise InputError("no such thing")

        monkeypatch.setattr("valuembed.analysis.select_layers", refuse)
        assert fails("select-layers", "some/model", "--corpus", "x.txt") == "error: no such thing"


def test_from_file_to_choice_to_use(folder, tmp_path):
    pairs = tmp_path / "dev.jsonl"
    rows = [{"sentence1": TEXTS[i], "sentence2": TEXTS[30 + i], "score": (7 * i) % 11} for i in range(30)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = succeeds("sweep", folder, "--task", f"sts:{pairs}", "--signals", "values raw")
    assert [line.split()[0] for line in shown.splitlines()[1:-1]] == ["layer", "0", "1", "2", "3", "default"]
    output = tmp_path / "va.json"
    shown = succeeds("select-layers", folder, "--method", "va", "--dev", f"sts:{pairs}", "-o", output)
    assert f"{output}: written" in shown
    layers = read_recipe(output).layers
    again = succeeds("sweep", folder, "--task", f"sts:{pairs}", "--json")
    assert json.loads(again)["best"].keys() == SIGNALS.keys()
    assert layers
    assert set(layers) <= {0, 1, 2, 3}


@pytest.mark.process
def test_help_imports_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "matplotlib", "mteb")
    commands = [["sweep", "--help"], ["select-layers", "--help"]]
    for answer in answers("valuembed.cli.layers", commands, heavy):
        assert answer.slow == []
        assert "--task" in answer.output or "--corpus" in answer.output
