"""What an assistant can ask of an index: the tools of ``valuembed mcp``, without the protocol around them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from valuembed._utils.text import counted
from valuembed.data import check_text
from valuembed.errors import InputError, TextFailed, ValuembedError, trace_of
from valuembed.serving.jobs import Embedded, EmbedRequest, Engine
from valuembed.serving.stored_index import StoredIndex

if TYPE_CHECKING:
    from valuembed.models import ValueEncoder
    from valuembed.serving.batcher import Batcher

logger = logging.getLogger(__name__)

MOST_PASSAGES = 20
"""Of a search."""

MOST_CHARACTERS = 2000
"""Of a passage in a search's answer; all of it is for ``read_passage``."""

MOST_READ = 40_000
"""Characters that ``read_passage`` answers with: some ten thousand tokens of an assistant's room."""

MOST_AROUND = 10

MOST_NUMBERS = 16_384
"""Of all vectors in an answer."""

DECIMALS = 6

PLACE = ("file", "page", "line", "title", "headings")


class _Arguments(BaseModel):
    """Arguments of a tool: null is as if one were left out, and none is taken that is not known."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class _Search(_Arguments):
    query: str = Field(
        min_length=1,
        description="What to look for: a full question or statement in natural words, in the language of the texts.",
    )
    k: int = Field(5, ge=1, le=MOST_PASSAGES, description="How many passages to return at most.")
    where: str | None = Field(
        None,
        min_length=1,
        description='A condition in SQL on the columns, to search only rows that meet it, such as "file LIKE '
        "'letters/%'\". Functions such as lower and length can be called.",
    )
    hybrid: bool | None = Field(
        None,
        description="Rank by the query's words too: set it for names, numbers, codes and rare words. Left out, the "
        "index decides.",
    )


class _ReadPassage(_Arguments):
    key: str = Field(min_length=1, description="The key of a passage that search returned.")
    before: int = Field(1, ge=0, le=MOST_AROUND, description="So many passages before it in the same document.")
    after: int = Field(1, ge=0, le=MOST_AROUND, description="So many passages behind it.")


class _Embed(_Arguments):
    texts: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = Field(
        description="The texts to embed."
    )
    role: Literal["query", "document"] | None = Field(
        None, description="Whether they ask or are searched, where the model reads the two differently."
    )
    dimensions: int | None = Field(
        None, ge=1, description="Keep so many numbers of each vector, and scale what is left to length 1."
    )


@dataclass(frozen=True)
class ToolDescription:
    """A tool, as an assistant is told of it.

    Attributes:
        name: of the tool.
        title: for people.
        description: when to use it and what it gives.
        takes: the JSON schema of its arguments.
        gives: the JSON schema of its data.
    """

    name: str
    title: str
    description: str
    takes: dict[str, Any]
    gives: dict[str, Any]


@dataclass(frozen=True)
class ToolAnswer:
    """What a tool found: in words for an assistant, and as data for programs."""

    text: str
    data: dict[str, Any]


_PASSAGES = {
    "type": "object",
    "properties": {"passages": {"type": "array", "items": {"type": "object"}}},
    "required": ["passages"],
}

_VECTORS = {
    "type": "object",
    "properties": {
        "vectors": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        "truncated": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["vectors", "truncated"],
}


class BackgroundModel:
    """A model that is loaded on a thread of its own: who asks before it is there waits.

    Args:
        load: what gives it.
    """

    def __init__(self, load: Callable[[], ValueEncoder | Engine]) -> None:
        self._loaded: Future[Batcher] = Future()
        # A process that is told to end does not wait for it.
        threading.Thread(target=self._load, args=(load,), name="valuembed-loading", daemon=True).start()

    def _load(self, load: Callable[[], ValueEncoder | Engine]) -> None:
        try:
            loaded = load()
            from valuembed.serving.batcher import Batcher

            if not isinstance(loaded, Engine):
                from valuembed.serving.engine import EncoderEngine

                loaded = EncoderEngine(loaded)
            batcher = Batcher(loaded)
            batcher.start()
            self._loaded.set_result(batcher)
            logger.info("the model is loaded: %s", loaded.name)
        except ValuembedError as error:
            logger.error("the model cannot be loaded: %s", error)
            self._loaded.set_exception(InputError(f"the model cannot be loaded: {error}"))
        except BaseException as error:
            logger.error("the model cannot be loaded: %s", trace_of(error))
            self._loaded.set_exception(InputError(f"the model cannot be loaded: {type(error).__name__}"))

    async def embed(self, texts: Sequence[str], role: str | None) -> Embedded:
        """Vectors of b texts, in a role.

        Raises:
            InputError: the model cannot be loaded.
            TextFailed: a text cannot be embedded.
            ServingError: the model takes nothing any more.
        """
        # One who goes away takes the model from nobody.
        batcher = await asyncio.shield(asyncio.wrap_future(self._loaded))
        return await asyncio.wrap_future(batcher.submit(texts, EmbedRequest(role)))


class AssistantTools:
    """The tools: ``search``, ``read_passage`` and ``embed``.

    Args:
        index: what is searched.
        model: the one that made it.
    """

    def __init__(self, index: StoredIndex, model: BackgroundModel) -> None:
        self._index = index
        self._model = model

    async def described(self) -> list[ToolDescription]:
        """The tools, with what the index holds at the moment."""
        try:
            held = await asyncio.to_thread(self._index.describe)
            columns = ", ".join(f"{name} ({kind})" for name, kind in held["columns"].items())
            holds = (
                f" At the moment it holds {counted(held['rows'], 'passage')} of: {', '.join(held['sources'][:20])}. "
                f"Columns for where: {columns}; write end in double quotes."
            )
        except InputError:
            holds = ""
        return [
            ToolDescription(
                "search",
                "Search texts",
                "Search the user's own texts by meaning. Use it before you answer a question that these texts may "
                "answer, and once more in other words if nothing fits. It returns passages, best first, each with its "
                "place (file, page, line, headings) to cite, and a key for read_passage. Scores compare the passages "
                f"of one answer; if all are alike, perhaps none fits.{holds}",
                _schema(_Search),
                _PASSAGES,
            ),
            ToolDescription(
                "read_passage",
                "Read around a passage",
                "Read a passage that search returned, whole, together with those before and behind it in the same "
                "document: for context, or where a passage was cut.",
                _schema(_ReadPassage),
                _PASSAGES,
            ),
            ToolDescription(
                "embed",
                "Embed texts",
                "Turn texts into vectors, by the model that the texts are searched with. For programs and arithmetic: "
                f"vectors are long, and at most {MOST_NUMBERS:,} numbers are returned at once. To find texts, use "
                "search.",
                _schema(_Embed),
                _VECTORS,
            ),
        ]

    async def call(self, name: str, arguments: dict[str, Any] | None) -> ToolAnswer:
        """Have a tool do its work.

        Raises:
            ValuembedError: it cannot; the message is for the assistant alone, for it may repeat what was sent.
        """
        tools: dict[str, tuple[type[_Arguments], Callable[[Any], Any]]] = {
            "search": (_Search, self._search),
            "read_passage": (_ReadPassage, self._read_passage),
            "embed": (_Embed, self._embed),
        }
        if name not in tools:
            raise InputError(f"there is no tool {name!r:.80}; legal: {', '.join(tools)}")
        kind, work = tools[name]
        try:
            asked = kind.model_validate(arguments or {})
        except ValidationError as error:
            raise InputError(_wrong(error, kind)) from None
        answer: ToolAnswer = await work(asked)
        return answer

    async def _search(self, asked: _Search) -> ToolAnswer:
        _check(asked.query, "query")
        options: dict[str, Any] = {"where": asked.where, "hybrid": asked.hybrid}
        # What cannot be asked is said before anybody waits for the model.
        await asyncio.to_thread(lambda: self._index.check(**options))
        vector = (await self._vectors([asked.query], "query", "query")).vectors[0]
        found = await asyncio.to_thread(lambda: self._index.search(vector, query=asked.query, k=asked.k, **options))
        if not found:
            return ToolAnswer("No passage was found.", {"passages": []})
        shown = [
            f"[{hit['rank']}] {_place(hit)} (score {hit['score']:.2f})\nkey: {hit['key']}\n{_cut(hit)}" for hit in found
        ]
        text = f"{counted(len(found), 'passage')}, best first:\n\n" + "\n\n".join(shown)
        return ToolAnswer(text, {"passages": [{**_known(hit), "text": _cut(hit)} for hit in found]})

    async def _read_passage(self, asked: _ReadPassage) -> ToolAnswer:
        found = await asyncio.to_thread(lambda: self._index.around(asked.key, asked.before, asked.after))
        room, shown, passages = MOST_READ, [], []
        # The passage itself comes first to its room, then the nearest ones.
        at = next(place for place, hit in enumerate(found) if hit["key"] == asked.key)
        for place in sorted(range(len(found)), key=lambda place: (abs(place - at), place)):
            text = _cut(found[place], room)
            room -= len(text)
            shown.append((place, text))
            if room <= 0:
                break
        for place, text in sorted(shown):
            hit = {name: value for name, value in _known(found[place]).items() if name not in ("rank", "score")}
            passages.append({**hit, "text": text})
        texts = [f"{_place(hit)}\n{hit['text']}" for hit in passages]
        return ToolAnswer("\n\n".join(texts), {"passages": passages})

    async def _embed(self, asked: _Embed) -> ToolAnswer:
        for number, text in enumerate(asked.texts):
            _check(text, f"texts: item {number}")
        # How wide vectors are is known once there is one; the index knows of its own.
        width = asked.dimensions or self._index.width
        if len(asked.texts) * width > MOST_NUMBERS:
            wanted = f"{counted(len(asked.texts), 'vector')} of {counted(width, 'number')}"
            raise InputError(
                f"texts: {wanted} are too long an answer; at most {MOST_NUMBERS:,} numbers are returned, so send "
                f"at most {max(1, MOST_NUMBERS // width)} at once, or give dimensions"
            )
        import numpy as np

        embedded = await self._vectors(asked.texts, asked.role, "texts")
        vectors = embedded.vectors
        if asked.dimensions is not None:
            if asked.dimensions > vectors.shape[1]:
                most = vectors.shape[1]
                raise InputError(
                    f"dimensions: {asked.dimensions} is more than the {most} that vectors of this model have"
                )
            vectors = vectors[:, : asked.dimensions]
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        data = {"vectors": np.round(vectors.astype(float), DECIMALS).tolist(), "truncated": embedded.truncated}
        return ToolAnswer(json.dumps(data), data)

    async def _vectors(self, texts: Sequence[str], role: str | None, field: str) -> Embedded:
        try:
            return await self._model.embed(texts, role)
        except TextFailed as error:
            reason = error.cause if isinstance(error.cause, ValuembedError) else "the model failed on it"
            place = field if len(texts) == 1 else f"{field}: item {error.index}"
            raise InputError(f"{place}: it cannot be embedded: {reason}") from None


def _schema(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments, without the names that pydantic makes up."""
    schema = kind.model_json_schema()
    for field in schema["properties"].values():
        field.pop("title", None)
    return {name: value for name, value in schema.items() if name not in ("title", "description")}


def _wrong(error: ValidationError, kind: type[BaseModel]) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "arguments"
    if first["type"] == "extra_forbidden":
        return f"{field:.40}: no such argument; legal: {', '.join(kind.model_fields)}"
    return f"{field:.40}: {str(first['msg']).removeprefix('Value error, ')}"


def _check(text: str, field: str) -> None:
    if reason := check_text(text) or (None if text.strip() else "blank"):
        raise InputError(f"{field}: it cannot be embedded: it is {reason}")


def _known(hit: dict[str, Any]) -> dict[str, Any]:
    """A hit without what is not known of it, and without places in a text that may be cut."""
    return {name: value for name, value in hit.items() if value not in (None, {}) and name != "words"}


def _cut(hit: dict[str, Any], most: int = MOST_CHARACTERS) -> str:
    text = str(hit["text"])
    return text if len(text) <= most else f"{text[:most]} [cut: {len(text) - most:,} more characters]"


def _place(hit: dict[str, Any]) -> str:
    """Where a passage stands, in words."""
    if hit.get("file") is None:
        number = f", row {hit['row']}" if hit.get("row") is not None else f", id {hit['id']}"
        return f"{hit['source']}{number}"
    found = [str(hit["file"])]
    found += [f"{name} {hit[name]}" for name in ("page", "line") if hit.get(name) is not None]
    found += [f"{name}: {hit[name]}" for name in ("title", "headings") if hit.get(name)]
    return ", ".join(found)
