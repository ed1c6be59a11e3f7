"""``train`` parses, calls one function, and prints what it gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from running import run

import valuembed.cli.train  # noqa: F401
from valuembed.cli.output import DEMONSTRATION_NOTE
from valuembed.errors import InputError

DEFAULTS = {
    "output": Path("out"),
    "columns": None,
    "evaluation": None,
    "prompts": {},
    "merged": False,
    "overwrite": False,
    "scope": "attention",
    "rank": 16,
    "epochs": 1.0,
    "steps": None,
    "batch_size": 64,
    "mini_batch": None,
    "learning_rate": 5e-4,
    "temperature": 0.05,
    "dropout": 0.0,
    "matryoshka": (),
    "seed": 0,
    "save_every": None,
    "eval_every": None,
    "checkpointing": False,
    "template": "auto",
    "trust_remote_code": False,
}


RECORD = {"steps": 3, "losses": [[1, 2.5], [2, 1.25]]}


class Made:
    record = RECORD

    def rows(self):
        return [("trained", "1,024 parameters, 0.50% of all"), ("loss", "2.5000 -> 1.2500")]


@pytest.fixture
def called(monkeypatch):
    calls = []
    monkeypatch.setattr("valuembed.training.train", lambda *given, **more: calls.append((given, more)) or Made())
    return calls


def test_hands_its_options_on_and_prints_what_was_done(called):
    result = run("train", "bundled", "--pairs", "p.jsonl", "-o", "out")
    assert result.exit_code == 0, result.output
    assert called.pop() == (("bundled", Path("p.jsonl"), None), DEFAULTS)
    assert result.stderr == DEMONSTRATION_NOTE + "\n"
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "trained 1,024 parameters, 0.50% of all",
        "loss 2.5000 -> 1.2500",
        "out: load it with --model out",
    ]


def test_every_option_arrives(called):
    options = {
        "--method": "hidden_mean", "--layers": "half", "--dtype": "bfloat16", "--eval": "sts:x.jsonl", "--scope": "all",
        "--rank": 4, "--epochs": 0.5, "--steps": 7, "--batch-size": 8, "--mini-batch": 2, "--learning-rate": 0.01,
        "--temperature": 0.1, "--dropout": 0.2, "--query-prompt": "Q: ", "--document-prompt": "D: ", "--seed": 3,
        "--save-every": 5, "--eval-every": 6,
    }  # fmt: skip
    lists = ["--columns", "a", "b", "--matryoshka", "64", "32"]
    flags = ["--merged", "--overwrite", "--checkpointing"]
    given = [part for pair in options.items() for part in pair]
    result = run("train", "m", "--pairs", "p.csv", "-o", "out", *given, *lists, *flags)
    assert result.exit_code == 0, result.output
    assert called.pop() == (
        ("m", Path("p.csv"), "hidden_mean"),
        {
            **DEFAULTS, "layers": "half", "dtype": "bfloat16", "evaluation": "sts:x.jsonl", "scope": "all", "rank": 4,
            "epochs": 0.5, "steps": 7, "batch_size": 8, "mini_batch": 2, "learning_rate": 0.01, "temperature": 0.1,
            "dropout": 0.2, "prompts": {"query": "Q: ", "document": "D: "}, "seed": 3, "save_every": 5,
            "eval_every": 6, "columns": ["a", "b"], "matryoshka": (64, 32), "merged": True, "overwrite": True,
            "checkpointing": True,
        },
    )  # fmt: skip


def test_json(called):
    result = run("train", "m", "--pairs", "p.csv", "-o", "out", "--json")
    assert json.loads(result.stdout) == RECORD


def test_only_the_first_of_several_processes_prints(called, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    result = run("train", "bundled", "--pairs", "p.jsonl", "-o", "out")
    assert (result.exit_code, result.stdout, result.stderr, len(called)) == (0, "", "", 1)


def test_errors_are_one_line(monkeypatch):
    def broken(*_, **__):
        raise InputError("no pairs")

    monkeypatch.setattr("valuembed.training.train", broken)
    result = run("train", "m", "--pairs", "p.csv", "-o", "out")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: no pairs\n")


@pytest.mark.parametrize("missing", [["--pairs", "p.csv"], ["-o", "out"]])
def test_pairs_and_output_have_to_be_given(missing):
    result = run("train", "m", *missing)
    assert result.exit_code == 2
    assert "Missing option '--" in result.stderr


def test_defaults_are_those_of_the_settings():
    from valuembed.training.settings import TrainSettings

    settings = vars(TrainSettings())
    assert {name: value for name, value in DEFAULTS.items() if name in settings} == {
        name: value for name, value in settings.items() if name != "warmup"
    }
