"""``valuembed evaluate``: what is parsed, what is called, what is printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from valuembed.cli import evaluate as cli_evaluate
from valuembed.cli.framework import app
from valuembed.errors import InputError
from valuembed.evaluation.results import Evaluation, Failure, Score
from valuembed.recipes.methods import METHODS

TASKS = {"pairs": "sts", "groups": "clustering"}


def score(method, task, value, **more):
    about = {"name": task, "kind": TASKS[task], "metric": "m", "layers": "6-7", "width": 128, "texts": 10, "tokens": 99}
    given = {**about, "truncated": 0, "seconds": 1.0, "reused": False, **more}
    return Score(method=method, task=task, score=value, **given)


SCORES = (
    score("va", "pairs", 52.468, truncated=3),
    score("va", "groups", 20.0),
    score("wva", "pairs", 58.41, reused=True, truncated=3),
    score("wva", "groups", 10.0),
)
RECIPES = {method: replace(METHODS[method], layers=(6, 7)) for method in ("va", "wva")}


@pytest.fixture
def called(monkeypatch):
    """``evaluate`` is a fake; it gives ``called.gives`` and notes its arguments."""
    pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")

    class Fake:
        gives = Evaluation("bundled", RECIPES, TASKS, SCORES)
        arguments = None

        def __call__(self, *arguments, **options):
            self.arguments = (arguments, options)
            if isinstance(self.gives, Exception):
                raise self.gives
            return self.gives

    fake = Fake()
    monkeypatch.setattr("valuembed.evaluation.evaluate", fake)
    return fake


def run(*arguments, columns=100):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": str(columns)})


class TestArguments:
    def test_several_values_after_one_option(self, called):
        assert (
            run("tiny", "--methods", "va", "wva@half", "--tasks", "sts:a", "retrieval:a,b,c", "-o", "out").exit_code
            == 0
        )
        (model, methods, tasks), options = called.arguments
        assert (model, methods, tasks) == ("tiny", ["va", "wva@half"], ["sts:a", "retrieval:a,b,c"])
        assert (str(options.pop("output")), options) == ("out", {"template": "auto", "trust_remote_code": False})

    def test_the_option_may_be_repeated(self, called):
        run("--methods", "va", "--methods", "wva", "--tasks", "a", "--json", "--tasks", "b")
        assert called.arguments[0] == ("bundled", ["va", "wva"], ["a", "b"])

    def test_shared_options(self, called):
        run(
            "tiny",
            "--tasks",
            "a",
            "--layers",
            "half",
            "--template",
            "echo",
            "--cleaning",
            "sentence",
            "--max-tokens",
            9,
        )
        (model, methods, tasks), options = called.arguments
        assert (model, methods, tasks) == ("tiny", None, ["a"])
        expected = {"layers": "half", "template": "echo", "cleaning": "sentence", "max_tokens": 9}
        assert {name: options[name] for name in expected} == expected

    def test_a_template_may_hold_spaces(self, called):
        run("--methods", 'wva:Say "{text}" in one word:"', "va", "--tasks", "a")
        assert called.arguments[0][1] == ['wva:Say "{text}" in one word:"', "va"]

    def test_an_option_without_a_value(self, called):
        for arguments in (["--tasks", "a", "--methods"], ["--methods", "--tasks", "a"]):
            result = run(*arguments)
            assert result.exit_code == 2
            assert "Option '--methods' requires one value or more." in result.stderr
        assert called.arguments is None

    def test_help_names_methods_and_tasks(self):
        text = run("--help").stdout
        assert all(name in text for name in METHODS)
        assert "sts:FILE" in text
        assert "--method " not in text


class TestPrinting:
    def test_table_in_percent(self, called):
        result = run("--tasks", "a")
        rows = [line.split() for line in result.stdout.splitlines()]
        assert rows == [
            ["method", "layers", "width", "pairs", "groups", "mean"],
            ["va", "6-7", "128", "52.47", "20.00", "36.23"],
            ["wva", "6-7", "128", "58.41", "10.00", "34.20"],
            ["pairs:", "3", "of", "10", "texts", "were", "cut", "to", "the", "model's", "limit", "for", "va,", "wva"],
        ]
        assert result.exit_code == 0

    def test_best_of_each_column_is_bold(self, called, monkeypatch):
        from rich.console import Console

        terminal = Console(force_terminal=True, color_system="standard", width=100)
        monkeypatch.setattr(cli_evaluate, "out", lambda: terminal)
        with terminal.capture() as printed:
            cli_evaluate._show(called.gives)
        assert re.findall(r"\x1b\[1m *([\d.]+)", printed.get()) == ["20.00", "36.23", "58.41"]

    def test_says_where_results_lie(self, called, tmp_path):
        last = run("--tasks", "a", "-o", tmp_path, columns=300).stdout.splitlines()[-1]
        assert last == f"{tmp_path}: results.md, results.png and mteb's JSON; 3 scores computed, 1 was there"

    def test_a_narrow_terminal_loses_nothing(self, called):
        text = run("--tasks", "a", columns=20).stdout
        assert all(part in text for part in ("wva", "6-7", "128", "58.41", "34.20"))

    def test_json(self, called):
        assert json.loads(run("--tasks", "a", "--json").stdout) == json.loads(json.dumps(called.gives.to_dict()))

    def test_a_failure_leaves_a_gap_and_an_exit_code(self, called):
        called.gives = Evaluation("tiny", RECIPES, TASKS, SCORES[:3], (Failure("wva", "groups", "boom"),))
        result = run("--tasks", "a")
        assert result.exit_code == 1
        assert ["wva", "6-7", "128", "58.41", "-", "-"] in [line.split() for line in result.stdout.splitlines()]
        assert run("--tasks", "a", "--json").exit_code == 1

    def test_an_error_is_one_line(self, called):
        called.gives = InputError("no task to evaluate on")
        result = run("tiny")
        assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: no task to evaluate on\n")


def test_from_file_to_table(folder, tmp_path):
    pytest.importorskip("mteb", reason="mteb is not installed; it needs Python 3.11 or newer")
    rows = [("The cat sat.", "A cat sat down.", 5), ("Rain fell.", "It was dry.", 1), ("One.", "Two.", 2)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in rows))
    result = run(folder, "--methods", "va", "prompt_eol", "--tasks", f"sts:{path}")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["method", "va", "prompt_eol"]
    assert result.stderr == ""


@pytest.mark.process
def test_importing_is_light():
    check = "import sys, valuembed.cli.evaluate; print([m for m in ('torch', 'mteb', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
