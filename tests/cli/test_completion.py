"""What a shell offers while a command is typed."""

import pytest
from typer.testing import CliRunner

from valuembed.cli import main as cli
from valuembed.cli.completion import models
from valuembed.recipes.methods import METHODS


def offered(*words):
    """What bash offers for the last word."""
    environment = {"_VALUEMBED_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("valuembed", *words))}
    environment["COMP_CWORD"] = str(len(words))
    result = CliRunner().invoke(cli.app, [], prog_name="valuembed", env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    (tmp_path / "models--Qwen--Qwen3-0.6B").mkdir()
    (tmp_path / "models--gpt2").mkdir()
    (tmp_path / "datasets--mteb--sts").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


def test_models_are_those_that_are_there(cache, monkeypatch, tmp_path):
    assert models("") == ["bundled", "Qwen/Qwen3-0.6B", "gpt2"]
    assert models("Q") == ["Qwen/Qwen3-0.6B"]
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert models("") == ["bundled"]


def test_a_bash_is_offered(cache):
    assert offered("sea") == ["search"]
    assert offered("similarity", "a", "b", "--method", "aligned") == ["aligned_va", "aligned_wva"]
    assert offered("embed", "--model", "b") == ["bundled"]
    assert offered("evaluate", "Q") == ["Qwen/Qwen3-0.6B"]
    assert offered("embed", "--template", "meta") == ["meta_eol"]
    assert offered("calibrate", "--kind", "w") == ["whiten"]


def test_options_that_are_repeated(cache):
    assert offered("evaluate", "bundled", "--methods", "") == [*METHODS, "all"]
    assert offered("evaluate", "bundled", "--methods", "va", "w") == ["wva"]
    assert "--methods" in offered("evaluate", "bundled", "--methods", "va", "--")
    assert offered("evaluate", "bundled", "--tasks", "s") == ["sts:"]


def test_the_program_installs_and_shows_it():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown
