"""The benchmark of late chunking: its arithmetic by hand, and a whole run on the bundled decoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import late_chunking

        yield late_chunking


def test_a_sentence_is_taken_out_of_the_second_half(script):
    first = "The beginning of this text is one long sentence that fills all of its first half and a bit. "
    second = "In the middle stands the sentence that is taken out of it. "
    text = first + second + "Short. The last one stays."
    (found,) = script.clozes(["too short", text], 3, 100, 1000)
    assert found.query == second.strip()
    # The blank in front of a sentence goes with it.
    assert found.text == text.replace(f" {found.query}", "")
    assert found.place == len(first) - 1
    assert script.chunk_at([(0, 10), (10, 20)], 9) == 0
    assert script.chunk_at([(0, 10), (10, 20)], 10) == 1
    assert script.chunk_at([(0, 10), (10, 20)], 25) == 1


def test_scores(script):
    scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2]])
    # 0.5 is second to 0.9; 0.7 has an equal, which stands in front of it.
    assert script.ranks(scores, [2, 0]).tolist() == [2, 2]
    assert script.reciprocal(np.array([1, 2, 11])) == pytest.approx(50.0)
    # Chunks of two documents, two and one: the best of each.
    assert script.best_of(scores, [2, 1]).tolist() == [[0.9, 0.5], [0.7, 0.2]]
    # The one that is relevant comes second: 1 / log2(3) of what first would be; all of two are first.
    assert script.ndcg(scores[:1], [{2}]) == pytest.approx(100 / np.log2(3))
    assert script.ndcg(scores[:1], [{1, 2}]) == pytest.approx(100)


def test_cosines_without_their_mean(script):
    documents = np.array([[3.0, 0.0], [0.0, 5.0]])
    assert script.cosines(np.array([[2.0, 0.0]]), documents, False).tolist() == [[1.0, 0.0]]
    # The mean is (.5, .5): the documents are along (1, -1) and (-1, 1), and so is the query.
    np.testing.assert_allclose(script.cosines(np.array([[2.0, 0.0]]), documents, True), [[1.0, -1.0]])


def test_a_whole_run_goes_on(script, tmp_path, monkeypatch):
    body = (
        "Water runs over the stones of the river, and nobody hears it. A bird sits on the old roof and waits for rain. "
    )
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": f"Number {at}. " + body * 24}) for at in range(3)))
    rows = {
        "docs": [{"id": str(at), "text": f"the flow {at} around a wing . " * 12} for at in range(4)],
        "queries": [{"id": "7", "text": "flow 2 around a wing"}],
        "qrels": [{"query_id": "7", "doc_id": "2", "relevant": 1}, {"query_id": "7", "doc_id": "3", "relevant": 0}],
    }
    for name, of_name in rows.items():
        (tmp_path / f"Cranfield.{name}.jsonl").write_text("\n".join(map(json.dumps, of_name)))
    questions, texts, relevant = script.read_cranfield(tmp_path, 5, 3)
    assert (questions, relevant) == (["flow 2 around a wing"], [{0}])
    assert texts[0].startswith("the flow 2")
    assert len(texts) == 3
    out = tmp_path / "page.md"
    given = [
        "--model",
        "bundled",
        "--corpus",
        str(corpus),
        "--cranfield",
        str(tmp_path),
        "--keep",
        str(tmp_path / "kept"),
    ]
    monkeypatch.setattr("sys.argv", ["late_chunking.py", *given, "--long", "2", "--out", str(out)])
    monkeypatch.setattr(script, "METHODS", ("va",))
    script.main()
    page = out.read_text()
    assert "| va | late | centred |" in page
    assert "| va | tokens | cosine |" in page
    monkeypatch.setattr(script.valuembed, "load", None)
    script.main()
    assert out.read_text() == page
