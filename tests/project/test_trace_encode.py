"""The way of a text through the package is short, and nothing on it is done twice."""

from __future__ import annotations

import runpy

import pytest
from trace_encode import PACKAGE, encode_trace

pytestmark = pytest.mark.slow

MOST_MODULES = 10
"""From the call to the vector, beside what is only asked and helpers of every room; the last aligns, which vectors from
caches need as well."""


@pytest.fixture(scope="module", params=["va", "aligned_wva", "meta_eol"])
def traced(request, folder):
    return encode_trace(str(folder), request.param, 40)


def test_few_modules_from_a_text_to_its_vector(traced):
    way = traced.way()
    assert way[0] == "models/encoder.py"
    assert len(way) <= MOST_MODULES, way
    # Tokenized, scheduled, laid out, read out: each file is entered after the one before.
    stages = ["tokenization/tokenizer.py", "execution/scheduler.py", "readout/layout.py", "readout/pooling.py"]
    assert [name for name in way if name in stages] == stages


def test_planned_once_and_padded_once(traced):
    done = {(name, function.rpartition(".")[2]): times for (name, function), times in traced.functions.items()}
    passes = done["readout/readout.py", "run"]
    assert passes > 0
    assert done["execution/scheduler.py", "schedule"] == 1
    assert done["execution/scheduler.py", "plan_steps"] == 1
    assert done["readout/layout.py", "lay_out"] == done["readout/layout.py", "pad_right"] == passes


def test_the_script_prints_them(monkeypatch, capsys):
    script = str(PACKAGE.parents[1] / "scripts" / "trace_encode.py")
    monkeypatch.setattr("sys.argv", [script, "--texts", "9"])
    runpy.run_path(script, run_name="__main__")
    said = capsys.readouterr().out
    assert "models/encoder.py" in said.splitlines()[0]
    assert "asked on the way: " in said
