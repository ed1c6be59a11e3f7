import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from stored import write_embeddings

from valuembed.corpus.job import embed_file
from valuembed.errors import InputError, ReadingError
from valuembed.search import exact as module
from valuembed.search.exact import Hit, open_embeddings, search, similarity_matrix
from valuembed.vectors.reader import EmbeddingFiles


@pytest.fixture
def texts():
    words = np.random.default_rng(0).integers(97, 123, (300, 12))
    return ["".join(map(chr, word)) for word in words]


@pytest.fixture
def stored(tmp_path, texts):
    (tmp_path / "in.txt").write_text("\n".join(texts))
    embed_file(FakeEncoder(), tmp_path / "in.txt", tmp_path / "out.parquet", rows_per_chunk=70)
    return tmp_path / "out.parquet"


def rewrite(path, columns=None, metadata=None):
    """The same file with other columns or metadata."""
    table = pq.read_table(path)
    columns = {name: table[name] for name in table.schema.names} | (columns or {})
    kept = table.schema.metadata if metadata is None else metadata
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table.replace_schema_metadata(kept), path)


@pytest.mark.parametrize("rows_per_batch", [1, 64, 4096])
@pytest.mark.parametrize("k", [1, 7, 300, 500])
def test_search_is_exact(stored, texts, k, rows_per_batch, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_BATCH", rows_per_batch)
    model = FakeEncoder()
    vectors = FakeEncoder().encode(texts).astype(np.float64)
    query = FakeEncoder().encode(["hello world"])[0].astype(np.float64)
    scores = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    hits = search(model, "hello world", stored, k, centre=False)
    assert [hit.rank for hit in hits] == list(range(1, min(k, 300) + 1))
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:k], atol=1e-6)
    for hit in hits:
        assert hit.text == texts[hit.id]
        assert abs(hit.score - scores[hit.id]) < 1e-6
    assert ("query", ["hello world"]) in model.calls


def test_of_equal_scores_the_earlier_row_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 2)
    (tmp_path / "in.txt").write_text("ab\nba\nzz\nabab\nbbaa\n")
    embed_file(FakeEncoder(), tmp_path / "in.txt", tmp_path / "out.parquet")
    hits = search(FakeEncoder(), "ab", tmp_path / "out.parquet", 3)
    assert [(hit.rank, hit.id, hit.text) for hit in hits] == [(1, 0, "ab"), (2, 1, "ba"), (3, 3, "abab")]


def test_ids_come_back_as_they_were_stored(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"key": "one", "text": "a text"}')
    embed_file(FakeEncoder(), tmp_path / "in.jsonl", tmp_path / "out.parquet", id_column="key")
    assert search(FakeEncoder(), "a text", tmp_path / "out.parquet") == [Hit(1, pytest.approx(1.0), "one", "a text")]


def test_a_file_without_rows_has_no_hits(tmp_path):
    write_embeddings(tmp_path / "out.parquet", [])
    assert search(FakeEncoder(), "anything", tmp_path / "out.parquet") == []


def test_hits_of_exact_search_show_kept_columns_of_one_value(tmp_path):
    lines = [{"text": "ab", "label": "x", "n": 1}, {"text": "zz", "label": "y", "n": None}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    embed_file(FakeEncoder(), tmp_path / "in.jsonl", tmp_path / "out.parquet")
    first, second = search(FakeEncoder(), "ab", tmp_path / "out.parquet")
    assert (first.id, first.more, second.more) == (0, {"label": "x", "n": 1}, {"label": "y", "n": None})
    assert first.to_dict()["more"] == {"label": "x", "n": 1}
    table = pq.read_table(tmp_path / "out.parquet")
    tagged = table.append_column("tags", pa.array([["t"], []]))
    pq.write_table(tagged, tmp_path / "tagged.parquet")
    assert search(FakeEncoder(), "ab", tmp_path / "tagged.parquet", 1)[0].more == {"label": "x", "n": 1}


@pytest.mark.parametrize(
    ("model", "difference"),
    [
        (FakeEncoder(layers=(1,)), r"layers \[2, 3\] against \[1\]$"),
        (FakeEncoder(template=("x {text}",)), r"template \['\{text\}'\] against \['x \{text\}'\]$"),
        (FakeEncoder(width=8), "width 16 against 8$"),
        (FakeEncoder("other/model", shift=9.0), r"other weights or prompts: the same sentence has cosine 0\.\d{3}$"),
        (FakeEncoder(extra=1), "extra None against 1$"),
    ],
)
def test_vectors_of_another_make_are_refused(stored, model, difference):
    with pytest.raises(InputError, match=difference) as caught:
        search(model, "hello", stored)
    assert "out.parquet was made by model 'fake', method 'aligned_wva', layers [2, 3], width 16" in str(caught.value)
    assert f"the query would be made by model {model.reader.origin.name!r}" in str(caught.value)


def test_a_renamed_model_and_a_renamed_method_are_the_same_make(stored):
    assert search(FakeEncoder("renamed", method="my_own"), "hello", stored, 1)


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        ("hello", 0, "k=0 has to be at least 1"),
        (" ", 1, "the query ' ' is blank"),
        ("a\0", 1, "is not text: NUL character at character 1"),
        (None, 1, r"the query None is missing \(None\)"),
    ],
)
def test_queries_that_cannot_be(stored, query, k, message):
    with pytest.raises(InputError, match=message):
        search(FakeEncoder(), query, stored, k)


def test_a_query_may_be_a_scalar(stored):
    expected = search(FakeEncoder(), "hello", stored, 1)
    for query in (np.array("hello"), np.str_("hello"), pa.scalar("hello")):
        assert search(FakeEncoder(), query, stored, 1) == expected


def test_similarity_of_texts_in_any_container():
    expected = similarity_matrix(FakeEncoder(), ["a", "bc"])
    for given in (("a", "bc"), iter(["a", "bc"]), np.array(["a", "bc"]), pa.chunked_array([["a"], ["bc"]])):
        assert np.array_equal(similarity_matrix(FakeEncoder(), given), expected)
    with pytest.raises(InputError, match=r"str where texts are expected: .* give \['bc'\] to mean one text"):
        similarity_matrix(FakeEncoder(), "bc")


def test_files_that_are_not_ours(stored, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.parquet does not exist; give a file of embeddings"):
        open_embeddings(tmp_path / "nothing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty is a folder without \.parquet files; give a file or a folder that "):
        open_embeddings(tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(InputError, match=r"text\.parquet is no readable Parquet file: "):
        open_embeddings(tmp_path / "text.parquet")
    rewrite(stored, metadata={})
    with pytest.raises(InputError, match=r"does not say which model made its vectors; write it with: valuembed embed"):
        search(FakeEncoder(), "hello", stored)


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"model": "m"}', b'{"model": "m", "recipe": {}, "probe": "?"}'])
def test_a_damaged_record(stored, record):
    rewrite(stored, metadata={b"valuembed": record})
    with pytest.raises(InputError, match="holds a damaged record of the model that made its vectors"):
        search(FakeEncoder(), "hello", stored)


def test_damaged_vectors(stored):
    vectors = np.array(pq.read_table(stored)["embedding"].to_pylist(), np.float32)

    def column(values, width=16):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)

    for value in (np.nan, 0.0):
        broken = vectors.copy()
        broken[5] = value
        rewrite(stored, {"embedding": column(broken)})
        with pytest.raises(ReadingError, match=r"rows from 0: vector 5 \(counted from 0\) is zero or not finite"):
            search(FakeEncoder(), "hello", stored)
    rewrite(stored, {"embedding": column(vectors.astype(np.float64))})
    with pytest.raises(InputError, match=r"holds fixed_size_list<\w+: double>\[16\], expected a list of 16 float$"):
        search(FakeEncoder(), "hello", stored)
    missing = [None if row == 3 else vector.tolist() for row, vector in enumerate(vectors)]
    rewrite(stored, {"embedding": pa.array(missing, pa.list_(pa.float32(), 16))})
    with pytest.raises(InputError, match="is damaged: vectors are missing in rows from 0"):
        search(FakeEncoder(), "hello", stored)
    rewrite(stored, {"text": None, "embedding": column(vectors)})
    with pytest.raises(InputError, match="has no column 'text'; its columns are id, embedding"):
        search(FakeEncoder(), "hello", stored)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("rows_per_batch", [7, 4096])
def test_a_folder_is_searched_exactly(tmp_path, texts, precision, rows_per_batch, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_BATCH", rows_per_batch)
    for number, first in enumerate(range(0, 300, 100)):
        path = tmp_path / f"{number}.parquet"
        write_embeddings(path, texts[first : first + 100], file="in.txt", first_row=first, precision=precision)
    vectors, query = FakeEncoder().encode([*texts, "hello world"])[:-1], FakeEncoder().encode(["hello world"])[0]
    if precision == "binary":
        vectors = np.where(vectors > 0, 1, -1)
    scores = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    hits = search(FakeEncoder(), "hello world", tmp_path, 20, centre=False)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:20], atol=0.01)
    assert all(hit.text == texts[hit.row] and (hit.id, hit.file) == (hit.row, "in.txt") for hit in hits)


def test_of_equal_scores_the_earlier_file_comes_first(tmp_path):
    for name in ("b", "a", "c"):
        write_embeddings(tmp_path / f"{name}.parquet", ["xyz", "ab"], file=f"{name}.txt")
    hits = search(FakeEncoder(), "ba", tmp_path, 4)
    assert [(hit.file, hit.text) for hit in hits] == [(f"{name}.txt", "ab") for name in "abc"] + [("a.txt", "xyz")]


def test_pieces_of_texts_come_with_their_places(tmp_path):
    places = {"chunk": [0, 1], "start": [0, 8], "end": [10, 18]}
    columns = {name: pa.array(values, pa.int32()) for name, values in places.items()}
    write_embeddings(tmp_path / "a.parquet", ["ab", "xyz"], file="in.txt", first_row=4, **columns)
    (hit,) = search(FakeEncoder(), "zyx", tmp_path, 1)
    assert hit == Hit(1, pytest.approx(1.0), 5, "xyz", file="in.txt", row=5, chunk=1, start=8, end=18)


def test_files_have_no_filters(stored):
    message = (
        r"holds embeddings without an index, so there is no where, hybrid; make one with: valuembed index \S+ -o I"
    )
    with pytest.raises(InputError, match=message):
        search(FakeEncoder(), "hello", stored, where="row > 1", hybrid=True)
    with pytest.raises(InputError, match="so there is no probes, refine; "):
        search(FakeEncoder(), "hello", stored, probes=1, refine=1)


def test_the_record_survives_the_file(stored):
    vector_spec = EmbeddingFiles.open(stored).vector_spec
    assert (vector_spec.model, vector_spec.width) == ("fake", 16)
    assert vector_spec.recipe["layers"] == [2, 3]
    assert json.loads(vector_spec.to_metadata()[b"valuembed"])["model"] == "fake"


def test_similarity_matrix():
    # Letters modulo 16: a, b and c are different places. Counts (2,0), (0,3), (1,1): cosines 0 and 1/sqrt(2).
    matrix = similarity_matrix(FakeEncoder(), ["aa", "bbb", "ab"])
    half = 0.5**0.5
    np.testing.assert_allclose(matrix, [[1, 0, half], [0, 1, half], [half, half, 1]], atol=1e-6)
    assert matrix.dtype == np.float32
    assert similarity_matrix(FakeEncoder(), []).shape == (0, 0)
