"""What an assistant is told, without the protocol around it."""

import asyncio
import threading

import numpy as np
import pytest
from serving import ROWS, WIDTH, FakeEngine, FakeIndex, gone, vector_of

from valuembed.errors import CheckpointError, IndexUnavailableError, InputError, UnknownRowError
from valuembed.serving import mcp_tools
from valuembed.serving.mcp_tools import AssistantTools, BackgroundModel


@pytest.fixture(scope="module")
def model():
    return BackgroundModel(FakeEngine)


@pytest.fixture
def index():
    return FakeIndex()


@pytest.fixture
def call(index, model):
    tools = AssistantTools(index, model)
    return lambda name, **arguments: asyncio.run(tools.call(name, arguments))


def texts(answer):
    return [hit["text"] for hit in answer.data["passages"]]


class TestSearch:
    def test_passages_come_with_their_places(self, call, index):
        answer = call("search", query="a cat", k=2)
        scores = {text: float(vector_of("document" + text) @ vector_of("querya cat")) for text in ROWS}
        best = sorted(ROWS, key=lambda text: -scores[text])[:2]
        assert texts(answer) == best
        places = {"a cat sleeps": "a.txt, line 1", "shares fell": "a.txt, line 2", "a late train": "rows, id 2"}
        expected = "\n\n".join(
            f"[{rank}] {places[text]} (score {scores[text]:.2f})\nkey: k{ROWS.index(text)}\n{text}"
            for rank, text in enumerate(best, start=1)
        )
        assert answer.text == f"2 passages, best first:\n\n{expected}"
        assert index.asked == [{"query": "a cat", "like": None, "k": 2, "where": None, "hybrid": None, "centre": None}]

    def test_nulls_and_numbers_in_quotes(self, call, index):
        """Assistants send both."""
        call("search", query="a", k="2", where=None, hybrid=None)
        assert index.asked[0]["k"] == 2

    def test_what_is_not_known_is_left_out(self, call):
        hit = call("search", query="a", k=1).data["passages"][0]
        assert None not in hit.values()
        assert "words" not in hit

    def test_nothing_is_found(self, call, index, monkeypatch):
        monkeypatch.setattr(index, "search", lambda *_, **__: [])
        answer = call("search", query="a")
        assert (answer.text, answer.data) == ("No passage was found.", {"passages": []})

    def test_a_long_passage_is_cut(self, call, monkeypatch):
        monkeypatch.setattr(mcp_tools, "MOST_CHARACTERS", 5)
        monkeypatch.setattr(mcp_tools._cut, "__defaults__", (5,))
        answer = call("search", query="shares fell", where="true", k=1)
        (text,) = texts(answer)
        assert text == f"{ROWS[[text[:5] for text in ROWS].index(text[:5])][:5]} [cut: {text[12:]}"
        assert answer.text.endswith("more characters]")

    def test_a_wrong_filter_is_said_before_anybody_waits_for_the_model(self, index):
        waiting = BackgroundModel(lambda: threading.Event().wait(60))
        with pytest.raises(InputError, match="columns of the index: text"):
            asyncio.run(AssistantTools(index, waiting).call("search", {"query": "a", "where": "stars > 3"}))


class TestReadPassage:
    def test_what_stands_around_it(self, call):
        answer = call("read_passage", key="k1")
        assert texts(answer) == ROWS
        assert answer.text == "a.txt, line 1\na cat sleeps\n\na.txt, line 2\nshares fell\n\nrows, id 2\na late train"
        assert "score" not in answer.data["passages"][0]
        assert texts(call("read_passage", key="k1", before=0, after=0)) == ["shares fell"]
        assert texts(call("read_passage", key="k1", before=0)) == ["shares fell", "a late train"]

    def test_the_passage_itself_comes_first_to_the_room_there_is(self, call, monkeypatch):
        """Of 13 characters it takes 11; the one before it gets two, and the one behind nothing."""
        monkeypatch.setattr(mcp_tools, "MOST_READ", 13)
        assert texts(call("read_passage", key="k1")) == ["a  [cut: 10 more characters]", "shares fell"]

    def test_an_unknown_key(self, call):
        with pytest.raises(UnknownRowError, match="no row with the key 'k9'"):
            call("read_passage", key="k9")


class TestEmbed:
    @pytest.mark.parametrize(("role", "before"), [(None, ""), ("query", "query"), ("document", "document")])
    def test_vectors(self, call, role, before):
        answer = call("embed", texts=["a b", "c"], role=role)
        np.testing.assert_allclose(
            answer.data["vectors"], [vector_of(before + "a b"), vector_of(before + "c")], atol=1e-6
        )
        assert answer.data["truncated"] == []

    def test_dimensions_are_cut_and_scaled(self, call):
        expected = vector_of("abc")[:5]
        answer = call("embed", texts=["abc"], dimensions=5)
        np.testing.assert_allclose(answer.data["vectors"], [expected / np.linalg.norm(expected)], atol=1e-6)
        with pytest.raises(InputError, match=r"^dimensions: 33 is more than the 32 that vectors of this model have$"):
            call("embed", texts=["abc"], dimensions=33)

    def test_too_many_numbers(self, call):
        """16,384 are 512 vectors of 32."""
        assert len(call("embed", texts=["a"] * 512).data["vectors"]) == 512
        message = (
            r"^texts: 513 vectors of 32 numbers are too long an answer; at most 16,384 numbers are returned, so send "
            r"at most 512 at once, or give dimensions$"
        )
        with pytest.raises(InputError, match=message):
            call("embed", texts=["a"] * 513)
        assert len(call("embed", texts=["a"] * 513, dimensions=2).data["vectors"]) == 513

    def test_texts_that_were_cut_are_told(self, call):
        assert call("embed", texts=["a", "l" * 1001]).data["truncated"] == [1]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("find", {}, "there is no tool 'find'; legal: search, read_passage, embed"),
        ("search", {}, "query: Field required"),
        ("search", {"query": " "}, "query: it cannot be embedded: it is blank"),
        ("search", {"query": "nul \0"}, "query: it cannot be embedded: it is not text: NUL character"),
        ("search", {"query": "untokenizable"}, "query: it cannot be embedded: it is untokenizable"),
        ("search", {"query": "poison"}, "query: it cannot be embedded: the model failed on it"),
        ("search", {"query": "a", "k": 21}, "k: Input should be less than or equal to 20"),
        ("search", {"query": "a", "limit": 3}, "limit: no such argument; legal: query, k, where, hybrid"),
        ("read_passage", {"key": "k1", "after": 11}, "after: Input should be less than or equal to 10"),
        ("embed", {"texts": []}, "texts: List should have at least 1 item"),
        ("embed", {"texts": "a"}, "texts: Input should be a valid list"),
        ("embed", {"texts": ["a", " "]}, "texts: item 1: it cannot be embedded: it is blank"),
        ("embed", {"texts": ["a", "untokenizable"]}, "texts: item 1: it cannot be embedded: it is untokenizable"),
        ("embed", {"texts": ["a"], "role": "passage"}, "role: Input should be 'query' or 'document'"),
    ],
)
def test_wrong_calls(call, name, arguments, message):
    with pytest.raises(InputError) as raised:
        call(name, **arguments)
    assert str(raised.value).startswith(message)


class TestDescriptions:
    def test_the_columns_are_named(self, index, model):
        search, *others = asyncio.run(AssistantTools(index, model).described())
        assert [search.name, *(tool.name for tool in others)] == ["search", "read_passage", "embed"]
        assert search.description.endswith(
            "At the moment it holds 3 passages of: rows. Columns for where: text (string); write end in double quotes."
        )
        assert list(search.takes["properties"]) == ["query", "k", "where", "hybrid"]
        assert search.takes["required"] == ["query"]
        assert all("description" in field for tool in (search, *others) for field in tool.takes["properties"].values())

    def test_an_index_that_is_gone(self, index, model, call):
        index.broken = gone()
        assert asyncio.run(AssistantTools(index, model).described())[0].description.endswith("perhaps none fits.")
        with pytest.raises(IndexUnavailableError, match="the index is gone"):
            call("search", query="a")


class TestLoading:
    def test_calls_wait_for_the_model(self, index):
        there = threading.Event()

        def load():
            assert there.wait(20)
            return FakeEngine()

        tools = AssistantTools(index, BackgroundModel(load))

        async def ask():
            one, another = (asyncio.ensure_future(tools.call("search", {"query": "a"})) for _ in range(2))
            await asyncio.sleep(0.05)
            # One that is given up takes the model from nobody.
            one.cancel()
            there.set()
            return await another

        assert len(asyncio.run(ask()).data["passages"]) == 3

    @pytest.mark.parametrize(
        ("raised", "told"),
        [
            (CheckpointError("no such folder: 'x'"), "the model cannot be loaded: no such folder: 'x'"),
            (RuntimeError("something private"), "the model cannot be loaded: RuntimeError"),
        ],
    )
    def test_a_model_that_cannot_be_loaded_is_told_each_time(self, index, raised, told):
        def load():
            raise raised

        tools = AssistantTools(index, BackgroundModel(load))
        for _ in range(2):
            with pytest.raises(InputError) as found:
                asyncio.run(tools.call("search", {"query": "a"}))
            assert str(found.value) == told


def test_the_width_of_the_fake_index():
    assert FakeIndex.width == WIDTH
