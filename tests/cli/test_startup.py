"""What is wrong in a command's names is said before anything slow is imported, by every command."""

from pathlib import Path

import pytest
from light_commands import Answer, answers

SLOW = ("torch", "transformers", "sentence_transformers", "mteb", "lancedb")

# Each is refused for the last of its arguments.
WRONG = [
    ["info", "./nowhere"],
    ["info", "--method", "vaa"],
    ["info", "--template", "prompt_eo"],
    ["info", "--layers", "40"],
    ["info", "--device", "cuda"],
    ["info", "--device", "cdua"],
    ["info", "--dtype", "int3"],
    ["similarity", "a", "b", "--model", "./nowhere"],
    ["similarity", "a", "b", "--layers", "10,40"],
    ["similarity", "a", "b", "--cleaning", "soap"],
    ["explain", "a", "--method", "vaa"],
    ["embed", "texts.txt", "-o", "texts.parquet", "--device", "cuda:7"],
    ["embed", "texts.txt", "-o", "folder", "--model", "folder-without-model"],
    ["search", "a", "--in", "x.parquet", "--method", "vaa"],
    ["evaluate", "./nowhere", "--tasks", "sts:x.jsonl"],
    ["evaluate", "bundled", "--tasks", "sts:x.jsonl", "--device", "gpu"],
    ["sweep", "bundled", "--task", "sts:x.jsonl", "--template", "{txt}"],
    ["select-layers", "bundled", "--dev", "sts:x.jsonl", "--method", "vaa"],
    ["calibrate", "bundled", "--corpus", "texts.txt", "-o", "out", "--layers", "nine"],
    ["probe", "segments", "./nowhere", "--corpus", "texts.txt"],
    ["cost", "./nowhere"],
    ["train", "bundled", "--pairs", "x.jsonl", "-o", "out", "--dtype", "int3"],
    ["serve", "--model", "./nowhere"],
]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each of the commands answers, all of them in one process."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "texts.txt").write_text("A text.\n")
    (folder / "folder-without-model").mkdir()
    found = answers("valuembed.cli.main", WRONG, SLOW, cwd=folder)
    return dict(zip(map(" ".join, WRONG), found, strict=True))


@pytest.mark.process
@pytest.mark.parametrize("args", WRONG, ids=" ".join)
def test_a_wrong_name_is_said_at_once(args, answered):
    code, output, exception, slow = answered[" ".join(args)]
    assert code == 1, output
    assert exception == "SystemExit(1)"
    (line,) = output.splitlines()
    assert line.startswith("error: ")
    assert args[-1].removeprefix("./") in line or repr(args[-1]) in line or "nowhere" in line
    assert slow == [], "imported before the name was checked"
    assert not Path("out").exists()
