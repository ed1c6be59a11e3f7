"""The benchmark of long texts: its arithmetic by hand, and a whole run on a tiny decoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from valuembed.testing import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.process]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        patch.setenv("HF_HUB_OFFLINE", "1")
        import long_texts

        yield long_texts


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "llama", max_position_embeddings=128)


def test_rows_of_a_length(script):
    cells = {
        "VA": script.Cell([2.0, 1.0, None], 12.4),
        script.STOCK: script.Cell([3.0, 2.5, 9.0], 30.0),
        script.STOCK_CUT: script.Cell([None] * 3, stopped=True),
    }
    # 3 / 2 and 2.5 / 1 in the rounds of both; 512 tokens in the median of 1.5 s.
    assert script.rows_of(512, cells, 60) == [
        ["512", "VA", "1.50 (1.00-2.00)", "341", "12", "2.00 (1.50-2.50)", "-"],
        ["512", script.STOCK, "3.00 (2.50-9.00)", "171", "30", "-", "-"],
        ["512", script.STOCK_CUT, "more than 60", "-", "-", "-", "-"],
    ]


def test_lengths_and_texts(script, decoder, tmp_path):
    assert script.lengths_of(decoder, [64, 128, 129]) == [64, 128]
    file = tmp_path / "text.txt"
    file.write_text("A short text.", encoding="utf-8")
    count = script.AutoTokenizer.from_pretrained(decoder)
    for source in (file, None):
        text = script.text_of(decoder, 100, source)
        assert len(count(text)["input_ids"]) >= 100
    assert script.text_of(decoder, 100, file).startswith("A short text. A short text.")


def test_a_run(script, decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "HERE", tmp_path)
    only = ["VA", script.STOCK]
    script.main(["--model", str(decoder), "--tokens", "64", "999", "--rounds", "1", "--threads", "1", "--only", *only])
    page = (tmp_path / "long_texts.md").read_text(encoding="utf-8")
    assert "`python benchmarks/long_texts.py --model DIR/tiny --tokens 64 999 --rounds 1 --dtype float32`" in page
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| 64")]
    assert rows == [["| 64", "VA"], ["| 64", script.STOCK]]
    assert "999 |" not in page
