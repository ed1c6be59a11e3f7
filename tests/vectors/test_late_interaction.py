"""MaxSim by hand, in portions, and in a table with several vectors a row."""

import numpy as np
import pytest
import torch

from valuembed.errors import InputError
from valuembed.vectors import late_interaction, maxsim, maxsim_pairwise

QUERIES = [[[1.0, 0.0], [0.0, 2.0]], [[3.0, 4.0]]]
DOCUMENTS = [[[2.0, 0.0]], [[0.0, 1.0], [3.0, 4.0]], [[-1.0, 0.0]]]
# As unit vectors the queries are (1, 0), (0, 1) and (.6, .8); the documents (1, 0); (0, 1), (.6, .8); (-1, 0).
# Query 0: 1 + 0; max(0, .6) + max(1, .8); -1 + 0. Query 1: .6; max(.8, 1); -.6.
EXPECTED = [[1.0, 1.6, -1.0], [0.6, 1.0, -0.6]]
# As they are: 2 + 0; max(0, 3) + max(2, 8); -1 + 0. 6; max(4, 25); -3.
RAW = [[2.0, 11.0, -1.0], [6.0, 25.0, -3.0]]


def arrays(texts):
    return [np.array(tokens, np.float32) for tokens in texts]


@pytest.mark.parametrize("most", [1, 4, 10**6])
@pytest.mark.parametrize("kind", [list, arrays, lambda texts: list(map(torch.tensor, texts))])
def test_the_best_of_each_token_added_up(kind, most, monkeypatch):
    monkeypatch.setattr(late_interaction, "MOST_SCORES", most)
    monkeypatch.setattr(late_interaction, "TOKENS_OF_QUERIES", most)
    found = maxsim(kind(QUERIES), kind(DOCUMENTS))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    np.testing.assert_allclose(maxsim(kind(QUERIES), kind(DOCUMENTS), normalize=False), RAW)
    np.testing.assert_allclose(maxsim_pairwise(kind(QUERIES), kind(DOCUMENTS[:2])), [1.0, 1.0], atol=1e-6)


def test_none_at_all():
    assert maxsim([], arrays(DOCUMENTS)).shape == (0, 3)
    assert maxsim(arrays(QUERIES), []).shape == (2, 0)
    assert maxsim_pairwise([], []).shape == (0,)


def test_refused():
    with pytest.raises(InputError, match=r"^queries are one array of two dimensions; give a list with the vectors of"):
        maxsim(np.ones((2, 3)), arrays(DOCUMENTS))
    with pytest.raises(InputError, match=r"^documents: text 1 has token vectors of shape \(0, 2\); give"):
        maxsim(arrays(QUERIES), [np.ones((1, 2)), np.ones((0, 2))])
    with pytest.raises(InputError, match=r"^queries: text 0 has token vectors of shape \(0,\)"):
        maxsim(["text"], arrays(DOCUMENTS))
    with pytest.raises(InputError, match=r"^token vectors are 2 and 3 wide; those of one model have one width$"):
        maxsim(arrays(QUERIES), [np.ones((1, 3))])
    with pytest.raises(InputError, match=r"^2 queries for 3 documents; pairs need as many of both$"):
        maxsim_pairwise(arrays(QUERIES), arrays(DOCUMENTS))


def test_a_table_of_lancedb_scores_alike(tmp_path):
    lancedb = pytest.importorskip("lancedb")
    pa = pytest.importorskip("pyarrow")
    kind = pa.list_(pa.list_(pa.float32(), 2))
    table = pa.table({"id": [0, 1, 2], "vector": pa.array(DOCUMENTS, kind)})
    made = lancedb.connect(tmp_path).create_table("tokens", table)
    hits = made.search(np.array(QUERIES[0], np.float32)).distance_type("cosine").limit(3).to_list()
    assert [hit["id"] for hit in hits] == list(np.argsort(-maxsim(QUERIES, DOCUMENTS)[0]))
