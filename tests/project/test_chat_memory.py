"""The example of a chat with a memory, on a model with a chat template that is named on its command line."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from valuembed.testing import tiny_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat_memory.py"


@pytest.mark.slow
def test_each_question_is_answered_and_finds_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_checkpoint(tmp_path / "model", "qwen3", tokenizer="chat")
    monkeypatch.setattr(sys, "argv", ["chat_memory.py", "--model", str(folder)])
    values = runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    said = values["SAID"]
    assert [line[2:] for line in lines if line.startswith("> ")] == said
    turns = [one for one in said if not one.endswith("?")]
    assert list(values["memory"]) == turns
    found = [line.partition("): ")[2] for line in lines if line.startswith("  remembered (")]
    assert len(found) == 3
    assert set(found) <= set(turns)
