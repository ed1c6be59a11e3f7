"""What the commands pass on, print and write; the work itself is tested where it is done."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from light_commands import answers
from typer.testing import CliRunner

import valuembed.cli.reproduce  # noqa: F401
from valuembed.cli.framework import app
from valuembed.research.cost import CostReport, MethodCost

REPORT = CostReport("m", 4, "cpu", "float32", 1, 2, "x", "va", (MethodCost("va", 1, 3.0, 2, 1e9, (0.5,)),))


@pytest.fixture
def asked(monkeypatch):
    """Nothing is run; the list holds what was asked for."""
    calls = []

    def stand_in(name, answer):
        def verb(*args, **options):
            calls.append((name, args, options))
            return answer

        return verb

    answer = SimpleNamespace(to_markdown=lambda: "# Table\n", to_dict=lambda: {"a": 1}, evaluation=None)
    monkeypatch.setattr("valuembed.research.plan", stand_in("plan", answer))
    monkeypatch.setattr("valuembed.research.reproduce", stand_in("reproduce", answer))
    monkeypatch.setattr("valuembed.research.measure_cost", stand_in("cost", REPORT))
    return calls


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


@pytest.mark.process
def test_help_imports_nothing_heavy():
    heavy = ("torch", "mteb", "matplotlib", "numpy", "transformers")
    for answer in answers("valuembed.cli.reproduce", [["reproduce", "--help"], ["cost", "--help"]], heavy):
        assert (answer.code, answer.slow) == (0, [])


class TestReproduce:
    def test_defaults(self, asked):
        result = run("reproduce")
        assert (result.stdout, "bundled model is a small one" in result.stderr) == ("# Table\n", True)
        chosen = {"model": None, "local": None, "rows": [], "skip": [], "tasks": [], "output": None}
        options = {"trust_remote_code": False}
        assert asked == [("reproduce", ("bundled",), {**chosen, **options})]

    def test_everything(self, asked, tmp_path):
        arguments = ["--backbone", "llama-2-7b", "--model", "m/m", "--local", tmp_path, "-o", tmp_path / "out"]
        arguments += [
            "--rows",
            "va*,wva_lt",
            "--rows",
            "echo",
            "--skip",
            "va_half",
            "--tasks",
            "STS12",
            "STS13, SICK-R",
        ]
        result = run("reproduce", *arguments, "--dtype", "float32", "--max-tokens", 64, "--json")
        assert json.loads(result.stdout) == {"a": 1}
        assert result.stderr == ""
        chosen = {
            "model": "m/m",
            "local": tmp_path,
            "output": tmp_path / "out",
            "rows": ["va*", "wva_lt", "echo"],
            "skip": ["va_half"],
            "tasks": ["STS12", "STS13", "SICK-R"],
        }
        options = {"dtype": "float32", "max_tokens": 64, "trust_remote_code": False}
        assert asked == [("reproduce", ("llama-2-7b",), {**chosen, **options})]

    def test_dry_run(self, asked):
        result = run("reproduce", "--backbone", "qwen-3-8b", "--dry-run", "--tflops", "50")
        assert result.stdout == "# Table\n"
        (name, args, options), *more = asked
        assert (name, args, options["tflops"], more) == ("plan", ("qwen-3-8b",), 50.0, [])

    def test_a_failed_score_shows_in_the_exit_code(self, asked, monkeypatch):
        lost = SimpleNamespace(to_markdown=lambda: "# Table\n", evaluation=SimpleNamespace(failures=("one",)))
        monkeypatch.setattr("valuembed.research.reproduce", lambda *args, **options: lost)
        assert run("reproduce", code=1).stdout == "# Table\n"

    def test_recipes_are_the_files(self):
        result = run("reproduce", "--method", "va", code=2)
        assert "No such option" in result.stderr

    def test_error_in_one_line(self):
        result = run("reproduce", "--backbone", "llama", "--dry-run", code=1)
        assert result.stderr.splitlines() == [
            "error: backbone 'llama' is unknown; legal: llama-2-7b, qwen-3-8b, bundled, or a .json file"
        ]


class TestCost:
    def test_defaults(self, asked):
        result = run("cost")
        assert result.stdout == REPORT.to_markdown()
        more = {"corpus": None, "text_column": None, "count": 200, "rounds": 3, "output": None, "progress": True}
        assert asked == [("cost", ("bundled", "all"), {**more, "trust_remote_code": False})]

    def test_everything(self, asked, tmp_path):
        arguments = ["m/m", "--methods", "va@half", "wva:future_eol", "--corpus", "c.csv", "--text-column", "words"]
        arguments += ["--texts", 2, "--rounds", 5, "--device", "cpu", "-o", tmp_path / "out", "--json"]
        assert json.loads(run("cost", *arguments).stdout) == json.loads(json.dumps(REPORT.to_dict()))
        ((_, given, options),) = asked
        assert given == ("m/m", ["va@half", "wva:future_eol"])
        assert (options["corpus"].name, options["text_column"], options["count"]) == ("c.csv", "words", 2)
        assert (options["rounds"], options["device"], options["output"]) == (5, "cpu", tmp_path / "out")

    def test_error_in_one_line(self):
        assert "error: method 'vaa' is unknown; give one of va" in run("cost", "--methods", "vaa", code=1).stderr
