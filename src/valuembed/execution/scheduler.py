"""The schedule of a call: texts cut into steps by a budget of tokens, so that padding and memory stay small."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from valuembed.tokenization import TokenSequence

TOKENS_PER_STEP = 8192
"""Padded tokens computed in one step. Larger steps gain little on any device; memory grows with them."""

TOKENS_PER_STEP_ON_CPU = 2048
"""The same on a CPU, whose caches hold what so many tokens leave behind in a layer; and smaller steps pad less."""

STEP_COST, STEP_COST_ON_CPU = 256, 128
"""What a step costs beside its tokens, in tokens: a GPU is slow to start and then fast, on a CPU tokens cost most."""

PACKED_COST_ON_CPU = 1.05
"""What a token of a packed row costs on a CPU, in tokens of padded rows: some texts are laid out anew for attention."""

LEAST_TOKENS = 4
"""A shorter prefix is not worth the joining of its keys and values to every text's."""

ATTENTION_REACH = 8192
"""A padded sequence of t tokens shares p of them where t * t is at most p times this. Behind a prefix attention needs a
mask ``[t - p, t]``, and computes both of its triangles: 2 h d t^2 operations more in a layer, where p tokens save twice
the layer's weights each. So this is a layer's weights over h d: 6,000 to 8,000 in decoders of up to a billion weights,
more in larger ones, which lose a few percent of some lengths by it."""


def usual_step(device: torch.device) -> tuple[int, int]:
    """Budget and cost of a step that suit a device, in tokens."""
    return (TOKENS_PER_STEP_ON_CPU, STEP_COST_ON_CPU) if device.type == "cpu" else (TOKENS_PER_STEP, STEP_COST)


@dataclass(frozen=True)
class Packing:
    """Which texts may lie packed in one row, and what that costs.

    Attributes:
        up_to: tokens of the longest that may; 0 for none.
        token_cost: of a packed row, in tokens of padded rows; rows are packed where that costs no more.
        masked: whether attention behind a prefix needs a mask, as it does in padded rows.
    """

    up_to: int = 0
    token_cost: float = 1.0
    masked: bool = False

    def may(self, sequences: Iterable[TokenSequence]) -> bool:
        """Whether some sequences may lie in one row."""
        return all(len(one.ids) <= self.up_to for one in sequences)

    def pays(self, fed: Sequence[int]) -> bool:
        """Whether so many tokens of each sequence cost no more in one row than padded."""
        return len(fed) * max(fed) >= self.token_cost * sum(fed)


PADDED = Packing()
"""No text is packed."""


def plan_steps(
    lengths: Sequence[int],
    budget: int = TOKENS_PER_STEP,
    cost: int = STEP_COST,
    group: Callable[[int], Hashable] = lambda length: None,
    *,
    packed_cost: float | None = None,
) -> list[list[int]]:
    """Sort rows by exact length, longest first, and cut them where that costs least: the best of all cuts.

    Args:
        lengths: tokens of each row.
        budget: a step computes at most so many tokens, except where a single row is longer.
        cost: what a step costs beside the tokens that it computes, in tokens.
        group: rows share a step only if this gives the same for their lengths.
        packed_cost: of a token, where rows that are padded for more may be packed; None, and a step computes rows x
            longest row, padding among them.

    Returns:
        Indices of the rows of each step; each row is in exactly one.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    ordered = np.array([lengths[row] for row in order], dtype=np.int64)
    before = np.concatenate(([0], ordered.cumsum()))
    counts = np.arange(1, len(order) + 1)
    # least[j]: of the first j rows, cut at their best; begin[j]: where the last step of that cut begins.
    least = np.concatenate(([0.0], np.full(len(order), np.inf)))
    begin = np.zeros(len(order) + 1, dtype=np.int64)
    for first, end in _ends_of_groups(ordered.tolist(), group):
        last = min(end, first + max(1, budget // int(ordered[first])))
        if packed_cost is not None:
            most = int(before.searchsorted(before[first] + budget / packed_cost, side="right")) - 1
            last = max(last, min(end, most))
        computed = counts[: last - first] * ordered[first]
        if packed_cost is not None:
            computed = np.minimum(computed, packed_cost * (before[first + 1 : last + 1] - before[first]))
        total = least[first] + cost + computed
        better = total < least[first + 1 : last + 1]
        least[first + 1 : last + 1][better] = total[better]
        begin[first + 1 : last + 1][better] = first
    steps: list[list[int]] = []
    end = len(order)
    while end:
        steps.append(order[begin[end] : end])
        end = int(begin[end])
    return steps[::-1]


def _ends_of_groups(lengths: Sequence[int], group: Callable[[int], Hashable]) -> Iterator[tuple[int, int]]:
    """For each row where its group ends."""
    groups = [group(length) for length in lengths]
    end = 0
    for first in range(len(lengths)):
        while end < len(lengths) and (end <= first or groups[end] == groups[first]):
            end += 1
        yield first, end


def shared_tokens(sequence: TokenSequence, share: bool = True, packing: Packing = PADDED) -> int:
    """How many tokens at the beginning of a sequence are computed once for many.

    Args:
        sequence: of t tokens.
        share: whether prefixes are shared at all.
        packing: what may lie in one row with others; there attention may need no mask.
    """
    if not share or sequence.prefix < LEAST_TOKENS:
        return 0
    unmasked = packing.may([sequence]) and not packing.masked
    pays = unmasked or len(sequence.ids) ** 2 <= ATTENTION_REACH * sequence.prefix
    return sequence.prefix if pays else 0


@dataclass(frozen=True)
class Step:
    """Sequences that are read in one forward pass.

    Attributes:
        sequences: b of them.
        places: of each, among the sequences of its batch.
        packing: what may lie in one row.
        p: tokens at the beginning of each, the same in all, that are computed once for many.
    """

    sequences: list[TokenSequence]
    places: list[int]
    packing: Packing = PADDED
    p: int = 0

    @property
    def fed(self) -> list[int]:
        """Tokens of each sequence that are its own."""
        return [len(sequence.ids) - self.p for sequence in self.sequences]

    @property
    def packed(self) -> bool:
        """Whether they lie in one row without padding."""
        return self.packing.may(self.sequences) and self.packing.pays(self.fed)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The ids that all sequences begin with."""
        return tuple(self.sequences[0].ids[: self.p])

    @property
    def places_of_vectors(self) -> list[int]:
        """The place of the sequence that each vector is of."""
        return [place for one, place in zip(self.sequences, self.places, strict=True) for _ in one.spans or (one.span,)]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(len(sequence.ids) for sequence in self.sequences)

    def cut(
        self, budget: int, cost: int, group: Callable[[int], Hashable], *, most_padding: int | None = None
    ) -> list[Step]:
        """Steps of the same sequences within a budget.

        Args:
            budget, cost, group: as for :func:`plan_steps`.
            most_padding: more tokens of padding than these are a reason too; None is any number.
        """
        fed, packed_cost = self.fed, self.packing.token_cost if self.packing.may(self.sequences) else None
        computed = sum(fed) if self.packed else len(fed) * max(fed)
        padded = most_padding is not None and computed - sum(fed) > most_padding
        if len(fed) == 1 or not (computed > budget or padded):
            return [self]
        return [
            replace(self, sequences=[self.sequences[i] for i in rows], places=[self.places[i] for i in rows])
            for rows in plan_steps(fed, budget, cost, group, packed_cost=packed_cost)
        ]


@dataclass(frozen=True)
class Batch:
    """Texts of about one length, which come to their vectors together.

    Attributes:
        rows: which of the texts they are.
        k: sequences of a text, whose vectors are averaged.
        steps: that all their sequences are read in, ``k * len(rows)`` of them, text by text.
        truncated: which of the texts lost tokens of their end.
    """

    rows: list[int]
    k: int
    steps: list[Step]
    truncated: list[int]

    @classmethod
    def of(
        cls,
        rows: Sequence[int],
        texts: Sequence[Sequence[TokenSequence]],
        group: Callable[[int], Hashable] = lambda length: None,
        *,
        packing: Packing = PADDED,
        share: bool = False,
    ) -> Batch:
        """The batch of some texts, in as few steps as their sequences allow.

        Args:
            rows: which texts they are.
            texts: the k sequences of each.
            group, packing, share: as for :func:`schedule`.
        """
        alike: dict[Hashable, Step] = {}
        for place, one in enumerate(one for text in texts for one in text):
            p = shared_tokens(one, share, packing)
            step = alike.setdefault((tuple(one.ids[:p]), group(len(one.ids) - p)), Step([], [], packing, p))
            step.sequences.append(one)
            step.places.append(place)
        truncated = [row for row, text in zip(rows, texts, strict=True) if any(one.truncated for one in text)]
        return cls(list(rows), len(texts[0]), list(alike.values()), truncated)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences, templates included."""
        return sum(len(sequence.ids) for step in self.steps for sequence in step.sequences)

    @property
    def counts(self) -> list[int]:
        """How many vectors are read from each sequence, in the order of their places."""
        placed = (pair for step in self.steps for pair in zip(step.places, step.sequences, strict=True))
        of_places = sorted((place, len(one.spans) or 1) for place, one in placed)
        return [vectors for _, vectors in of_places]

    def moved(self, start: int) -> Batch:
        """The same batch in a list of texts where so many stand before its own."""
        return replace(self, rows=[start + row for row in self.rows], truncated=[start + row for row in self.truncated])

    @property
    def reused(self) -> int:
        """Of these, tokens of prefixes that are computed once for all texts of a call."""
        return sum(step.p * len(step.sequences) for step in self.steps)


def schedule(
    texts: Sequence[Sequence[TokenSequence]],
    budget: int,
    cost: int,
    group: Callable[[int], Hashable] = lambda length: None,
    *,
    packing: Packing = PADDED,
    share: bool = False,
) -> list[Batch]:
    """Plan how texts are read: batches of about one length, longest first, each in as few steps as its sequences allow.

    Args:
        texts: the k sequences of each of b texts.
        budget, cost, group: of a step, as for :func:`plan_steps`.
        packing: which texts may lie packed in one row.
        share: compute the prefixes that the sequences tell of once; those that share one are read in a step of their
            own.
    """
    k = len(texts[0]) if texts else 1
    fed = [max(len(one.ids) - shared_tokens(one, share, packing) for one in text) for text in texts]
    # Without prefixes the k sequences of a text are in one step.
    within = budget if share else max(1, budget // k)
    batches = []
    for packed_cost in (None, packing.token_cost):
        members = [row for row, text in enumerate(texts) if packing.may(text) is (packed_cost is not None)]
        lengths = [fed[row] for row in members]
        for cut in plan_steps(lengths, within, cost, group, packed_cost=packed_cost) if members else ():
            rows = [members[i] for i in cut]
            batch = Batch.of(rows, [texts[row] for row in rows], group, packing=packing, share=share)
            if k > 1:
                # Templates of one text may differ much in length, and would be padded to the longest.
                steps = [part for step in batch.steps for part in step.cut(budget, cost, group, most_padding=cost)]
                batch = replace(batch, steps=steps)
            batches.append(batch)
    return batches
