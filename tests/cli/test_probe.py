"""``probe segments`` and ``probe next-token`` parse, call one function, and print what it gives."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

import pytest
from light_commands import answers
from running import fails, succeeds

import valuembed.cli.probe  # noqa: F401
from valuembed.errors import InputError
from valuembed.research import probe_next_token, probe_segments
from valuembed.research.segment_probe import LayerProbe

FOUND = LayerProbe(
    name="segments",
    heading="Segment matching",
    model="m",
    corpus="[bold]c.txt",
    num_layers=2,
    metrics=("accuracy@1 (%)", "MRR x100"),
    scores={"values raw": {0: (50.0, 61.234), 1: (40.0, 70.0)}, "hidden mean": {0: (10.0, 20.0)}},
    final={"hidden mean": (31.0, 39.0)},
    baselines={"chance": (0.5, 2.0)},
    notes=("Said below.",),
    details={"seconds": 1},
)


@pytest.fixture
def called(monkeypatch):
    """Both verbs are recorded in place of being run."""
    calls = []

    def verb(model, corpus, **options):
        calls.append((model, corpus, options))
        if str(corpus) == "bad.txt":
            raise InputError("a corpus of [nothing]")
        return FOUND

    monkeypatch.setattr("valuembed.research.probe_segments", verb)
    monkeypatch.setattr("valuembed.research.probe_next_token", verb)
    return calls


def test_table(called):
    lines = succeeds("probe", "segments", "--corpus", "c.txt").splitlines()
    assert lines[0].strip() == "Segment matching, accuracy@1 (%) / MRR x100: m on [bold]c.txt"
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:]]
    assert cells == [
        ["layer", "values raw", "hidden mean"],
        ["0", "50.00 / 61.23", "10.00 / 20.00"],
        ["1", "40.00 / 70.00", "-"],
        ["final norm", "-", "31.00 / 39.00"],
        ["chance", "0.50 / 2.00", "0.50 / 2.00"],
        ["Said below."],
        ["-: the layer does not have this signal, or was not reached"],
    ]


@pytest.mark.parametrize(
    ("command", "defaults", "given"),
    [
        ("segments", {"tokens": 128, "segments": 2000}, {"tokens": 64, "segments": 10}),
        ("next-token", {"positions": 20_000, "width": 256}, {"positions": 5000, "width": 64}),
    ],
)
def test_options_reach_the_function(called, command, defaults, given):
    succeeds("probe", command, "--corpus", "c.txt")
    shared = {"layers": None, "text_column": None, "output": None}
    assert called.pop() == ("bundled", Path("c.txt"), {**shared, **defaults, "trust_remote_code": False})
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    options += ["--layers", "0:2", "--text-column", "body", "-o", "out", "--device", "cpu", "--max-tokens", 99]
    shown = succeeds("probe", command, "some/model", "--corpus", "c.txt", *options)
    assert shown.endswith("out: segments.png, segments.md, segments.json\n")
    shared = {"layers": "0:2", "text_column": "body", "output": Path("out")}
    model = {"device": "cpu", "max_tokens": 99, "trust_remote_code": False}
    assert called.pop() == ("some/model", Path("c.txt"), {**shared, **given, **model})


@pytest.mark.parametrize("command", ["segments", "next-token"])
def test_json(called, command):
    made = json.loads(succeeds("probe", command, "--corpus", "c.txt", "--json"))
    assert made["scores"]["values raw"] == {"0": [50.0, 61.234], "1": [40.0, 70.0]}
    assert made["details"] == {"seconds": 1}


@pytest.mark.parametrize("command", ["segments", "next-token"])
def test_errors_are_one_line(called, command):
    assert fails("probe", command, "m", "--corpus", "bad.txt") == "error: a corpus of [nothing]"


@pytest.mark.parametrize("command", ["segments", "next-token"])
def test_the_corpus_is_needed_and_what_decides_nothing_is_not_taken(command):
    assert "Missing option '--corpus'" in fails("probe", command, code=2)
    for option in ("--method", "--template", "--cleaning"):
        assert f"No such option: {option}" in fails("probe", command, "--corpus", "c.txt", option, "x", code=2)


def test_defaults_are_those_of_the_functions():
    for function in (probe_segments, probe_next_token):
        defaults = {name: one.default for name, one in signature(function).parameters.items()}
        shown = succeeds("probe", "segments" if "tokens" in defaults else "next-token", "--help")
        for name in {"tokens", "segments", "positions", "width"} & defaults.keys():
            assert f"[default: {defaults[name]}]" in shown.replace("\n", " ")


def test_end_to_end(folder, tmp_path):
    (tmp_path / "c.txt").write_text("the sun rose over a quiet town while nobody watched and rain fell again\n" * 2)
    shown = succeeds("probe", "segments", folder, "--corpus", tmp_path / "c.txt", "--tokens", 8, "--layers", "1")
    assert "Segment matching" in shown
    message = fails("probe", "segments", folder, "--corpus", tmp_path / "c.txt", "--tokens", 500)
    assert "error: none of 2 documents has two segments of 500 tokens: 1,000 tokens are needed" in message


@pytest.mark.process
def test_help_imports_nothing_heavy():
    heavy = ("torch", "transformers", "sentence_transformers", "matplotlib", "numpy")
    for answer in answers(
        "valuembed.cli.probe", [["probe", "--help"], ["probe", "segments", "--help"], ["probe"]], heavy
    ):
        assert answer.output
        assert answer.slow == []
