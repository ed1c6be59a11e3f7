"""Centred search: the mean of all rows is taken from both sides, in files and indexes, and stored vectors stay."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeEncoder
from stored import write_embeddings

from valuembed.errors import InputError
from valuembed.models.calibration import fit_whitening
from valuembed.search.centre import LEAST_ROWS, MEAN, SHRINKAGE, Centre, recorded_centre
from valuembed.search.exact import search
from valuembed.search.index import CENTRED_CANDIDATES, Index, build_index
from valuembed.search.vector_store import Table
from valuembed.vectors import KEY

QUERY = "hello world"


def words(count: int, seed: int = 0) -> list[str]:
    letters = np.random.default_rng(seed).integers(97, 123, (count, 12))
    return ["".join(map(chr, row)) for row in letters]


TEXTS = words(LEAST_ROWS + 60)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def centred(texts: list[str], query: str = QUERY, rows: list[str] | None = None) -> np.ndarray:
    """Cosines of texts with a query without the mean of rows, in float64."""
    mean = unit(FakeEncoder().encode(rows or texts).astype(np.float64)).mean(axis=0)
    vectors, asked = (unit(FakeEncoder().encode(one).astype(np.float64)) - mean for one in (texts, [query]))
    return unit(vectors) @ unit(asked)[0]


def plain(texts: list[str]) -> np.ndarray:
    return unit(FakeEncoder().encode(texts).astype(np.float64)) @ unit(FakeEncoder().encode([QUERY])[0])


def test_by_hand():
    # The mean of (1, 0), (0, 1) and (1, 0) is (2, 1) / 3; (1, 0) without it is (1, -1) / 3, (0, 1) is (-2, 2) / 3.
    rows = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    centre = Centre.of([rows[:2], rows[2:]])
    assert centre is not None
    assert centre.rows == 3
    np.testing.assert_allclose(centre.mean, [2 / 3, 1 / 3], rtol=1e-6)
    query = centre.of_query(np.array([0, 1], np.float32))
    np.testing.assert_allclose(query, [-(0.5**0.5), 0.5**0.5], rtol=1e-6)
    np.testing.assert_allclose(centre.cosines(rows, query), [-1, 1, -1], rtol=1e-6)


def test_a_row_that_is_the_mean_is_like_nothing():
    centre = Centre.of([np.array([[0.6, 0.8], [0.6, 0.8]], np.float32)])
    assert centre is not None
    assert centre.cosines(np.array([[0.6, 0.8]], np.float32), np.array([1, 0], np.float32)) == [0]
    assert Centre.of([]) is None


def test_files_are_centred_exactly(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS)
    before = stored.read_bytes()
    hits = search(FakeEncoder(), QUERY, stored, 7)
    scores = centred(TEXTS)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:7], atol=1e-6)
    assert all(abs(hit.score - scores[hit.id]) < 1e-6 for hit in hits)
    np.testing.assert_allclose(
        [hit.score for hit in search(FakeEncoder(), QUERY, stored, 7, centre=False)],
        np.sort(plain(TEXTS))[::-1][:7],
        atol=1e-6,
    )
    assert stored.read_bytes() == before


def test_the_mean_is_that_of_all_files_of_a_folder(tmp_path):
    for number, part in enumerate((TEXTS[:90], TEXTS[90:])):
        write_embeddings(tmp_path / "out" / f"{number}.parquet", part, file="in.txt", first_row=90 * number)
    (best, *_) = search(FakeEncoder(), QUERY, tmp_path / "out", 1)
    assert best.score == pytest.approx(centred(TEXTS).max(), abs=1e-6)


def test_few_rows_are_compared_as_they_are_unless_asked(tmp_path):
    few = TEXTS[: LEAST_ROWS - 1]
    stored = write_embeddings(tmp_path / "out.parquet", few)
    assert search(FakeEncoder(), QUERY, stored, 1)[0].score == pytest.approx(plain(few).max(), abs=1e-6)
    asked = search(FakeEncoder(), QUERY, stored, 1, centre=True)[0]
    assert asked.score == pytest.approx(centred(few).max(), abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "is_centred"),
    [
        ({"weights": "last"}, True),
        ({"weights": "mean"}, False),
        ({"signal": "hidden", "alignment": "none"}, True),
        ({"joined": [{"signal": "value", "weights": "last"}]}, True),
        ({"joined": [{"signal": "value", "weights": "mean"}]}, False),
    ],
    ids=["last token", "mean", "hidden", "joined last", "joined mean"],
)
def test_only_what_last_tokens_read_is_centred_by_itself(recipe, is_centred, tmp_path):
    model = FakeEncoder(**recipe)
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS, model=model)
    build_index(stored, tmp_path / "index", progress=False)
    for source in (stored, tmp_path / "index"):
        best = search(model, QUERY, source, 1)[0]
        assert best.score == pytest.approx((centred(TEXTS) if is_centred else plain(TEXTS)).max(), abs=1e-6)
        assert search(model, QUERY, source, 1, centre=True)[0].score == pytest.approx(centred(TEXTS).max(), abs=1e-6)


def whitened(texts: list[str], query: str = QUERY) -> np.ndarray:
    """Cosines of texts with a query, both whitened by the texts as a calibration whitens, in float64."""
    vectors = unit(FakeEncoder().encode(texts).astype(np.float64))
    found = fit_whitening(vectors, SHRINKAGE)
    sides = [vectors, unit(FakeEncoder().encode([query]).astype(np.float64))]
    rows, asked = (unit((side - found.mean.numpy()) @ found.matrix.numpy()) for side in sides)
    return rows @ asked[0]


def test_whitening_scales_directions_by_their_shrunk_variance():
    # Two directions of variances 4/25 and 1/25 around (0.6, 0), and one of none. Shrinkage takes half of each and half
    # of their mean over three numbers, 1/15: 17/150 and 8/150, and 5/150 where there is none.
    rows = np.array([[1, 0, 0], [0.2, 0, 0], [0.6, 0.2, 0], [0.6, -0.2, 0]] * 2, np.float32)
    spread = np.array([[0.4, 0, 0], [0, 0.2, 0]], np.float32)
    centre = Centre(np.array([0.6, 0, 0], np.float32), 8, spread)
    query = centre.of_query(np.array([0.8, 0.2, 0.2], np.float32))
    expected = unit(np.array([0.2 / np.sqrt(17), 0.2 / np.sqrt(8), 0.2 / np.sqrt(5)]))
    np.testing.assert_allclose(query, expected, rtol=1e-5)
    np.testing.assert_allclose(centre.cosines(rows[:1], query), [expected[0]], rtol=1e-5)
    np.testing.assert_allclose(centre.looked_up_by(query), unit(np.array([1 / 17, 1 / 8, 1 / 5])), rtol=1e-5)


def test_files_and_an_index_are_whitened_alike(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS)
    build_index(stored, tmp_path / "index", progress=False)
    build_index(stored, tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")
    expected = whitened(TEXTS)
    for found in (
        search(FakeEncoder(), QUERY, stored, 9, centre="whiten"),
        index.search(FakeEncoder(), QUERY, 9, centre="whiten"),
    ):
        assert [hit.id for hit in found] == np.argsort(-expected, kind="stable")[:9].tolist()
        np.testing.assert_allclose([hit.score for hit in found], np.sort(expected)[::-1][:9], atol=1e-4)
    # An index that is centred alone does not see the directions.
    np.testing.assert_allclose(index.search(FakeEncoder(), QUERY, 1, centre=True)[0].score, centred(TEXTS).max(), 1e-5)


def test_where_there_are_no_directions_it_is_said(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS)
    index = tmp_path / "index"
    build_index(stored, index, progress=False)
    Table.open(index, MEAN).delete(f"{KEY} != '{MEAN}'")
    with pytest.raises(InputError) as caught:
        Index.open(index).search(FakeEncoder(), QUERY, 1, centre="whiten")
    assert str(caught.value) == (
        f"{index} holds no principal directions of its rows, which indexes hold of vectors of at most 4,096 numbers; "
        "bring it up to date with: valuembed index"
    )
    build_index(stored, index, progress=False)
    assert Index.open(index).search(FakeEncoder(), QUERY, 1, centre="whiten")[0].score == pytest.approx(
        whitened(TEXTS).max(), abs=1e-4
    )
    for source in (stored, index):
        with pytest.raises(InputError) as caught:
            search(FakeEncoder(), QUERY, source, 1, centre="yes")
        assert str(caught.value) == "centre='yes' is not known; give True, False, 'whiten', or None"


def test_an_index_is_centred_as_files_are(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS)
    build_index(stored, tmp_path / "index", progress=False)
    index = Index.open(tmp_path / "index")
    assert len(TEXTS) < CENTRED_CANDIDATES
    for centre in (None, True, False):
        found = index.search(FakeEncoder(), QUERY, 9, centre=centre)
        expected = search(FakeEncoder(), QUERY, stored, 9, centre=centre)
        assert [hit.id for hit in found] == [hit.id for hit in expected]
        np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=1e-6)
    hybrid = index.search(FakeEncoder(), TEXTS[5], 3, hybrid=True)
    assert hybrid[0].text == TEXTS[5]
    assert hybrid[0].score == pytest.approx(centred(TEXTS, TEXTS[5]).max(), abs=1e-6)


def test_made_in_several_runs_an_index_has_the_mean_of_all_its_rows(tmp_path):
    index = tmp_path / "index"
    other = words(50, seed=1)
    build_index(write_embeddings(tmp_path / "a.parquet", TEXTS[:80]), index, progress=False)
    first = recorded_centre(str(index))
    assert first is not None
    assert first.rows == 80
    build_index(write_embeddings(tmp_path / "b.parquet", other), index, progress=False)
    both = recorded_centre(str(index))
    assert both is not None
    assert both.rows == 130
    rows = TEXTS[:80] + other
    np.testing.assert_allclose(both.mean, unit(FakeEncoder().encode(rows)).mean(axis=0), atol=1e-6)
    assert Index.open(index).search(FakeEncoder(), QUERY, 1)[0].score == pytest.approx(centred(rows).max(), abs=1e-6)
    # Rows that are replaced and removed leave nothing of themselves.
    build_index(write_embeddings(tmp_path / "b.parquet", other[:20]), index, prune=True, progress=False)
    last = recorded_centre(str(index))
    assert last is not None
    assert last.rows == 100
    np.testing.assert_allclose(last.mean, unit(FakeEncoder().encode(TEXTS[:80] + other[:20])).mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_other_precisions_are_centred_too(tmp_path, precision):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS, precision=precision)
    build_index(stored, tmp_path / "index", progress=False)
    for source in (stored, Index.open(tmp_path / "index")):
        best = search(FakeEncoder(), QUERY, source, 1)[0]
        assert best.score == pytest.approx(centred(TEXTS).max(), abs=0.02)


def test_signs_have_no_mean(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS, precision="binary")
    build_index(stored, tmp_path / "index", progress=False)
    assert recorded_centre(str(tmp_path / "index")) is None
    for source in (stored, tmp_path / "index"):
        assert search(FakeEncoder(), QUERY, source, 1) == search(FakeEncoder(), QUERY, source, 1, centre=False)
        with pytest.raises(InputError) as caught:
            search(FakeEncoder(), QUERY, source, 1, centre=True)
        assert str(caught.value) == f"{source} holds signs, from which no mean can be taken; leave centre out"


def test_an_index_of_before_is_searched_as_it_is_until_it_is_run_again(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", TEXTS)
    index = tmp_path / "index"
    build_index(stored, index, progress=False)
    Table.open(index, MEAN).delete("true")
    assert Index.open(index).search(FakeEncoder(), QUERY, 1)[0].score == pytest.approx(plain(TEXTS).max(), abs=1e-6)
    with pytest.raises(InputError) as caught:
        Index.open(index).search(FakeEncoder(), QUERY, 1, centre=True)
    assert str(caught.value) == f"{index} holds no mean of its rows; bring it up to date with: valuembed index"
    build_index(stored, index, progress=False)
    best = Index.open(index).search(FakeEncoder(), QUERY, 1, centre=True)[0]
    assert best.score == pytest.approx(centred(TEXTS).max(), abs=1e-6)


def test_a_file_without_rows_has_no_mean(tmp_path):
    stored = write_embeddings(tmp_path / "out.parquet", [])
    assert search(FakeEncoder(), QUERY, stored, centre=True) == []
    build_index(stored, tmp_path / "index", progress=False)
    assert recorded_centre(str(tmp_path / "index")) is None
