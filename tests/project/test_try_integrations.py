"""The script that runs the examples for other packages: it knows each example and its test, and its record."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "try_integrations.py"))


def test_every_example_and_every_test_is_known(script):
    known = script["INTEGRATIONS"]
    assert sorted(one.example for one in known) == sorted(path.name for path in (ROOT / "examples").glob("from_*.py"))
    tests = (ROOT / "tests" / "project" / "test_integrations.py").read_text(encoding="utf-8")
    assert [one.test for one in known if f"\ndef {one.test}(" not in tests] == []


def test_the_record_names_every_package(script):
    record = (ROOT / "benchmarks" / "integrations.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    for one in script["INTEGRATIONS"]:
        assert f"| {one.name} | {one.packages[0]} " in record
        assert f"| {one.name} | " in page


def test_an_unknown_name_is_said_before_anything_is_made(script, capsys):
    with pytest.raises(SystemExit):
        script["main"](["Nothing"])
    assert "'Nothing' is unknown; legal: LangChain, LlamaIndex," in capsys.readouterr().err
