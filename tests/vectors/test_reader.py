import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import FakeEncoder
from stored import some_words, write_embeddings

from valuembed.errors import InputError
from valuembed.vectors.reader import EmbeddingFiles, _resolve, is_remote


def test_a_folder_is_its_finished_files_by_name(tmp_path):
    words = some_words(9)
    for name, first in (("b.parquet", 3), ("c.parquet", 6), ("a.parquet", 0)):
        write_embeddings(tmp_path / "out" / name, words[first : first + 3], file="in.txt", first_row=first)
    for other in ("manifest.json", "rejected.jsonl", ".valuembed-1.tmp", ".hidden.parquet", "_unfinished.parquet"):
        (tmp_path / "out" / other).write_text("no Parquet")
    (tmp_path / "out" / "inner.parquet").mkdir()
    found = EmbeddingFiles.open(tmp_path / "out")
    assert [file.name for file in found.files] == ["a.parquet", "b.parquet", "c.parquet"]
    assert (found.name, found.is_folder, found.location) == ("out", True, (tmp_path / "out").resolve().as_posix())
    batches = [
        (file.name, batch.first, batch.rows["row"].to_pylist()) for file, batch in found.batches(rows_per_batch=2)
    ]
    assert batches == [
        ("a.parquet", 0, [0, 1]),
        ("a.parquet", 2, [2]),
        ("b.parquet", 0, [3, 4]),
        ("b.parquet", 2, [5]),
        ("c.parquet", 0, [6, 7]),
        ("c.parquet", 2, [8]),
    ]
    assert [file.count() for file in found.files] == [3, 3, 3]


def test_one_file(tmp_path, monkeypatch):
    write_embeddings(tmp_path / "out.parquet", ["ab", "c"], ids=["x", "y"])
    monkeypatch.chdir(tmp_path)
    found = EmbeddingFiles.open("out.parquet")
    assert (found.name, found.is_folder, len(found.files)) == ("out.parquet", False, 1)
    assert found.location == (tmp_path / "out.parquet").resolve().as_posix()
    ((_, batch),) = found.batches()
    np.testing.assert_array_equal(batch.vectors, FakeEncoder().encode(["ab", "c"]))
    assert batch.rows.to_pydict().keys() == {"id", "text", "embedding"}


@pytest.mark.parametrize(
    ("skip", "expected"), [(0, [0, 2, 4]), (1, [1, 2, 4]), (2, [2, 4]), (3, [3, 4]), (5, []), (9, [])]
)
def test_rows_at_the_beginning_are_left_out(tmp_path, skip, expected):
    write_embeddings(tmp_path / "out.parquet", some_words(5))
    found = EmbeddingFiles.open(tmp_path / "out.parquet")
    batches = list(found.files[0].batches(found.vector_spec, rows_per_batch=2, skip=skip))
    assert [batch.first for batch in batches] == expected
    assert [id for batch in batches for id in batch.rows["id"].to_pylist()] == list(range(skip, 5))


def test_the_stamp_changes_with_the_file(tmp_path):
    path = write_embeddings(tmp_path / "out.parquet", ["ab"])
    stamp = EmbeddingFiles.open(path).files[0].stamp
    assert EmbeddingFiles.open(path).files[0].stamp == stamp
    write_embeddings(path, ["ba"])
    assert EmbeddingFiles.open(path).files[0].stamp != stamp


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_stored_vectors_of_every_precision(tmp_path, precision):
    texts = some_words(50)
    write_embeddings(tmp_path / "out.parquet", texts, precision=precision)
    ((_, batch),) = EmbeddingFiles.open(tmp_path / "out.parquet").batches()
    assert (batch.vectors.dtype, batch.vectors.shape) == (np.float32, (50, 16))
    exact = FakeEncoder().encode(texts)
    if precision == "binary":
        np.testing.assert_array_equal(batch.vectors, np.where(exact > 0, 1, -1))
    else:
        scaled = batch.vectors * (exact.max(axis=1, keepdims=True) / batch.vectors.max(axis=1, keepdims=True))
        np.testing.assert_allclose(scaled, exact, atol={"float32": 0, "float16": 1e-3, "int8": 0.03}[precision])


def test_places_that_hold_nothing(tmp_path):
    with pytest.raises(InputError, match=r"nothing does not exist; give a file of embeddings, or a folder of them$"):
        EmbeddingFiles.open(tmp_path / "nothing")
    with pytest.raises(
        InputError, match=r"is a folder without \.parquet files; give a file or a folder that 'valuembed"
    ):
        EmbeddingFiles.open(tmp_path)
    with pytest.raises(
        InputError, match=r"^cannot read ftp://host/x: Unrecognized filesystem type in URI: ftp://host/x"
    ):
        EmbeddingFiles.open("ftp://host/x")


def test_files_of_two_makes_do_not_mix(tmp_path):
    write_embeddings(tmp_path / "a.parquet", ["ab"])
    write_embeddings(tmp_path / "b.parquet", ["ab"], model=FakeEncoder("other", layers=(1,)))
    message = (
        r"b\.parquet was made by model 'other'.*, not by model 'fake'.*; their vectors cannot be compared: layers "
    )
    with pytest.raises(InputError, match=message):
        list(EmbeddingFiles.open(tmp_path).batches())


def test_vectors_of_a_wrong_width(tmp_path):
    path = write_embeddings(tmp_path / "a.parquet", ["ab"])
    table = pq.read_table(path)
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(15, np.uint8)), 15)
    pq.write_table(table.set_column(2, "embedding", short), path)
    message = r"holds fixed_size_list<.*uint8>\[15\], expected a list of 16 float"
    with pytest.raises(InputError, match=message):
        list(EmbeddingFiles.open(path).batches())


def test_addresses(tmp_path):
    path = write_embeddings(tmp_path / "out.parquet", ["ab"])
    found = EmbeddingFiles.open(path.as_uri())
    assert found.name == "out.parquet"
    assert [file.count() for file in found.files] == [1]
    assert is_remote("s3://bucket/folder")
    assert not is_remote(tmp_path)


def test_keys_in_an_address_are_not_kept():
    address = "s3://key:secret@bucket/folder/out?endpoint_override=127.0.0.1:9"
    assert _resolve(address)[2] == "s3://bucket/folder/out"
