"""What a server embeds and what embeds it: requests on their way, and the engine that a :class:`Batcher` drives."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valuembed.errors import TextFailed
from valuembed.serving.playground.api import Playground

Text = str | tuple[int, ...]
"""A text, or the token ids of one."""

MOST_TEMPLATES = 16
"""Of one text; each is a sequence of its own."""


@dataclass(frozen=True)
class EmbedRequest:
    """How texts are to be embedded.

    Attributes:
        role: ``"query"``, ``"document"`` or None: whose template and instruction.
        prompt: an instruction; None is the role's own.
        template: a name, a template string, or several; None is the model's own.
    """

    role: str | None = None
    prompt: str | None = None
    template: str | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Tokenized:
    """A text that is ready to be computed.

    Attributes:
        tokens: of its sequences, templates included.
        length: tokens of its longest sequence that are computed for it alone.
        truncated: whether it lost tokens of its end.
        group: only texts of the same can share a step.
        payload: the engine's own.
        packed_cost: of its tokens where texts of its group are packed, as in
            :func:`valuembed.execution.plan_steps`; None where they are padded.
    """

    tokens: int
    length: int
    truncated: bool
    group: Hashable
    payload: Any
    packed_cost: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What clients may ask of a model.

    Attributes:
        method: of its recipe.
        dtype: of its weights.
        max_tokens: of a text, template included; None for no limit.
        prompts: its instructions by name.
    """

    method: str = "custom"
    dtype: str = "float32"
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)


class Engine(ABC):
    """What a :class:`Batcher` drives; only ever called from its thread.

    Attributes:
        name: of the model.
        width: of its vectors.
        step_tokens: tokens of a round.
        step_cost: what a step costs beside its tokens, in tokens.
        token_ids: how many token ids have an embedding, from 0 on; None, and any number from 0 on is taken.
        playground: what a page to try the model with needs of it; None, and there is no such page.
        facts: what is told of it.
    """

    name: str
    width: int
    step_tokens: int
    step_cost: int
    token_ids: int | None = None
    playground: Playground | None = None
    facts: ModelFacts = ModelFacts()

    @abstractmethod
    def prepare(self, texts: Sequence[Text], manner: EmbedRequest) -> list[Tokenized]:
        """Tokenize b texts; a text that cannot be embedded raises for all."""

    @abstractmethod
    def run(self, batch: Sequence[Tokenized]) -> NDArray[np.float32]:
        """Vectors ``[b, width]`` of texts of one group; one that is not finite raises for all."""


@dataclass(frozen=True)
class Embedded:
    """What a request gets.

    Attributes:
        vectors: ``[b, width]`` float32.
        tokens: of all sequences, templates included.
        truncated: which of the b texts lost tokens of their end.
    """

    vectors: NDArray[np.float32]
    tokens: int
    truncated: list[int]


@dataclass(eq=False)
class EmbedJob:
    """A request on its way: which of its texts are still to be taken, and what is known of the others.

    Attributes:
        texts: b texts.
        manner: how they are to be embedded.
        truncate: whether a text that is too long may lose its end.
        vectors: ``[b, width]``, filled as they come.
        future: of the whole; cancelled when nobody waits any more.
        since: when it came, by the monotonic clock.
        taken: whether a round has taken one of its texts.
        tokens, truncated: of the texts that have their vectors.
        ready: texts that are tokenized and have no vector yet, by their index.
        pending: texts that no round has taken.
        missing: how many have no vector.
    """

    texts: Sequence[Text]
    manner: EmbedRequest
    truncate: bool
    vectors: NDArray[np.float32]
    future: Future[Embedded] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    taken: bool = False
    tokens: int = 0
    truncated: list[int] = field(default_factory=list)
    ready: dict[int, Tokenized] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pending = deque(range(len(self.texts)))
        self.missing = len(self.texts)

    def receive(self, index: int, vector: NDArray[np.float32]) -> bool:
        """Take one vector; whether it was the last."""
        if self.future.done():
            return False
        done = self.ready.pop(index)
        self.vectors[index] = vector
        self.tokens += done.tokens
        if done.truncated:
            self.truncated.append(index)
        self.missing -= 1
        if self.missing:
            return False
        # Whoever waits for it may be gone since.
        with suppress(InvalidStateError):
            self.future.set_result(Embedded(self.vectors, self.tokens, sorted(self.truncated)))
        return True

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class QueuedText:
    """One text of a request.

    Attributes:
        job: the request.
        index: which of its texts.
    """

    job: EmbedJob
    index: int

    @property
    def text(self) -> Text:
        """The text itself."""
        return self.job.texts[self.index]

    @property
    def ready(self) -> Tokenized:
        """The text, tokenized."""
        return self.job.ready[self.index]

    @property
    def wanted(self) -> bool:
        """Whether its request still waits for it."""
        return not self.job.future.done()

    def fail(self, cause: Exception) -> None:
        """End its request with what was raised for it."""
        self.job.fail(TextFailed(self.index, cause))
