"""An index that others write while it is searched."""

import shutil
import threading

import numpy as np
import pyarrow as pa
import pytest
from fakes import FakeEncoder
from stored import some_words, write_embeddings

from valuembed.errors import IndexUnavailableError, InputError, UnknownRowError
from valuembed.search.index import Index, build_index
from valuembed.search.live_index import LiveIndex, answer_of
from valuembed.search.results import Hit
from valuembed.vectors.provenance import VectorSpec

pytestmark = pytest.mark.slow

pytest.importorskip("lancedb", reason="the extra 'store' is not installed")

WORDS = some_words(300)


def build(path, words, index, name="all", **given):
    write_embeddings(path, words, **given)
    return build_index(path, index, name=name, progress=False)


@pytest.fixture
def address(tmp_path):
    """An index of 90 words: too few for a mean to be taken."""
    build(tmp_path / "some.parquet", WORDS[:90], tmp_path / "index")
    return tmp_path / "index"


def vector_of(text, **given):
    return FakeEncoder(**given).encode([text])[0]


def found_texts(live, text, **given):
    return [hit["text"] for hit in live.search(vector_of(text), **given)]


def test_it_finds_what_the_index_finds(address):
    live, index = LiveIndex.open(address), Index.open(address)
    hits = index.search(FakeEncoder(), "a word", k=5, where="row < 50", hybrid=True)
    found = live.search(vector_of("a word"), query="a word", k=5, where="row < 50", hybrid=True)
    assert [(hit["rank"], hit["id"], hit["text"]) for hit in found] == [(hit.rank, hit.id, hit.text) for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in hits], atol=1e-6)
    assert [hit["fused"] for hit in found] == [hit.fused for hit in hits]


def test_a_hit_has_every_field(tmp_path):
    headings = pa.array(["Trips > By train", None])
    more = {"headings": headings, "page": pa.array([3, None], pa.int32()), "stars": pa.array([np.nan, 2.5])}
    write_embeddings(tmp_path / "some.parquet", ["A late train", "a cat"], file="trips.pdf", **more)
    build_index(tmp_path, tmp_path / "index", name="n", progress=False)
    (first, second) = LiveIndex.open(tmp_path / "index").search(vector_of("train"), query="the TRAIN")
    assert first.pop("score") == pytest.approx(float(second["score"]), abs=1)
    assert first == {
        "rank": 1,
        "fused": None,
        "key": "1:n::9:trips.pdf:0",
        "source": "n",
        "id": 0,
        "file": "trips.pdf",
        "row": 0,
        "chunk": None,
        "start": None,
        "end": None,
        "text": "A late train",
        "title": None,
        "headings": "Trips > By train",
        "page": 3,
        "line": None,
        # "the" says nothing; "train" stands at 7.
        "words": [(7, 12)],
        # JSON has no word for what is no number.
        "more": {"stars": None},
    }
    assert (second["headings"], second["page"], second["words"], second["more"]) == (None, None, [], {"stars": 2.5})


def test_dates_are_written_out():
    import datetime

    hit = Hit(4, 0.5, "x", "text", key="k", more={"day": datetime.date(2026, 1, 2), "line": 7})
    answer = answer_of(hit, 1)
    assert (answer["rank"], answer["line"], answer["more"], answer["words"]) == (1, 7, {"day": "2026-01-02"}, [])


class TestSimilarRows:
    def test_the_row_itself_is_left_out(self, address):
        live = LiveIndex.open(address)
        own = live.search(vector_of(WORDS[3]), k=1)[0]
        assert own["text"] == WORDS[3]
        found = live.search(like=own["key"], k=4)
        assert [hit["rank"] for hit in found] == [1, 2, 3, 4]
        assert [hit["text"] for hit in found] == found_texts(live, WORDS[3], k=5)[1:]
        assert {tuple(hit["words"]) for hit in found} == {()}

    def test_with_a_filter_that_leaves_it_out_anyway(self, address):
        live = LiveIndex.open(address)
        key = live.search(vector_of(WORDS[3]), k=1)[0]["key"]
        found = live.search(like=key, k=4, where="row > 10")
        assert [hit["text"] for hit in found] == found_texts(live, WORDS[3], k=4, where="row > 10")

    @pytest.mark.parametrize("key", ["no", "' OR 1=1 --", "\\", "\N{SNOWMAN}" * 100])
    def test_an_unknown_key(self, address, key):
        with pytest.raises(UnknownRowError) as raised:
            LiveIndex.open(address).search(like=key)
        assert str(raised.value) == f"the index has no row with the key {key!r:.200}; give the key of a hit"

    def test_a_key_with_a_quote(self, tmp_path):
        build(tmp_path / "some.parquet", WORDS[:3], tmp_path / "index", name="it's")
        live = LiveIndex.open(tmp_path / "index")
        key = live.search(vector_of(WORDS[0]), k=1)[0]["key"]
        assert "it's" in key
        assert len(live.search(like=key)) == 2


@pytest.mark.parametrize(("precision", "dim"), [("float16", None), ("int8", None), ("binary", None), ("float32", 8)])
def test_precisions_and_sizes(tmp_path, precision, dim):
    """Vectors of the whole width are cut as the query's is; the nearest of a text is itself."""
    build(tmp_path / "some.parquet", WORDS[:60], tmp_path / "index", precision=precision, dim=dim)
    live = LiveIndex.open(tmp_path / "index")
    assert live.width == (dim or 16)
    expected = [hit.text for hit in Index.open(tmp_path / "index").search(FakeEncoder(), WORDS[5], k=3)]
    assert found_texts(live, WORDS[5], k=3) == expected
    key = live.search(vector_of(WORDS[5]), k=1, where=f"text = '{WORDS[5]}'")[0]["key"]
    found = [hit["key"] for hit in live.search(like=key, k=3)]
    assert (len(found), key in found) == (3, False)


def test_what_it_holds(address, tmp_path):
    live = LiveIndex.open(address)
    build(tmp_path / "more.parquet", WORDS[90:95], address, name="more", label=pa.array(list("abcde")))
    told = live.describe()
    assert told["columns"].pop("label") == "string"
    assert set(told["columns"]) == {"source", "id", "file", "row", "chunk", "start", "end", "text"}
    del told["columns"]
    assert told == {
        "rows": 95,
        "width": 16,
        "model": "fake",
        "method": "aligned_wva",
        "hybrid": False,
        "sources": ["all", "more"],
    }


class TestFilters:
    @pytest.mark.parametrize("method", ["check", "search"])
    def test_errors_name_the_columns_and_not_the_place(self, address, method):
        live = LiveIndex.open(address)
        with pytest.raises(InputError) as raised:
            getattr(live, method)(*([] if method == "check" else [vector_of("a")]), where="stars > 3")
        assert "columns of the index: source (string), id (string), " in str(raised.value)
        assert str(address) not in str(raised.value)
        with pytest.raises(InputError, match="repeat cannot be called"):
            getattr(live, method)(*([] if method == "check" else [vector_of("a")]), where="repeat(text, 9) = 'a'")

    def test_one_that_fails_on_a_row(self, address):
        live = LiveIndex.open(address)
        live.check(where="cast(text AS int) = 1")
        message = r"^the filter 'cast\(text AS int\) = 1' fails on a row; write it so that it suits every row$"
        with pytest.raises(InputError, match=message) as raised:
            live.search(vector_of("a"), where="cast(text AS int) = 1")
        assert not isinstance(raised.value, IndexUnavailableError)

    def test_the_longest_chain_that_is_taken(self, address):
        """ "row", "=", "1", then 198 times a sign and a number: 399 of 400."""
        assert found_texts(LiveIndex.open(address), "a", where="row = 1" + "+0" * 198) == [WORDS[1]]


class TestChanges:
    def test_rows_columns_and_mean_are_seen(self, address, tmp_path):
        """From 100 rows on, what a last token reads is centred by default."""
        live = LiveIndex.open(address)
        first = live.search(vector_of(WORDS[200]), k=3)
        assert WORDS[200] not in [hit["text"] for hit in first]
        labels = pa.array([f"l{number}" for number in range(210)])
        build(tmp_path / "more.parquet", WORDS[90:], address, name="more", label=labels)
        hit = live.search(vector_of(WORDS[200]), k=1, where="label = 'l110'")[0]
        assert (hit["text"], hit["more"]) == (WORDS[200], {"label": "l110"})
        expected = Index.open(address).search(FakeEncoder(), WORDS[7], k=3)
        found = live.search(vector_of(WORDS[7]), k=3)
        assert [hit["text"] for hit in found] == [hit.text for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected], atol=1e-6)
        assert found[1]["score"] < live.search(vector_of(WORDS[7]), k=3, centre=False)[1]["score"]

    def test_it_is_gone_and_comes_back(self, address, tmp_path):
        live = LiveIndex.open(address)
        live.search(vector_of("a"))
        shutil.rmtree(address)
        gone = r"^the index is gone from where it was; it is served again once it is back$"
        for ask in (
            lambda: live.search(vector_of("a")),
            lambda: live.search(like="no"),
            lambda: live.check(where="row = 1"),
            live.describe,
        ):
            with pytest.raises(IndexUnavailableError, match=gone):
                ask()
        # With as many changes as before, and other columns.
        build(tmp_path / "some.parquet", WORDS[100:150], address, label=pa.array(["x"] * 50))
        assert found_texts(live, WORDS[120], k=1, where="label = 'x'") == [WORDS[120]]
        assert live.describe()["rows"] == 50

    def test_it_becomes_one_of_another_model(self, address, tmp_path):
        live = LiveIndex.open(address)
        shutil.rmtree(address)
        build(tmp_path / "some.parquet", WORDS[:50], address, model=FakeEncoder(width=12))
        message = (
            r"^the index was made anew by another model or recipe \(width 16 against 12\); start the server again$"
        )
        with pytest.raises(IndexUnavailableError, match=message):
            live.search(vector_of("a"))

    def test_it_cannot_be_read(self, address):
        """Files of the rows are lost, and the folder is there."""
        live = LiveIndex.open(address)
        for path in (address / "rows.lance" / "data").iterdir():
            path.unlink()
        with pytest.raises(IndexUnavailableError, match=r"^the index cannot be read now; ask again later$"):
            live.search(vector_of("a"))

    def test_many_search_while_one_writes(self, address, tmp_path):
        """Each finds the rows of before or after a change, and no two of one key."""
        live, wrong, stop = LiveIndex.open(address), [], threading.Event()
        searches = []

        def ask(number):
            while not stop.is_set():
                try:
                    found = live.search(vector_of(WORDS[number]), k=20, hybrid=False, centre=False)
                    if found[0]["text"] != WORDS[number] or len({hit["key"] for hit in found}) != 20:
                        wrong.append([hit["text"] for hit in found])
                    searches.append(live.describe()["rows"])
                except Exception as error:
                    wrong.append(repr(error))

        asking = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in asking:
            thread.start()
        for last in (120, 150, 200, 300):
            build(tmp_path / "some.parquet", WORDS[:last], address)
        stop.set()
        for thread in asking:
            thread.join(60)
        assert wrong == []
        assert searches
        assert set(searches) <= {90, 120, 150, 200, 300}
        assert live.describe()["rows"] == 300


class TestUnusual:
    def test_a_folder_that_holds_none(self, tmp_path):
        with pytest.raises(InputError, match=f"^{tmp_path} holds no index; make one with: valuembed index SOURCE -o"):
            LiveIndex.open(tmp_path)

    def test_an_empty_one(self, tmp_path):
        build(tmp_path / "some.parquet", [], tmp_path / "index")
        live = LiveIndex.open(tmp_path / "index")
        assert live.search(vector_of("a"), query="a", hybrid=True) == []
        assert live.describe()["rows"] == 0
        with pytest.raises(UnknownRowError):
            live.search(like="no")

    def test_one_whose_making_was_interrupted(self, tmp_path, monkeypatch):
        """Rows are there, their words and their mean are not."""

        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("valuembed.search.vector_store.Table.tune", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "some.parquet", WORDS, tmp_path / "index")
        live = LiveIndex.open(tmp_path / "index")
        assert found_texts(live, WORDS[5], k=1) == [WORDS[5]]
        with pytest.raises(InputError, match=r"^the index has no index of words: its making was interrupted; run it"):
            live.search(vector_of("a"), query="a", hybrid=True)
        with pytest.raises(InputError, match=r"^the index holds no mean of its rows; bring it up to date with:"):
            live.search(vector_of("a"), centre=True)

    def test_another_model(self, address):
        live = LiveIndex.open(address)
        live.check_make(FakeEncoder())
        with pytest.raises(InputError, match="other weights or prompts: the same sentence has cosine"):
            live.check_make(FakeEncoder(shift=9.0))

    def test_a_long_query(self, address):
        """A hundred kilobytes of words, which are looked for all the same."""
        query = " ".join([WORDS[4], *some_words(8000, seed=1)])
        assert len(query) > 100_000
        found = LiveIndex.open(address).search(vector_of(WORDS[4]), query=query, k=1, hybrid=True)
        assert (found[0]["text"], found[0]["words"]) == (WORDS[4], [(0, 12)])

    def test_its_make_is_told(self, address):
        assert LiveIndex.open(address).vector_spec.differences(VectorSpec.of(FakeEncoder())) == []
