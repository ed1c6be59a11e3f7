import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeEncoder
from sentence_transformers.util import quantize_embeddings

from valuembed.errors import InputError
from valuembed.vectors.provenance import VectorSpec
from valuembed.vectors.quantization import check_precision, pack, shorten, stored_width, unpack

# The largest of the first row is 4, of the second -2.
VECTORS = np.array([[1.0, -2.0, 0.0, 4.0], [-2.0, 1.0, 0.5, 0.0]], np.float32)


def test_int8_scales_each_vector_to_its_largest_number():
    # 127 / 4 = 31.75: 31.75, -63.5, 0, 127; 127 / 2 = 63.5: -127, 63.5, 31.75, 0. Halves go to the even neighbour.
    expected = [[32, -64, 0, 127], [-127, 64, 32, 0]]
    packed = pack(VECTORS, "int8")
    assert packed.dtype == np.int8
    assert packed.tolist() == expected
    np.testing.assert_array_equal(unpack(packed, "int8", 4), np.array(expected, np.float32))
    # A vector of zeros, and no vectors.
    assert pack(np.zeros((1, 4), np.float32), "int8").tolist() == [[0, 0, 0, 0]]
    assert pack(np.zeros((0, 4), np.float32), "int8").shape == (0, 4)


def test_a_cosine_survives_int8():
    vectors = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32) * np.logspace(-3, 3, 50)[:, None]

    def cosines(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit @ unit.T

    kept = unpack(pack(vectors.astype(np.float32), "int8"), "int8", 64)
    assert np.abs(cosines(kept) - cosines(vectors)).max() < 0.02


def test_binary_is_a_bit_a_number_from_the_highest_on():
    # Above zero: 1, 0, 0, 1 and 0, 1, 1, 0, then four bits of filling.
    packed = pack(VECTORS, "binary")
    assert packed.dtype == np.uint8
    assert packed.tolist() == [[0b10010000], [0b01100000]]
    assert unpack(packed, "binary", 4).tolist() == [[1, -1, -1, 1], [-1, 1, 1, -1]]


@pytest.mark.parametrize("width", [8, 12, 128])
def test_binary_is_that_of_sentence_transformers(width):
    vectors = np.random.default_rng(1).normal(size=(5, width)).astype(np.float32)
    np.testing.assert_array_equal(pack(vectors, "binary"), quantize_embeddings(vectors, "ubinary"))


def test_floats():
    assert pack(VECTORS, "float32") is not None
    np.testing.assert_array_equal(pack(VECTORS, "float32"), VECTORS)
    assert pack(VECTORS, "float16").dtype == np.float16
    np.testing.assert_array_equal(unpack(pack(VECTORS, "float16"), "float16", 4), VECTORS)
    assert unpack(pack(VECTORS, "float16"), "float16", 4).dtype == np.float32


@pytest.mark.parametrize(
    ("precision", "width", "stored"),
    [("float32", 12, 12), ("float16", 12, 12), ("int8", 12, 12), ("binary", 12, 2), ("binary", 8, 1)],
)
def test_how_many_numbers_are_stored(precision, width, stored):
    assert stored_width(precision, width) == stored == pack(np.ones((1, width), np.float32), precision).shape[1]


def test_a_shortened_vector_has_length_1():
    # 3, 4 of a vector: length 5.
    np.testing.assert_allclose(shorten(np.array([[3, 4, 12]], np.float32), 2), [[0.6, 0.8]], rtol=1e-6)
    assert np.isnan(shorten(np.array([[0, 0, 12]], np.float32), 2)).all()


def test_an_unknown_precision():
    with pytest.raises(InputError, match=r"^precision 'int4' is unknown; legal: float32, float16, int8, binary$"):
        check_precision("int4")


class TestMake:
    def test_goes_through_metadata_and_back(self):
        for precision, dim in (("float32", None), ("int8", 8), ("binary", 12)):
            vector_spec = VectorSpec.of(FakeEncoder(), precision, dim)
            again = VectorSpec.from_metadata("x", vector_spec.to_metadata())
            assert (again.precision, again.dim, again.width) == (precision, dim, dim or 16)
            assert vector_spec.differences(again) == []
            assert vector_spec.vector_type == again.vector_type

    def test_a_record_without_precision_is_whole(self):
        record = VectorSpec.of(FakeEncoder()).to_record()
        del record["precision"], record["dim"]
        vector_spec = VectorSpec.from_record(record)
        assert (vector_spec.precision, vector_spec.dim, vector_spec.vector_type) == (
            "float32",
            None,
            pa.list_(pa.float32(), 16),
        )

    def test_an_unknown_precision_is_a_damaged_record(self):
        metadata = {
            b"valuembed": VectorSpec.of(FakeEncoder()).to_metadata()[b"valuembed"].replace(b"float32", b"float99")
        }
        with pytest.raises(InputError, match=r"^x holds a damaged record .*precision 'float99' is unknown"):
            VectorSpec.from_metadata("x", metadata)

    def test_says_what_sets_two_apart(self):
        whole = VectorSpec.of(FakeEncoder())
        assert whole.differences(VectorSpec.of(FakeEncoder(), dim=4)) == ["width 16 against 4 of 16"]
        assert whole.differences(VectorSpec.of(FakeEncoder(), "int8")) == ["precision 'float32' against 'int8'"]
        # The same number of numbers, of different models.
        assert VectorSpec.of(FakeEncoder(), dim=4).differences(VectorSpec.of(FakeEncoder(width=8), dim=4)) == [
            "width 4 of 16 against 4 of 8"
        ]
        nearly = VectorSpec.of(FakeEncoder(shift=0.02))
        assert whole.differences(nearly) == []
        assert "other weights or prompts" in whole.differences(nearly, least_cosine=1.1)[0]
        assert str(whole) == "model 'fake', method 'aligned_wva', layers [2, 3], width 16"
        assert str(VectorSpec.of(FakeEncoder(), "int8", 4)).endswith("width 4, precision int8")

    def test_packs_vectors_of_the_model_and_says_which_fit(self):
        vector_spec = VectorSpec.of(FakeEncoder(width=4), "float16", 2)
        vectors = np.array([[3, 4, 9, 9], [np.nan, 1, 1, 1], [0, 0, 1, 1]], np.float32)
        assert vector_spec.fits(vectors).tolist() == [True, False, False]
        np.testing.assert_allclose(vector_spec.pack(vectors[:1]), np.array([[0.6, 0.8]], np.float16), rtol=1e-3)
        large = np.array([[70_000, 1, 1, 1]], np.float32)
        assert VectorSpec.of(FakeEncoder(width=4), "float16").fits(large).tolist() == [False]
        assert VectorSpec.of(FakeEncoder(width=4)).fits(large).tolist() == [True]
        # Shortened, it is of length 1.
        assert vector_spec.fits(large).tolist() == [True]
