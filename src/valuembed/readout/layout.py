"""How the texts of a step lie in a decoder's input: in rows of their own, or in one row without any padding.

A layout knows where each text's tokens are, so that a readout can ask for a mean or a last token and need not know how
they lie. A text may have several spans, each with a mean of its own: then means are rows of spans, text by text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from valuembed.errors import ReadingError
from valuembed.readout import pooling
from valuembed.readout.grouped_attention import Group, group_texts


class PrefixKV:
    """Keys and values of every attention block for tokens that stand in front of any number of texts.

    Args:
        tokens: p of them.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, block: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep keys and values ``[1, g, p, *]`` of a block that calls attention once in a pass."""
        if id(block) in self._kept:
            raise ReadingError(f"{type(block).__name__} calls attention twice in a pass, so a beginning cannot be kept")
        self._kept[id(block)] = key, value

    def before(self, block: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[b, g, t, *]`` of a block with those of the prefix in front, ``[b, g, p + t, *]``."""
        kept = (states.expand(key.shape[0], -1, -1, -1) for states in self._kept[id(block)])
        keys, values = (torch.cat(pair, dim=2) for pair in zip(kept, (key, value), strict=True))
        return keys, values


class BatchLayout(Protocol):
    """Where the tokens of b texts are in what a decoder is given and gives."""

    @property
    def values_shape(self) -> tuple[int, int]:
        """Rows and tokens of the values that an attention call is given, those of a beginning among them."""

    @property
    def fed_shape(self) -> tuple[int, int]:
        """Rows and tokens that are fed."""

    prefix: PrefixKV | None
    """What stands in front of every text without being fed."""

    def mean_values(self, values: Tensor) -> Tensor:
        """Mean over each span ``[b, g, d]`` of values with the heads in front of the tokens, float32."""

    def mean_states(self, states: Tensor) -> Tensor:
        """Mean over each span ``[b, m]`` of states of the tokens that are fed, float32."""

    def last(self, states: Tensor) -> Tensor:
        """``[b, ...]`` at each text's last token, float32."""


class PaddedLayout:
    """A row for each text, the shorter ones filled up to t tokens.

    Args:
        last: ``[b]`` index of each row's last token.
        mask: ``[b, t]`` tokens that a mean covers.
        prefix: keys and values of the first p of the t tokens, which are not fed; none of them is the last, or in a
            mean of hidden states.
        several: ranges of tokens of each text, in place of what the mask says; none of them begins in a prefix.
    """

    def __init__(
        self,
        last: Tensor,
        mask: Tensor,
        prefix: PrefixKV | None = None,
        several: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        p = prefix.tokens if prefix else 0
        # Values are there for all tokens; everything else for those that are fed.
        self.mask = mask
        self.prefix = prefix
        self._fed_mask = mask[:, p:]
        self._fed_last = last - p
        self._of_values = self._of_states = None
        if several is not None:
            rows, tokens = mask.shape
            self._of_values = _range_means(several, range(0, rows * tokens, tokens), mask.device)
            fed = tokens - p
            self._of_states = _range_means(several, range(-p, rows * fed - p, fed), mask.device)

    @property
    def values_shape(self) -> tuple[int, int]:
        """``(b, t)``."""
        rows, tokens = self.mask.shape
        return rows, tokens

    @property
    def fed_shape(self) -> tuple[int, int]:
        """``(b, t - p)``."""
        rows, tokens = self._fed_mask.shape
        return rows, tokens

    def mean_values(self, values: Tensor) -> Tensor:
        """``[b, g, d]`` float32 of values ``[b, g, t, d]``."""
        if self._of_values is not None:
            return self._of_values(values.transpose(1, 2).flatten(0, 1))
        return pooling.mean_over_tokens(values, self.mask)

    def mean_states(self, states: Tensor) -> Tensor:
        """``[b, m]`` float32 of states ``[b, t - p, m]``."""
        if self._of_states is not None:
            return self._of_states(states.flatten(0, 1))
        return pooling.mean_over_tokens(states, self._fed_mask)

    def last(self, states: Tensor) -> Tensor:
        """``[b, ...]`` float32 of states ``[b, t - p, ...]``."""
        return pooling.take_token(states, self._fed_last)


class PackedLayout:
    """One row: what all texts begin with, where they share it, then all texts' own tokens one after the other.

    No text sees another one's tokens. A shared beginning is computed once for the row, in the same pass: its keys and
    values lie in front of it as those of the texts do, and no layer joins what comes from elsewhere.

    Args:
        lengths: tokens of each text that are its own.
        spans: where in a text, its beginning counted, the tokens of a mean begin and end.
        p: tokens that all texts begin with, once in front of the row; none of them is in a span.
        device: of the decoder.
        several: ranges of each text, in place of its one span.
    """

    prefix: PrefixKV | None = None

    def __init__(
        self,
        lengths: Sequence[int],
        spans: Sequence[tuple[int, int]],
        p: int = 0,
        device: torch.device | str = "cpu",
        several: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.p = p
        self.device = torch.device(device)
        self.starts = list(accumulate(self.lengths, initial=p))
        self.tokens = self.starts.pop()
        self._last = self._moved([start + length - 1 for start, length in zip(self.starts, self.lengths, strict=True)])
        # Spans count a beginning that lies in front of the row and not in front of each text.
        firsts = [start - p for start in self.starts]
        self._of_several = None if several is None else _range_means(several, firsts, self.device)
        covered = [end - begin for begin, end in spans]
        self._span_lengths = self._moved(covered)
        self._span = None
        if sum(covered) < self.tokens:
            begins = [first + begin for first, (begin, _) in zip(firsts, spans, strict=True)]
            self._span = _to(pooling.range_index(torch.tensor(begins), torch.tensor(covered)), self.device)

    def _moved(self, numbers: list[int], dtype: torch.dtype = torch.long) -> Tensor:
        return _to(torch.tensor(numbers, dtype=dtype), self.device)

    @property
    def values_shape(self) -> tuple[int, int]:
        """One row of all tokens."""
        return 1, self.tokens

    @property
    def fed_shape(self) -> tuple[int, int]:
        """The same: all of them are fed."""
        return 1, self.tokens

    @cached_property
    def query_lengths(self) -> list[int]:
        """Queries of each stretch of the row that attends by itself: the shared beginning, then each text."""
        return [self.p, *self.lengths] if self.p else self.lengths

    @cached_property
    def key_lengths(self) -> list[int]:
        """Keys of the same stretches: a text's are those of the beginning and its own."""
        return [self.p, *(self.p + length for length in self.lengths)] if self.p else self.lengths

    @cached_property
    def positions(self) -> Tensor:
        """``[1, t]`` where in its text each token stands."""
        begins = [0, *([self.p] * len(self.lengths))] if self.p else [0] * len(self.lengths)
        return _to(pooling.range_index(torch.tensor(begins), torch.tensor(self.query_lengths))[None], self.device)

    @cached_property
    def cu_seqlens_q(self) -> Tensor:
        """``[s + 1]`` int32 where the queries of each stretch begin, and where the last one's end."""
        return self._moved(list(accumulate(self.query_lengths, initial=0)), torch.int32)

    @cached_property
    def cu_seqlens_k(self) -> Tensor:
        """The same for keys, in their order of :attr:`key_order`."""
        return self._moved(list(accumulate(self.key_lengths, initial=0)), torch.int32)

    @cached_property
    def key_order(self) -> Tensor | None:
        """Which of the row's keys make up those of the stretches; None for all as they are."""
        if not self.p:
            return None
        begins, counts = [0], [self.p]
        for start, length in zip(self.starts, self.lengths, strict=True):
            begins += [0, start]
            counts += [self.p, length]
        return _to(pooling.range_index(torch.tensor(begins), torch.tensor(counts)), self.device)

    @cached_property
    def groups(self) -> list[Group]:
        """What a kernel takes together that wants rows of one length."""
        return group_texts(self.lengths, self.p, self.device)

    def mean_values(self, values: Tensor) -> Tensor:
        """``[b, g, d]`` float32 of values ``[1, g, t, d]``."""
        return self._mean(values[0].transpose(0, 1))

    def mean_states(self, states: Tensor) -> Tensor:
        """``[b, m]`` float32 of states ``[1, t, m]``."""
        return self._mean(states[0])

    def _mean(self, signal: Tensor) -> Tensor:
        if self._of_several is not None:
            return self._of_several(signal)
        if self._span is not None:
            signal = signal.index_select(0, self._span.to(signal.device))
        return pooling.mean_over_segments(signal, self._span_lengths)

    def last(self, states: Tensor) -> Tensor:
        """``[b, ...]`` float32 of states ``[1, t, ...]``."""
        return states[0].index_select(0, self._last.to(states.device)).float()


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, shorter ones filled on the right with their own last id.

    Nothing ever attends to the filling, so no padding token is needed, and no model wonders about one.

    Args:
        rows: b rows of at least one and at most t ids.

    Returns:
        ids ``[b, t]`` and mask ``[b, t]``, 1 where there is a token.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(longest) < lengths[:, None]).long()


# Under causal attention a token never sees what stands to its right, so padding on the right changes nothing, and
# kernels are at their fastest without a mask. Positions are passed, as some families number them wrongly by themselves.


def lay_out(
    ids: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    prefix: PrefixKV | None = None,
    *,
    packed: bool,
    device: torch.device,
    dtype: torch.dtype,
    several: Sequence[Sequence[tuple[int, int]]] | None = None,
    shared: int = 0,
) -> tuple[BatchLayout, dict[str, Any]]:
    """Lay b sequences out as one input of a decoder.

    Args:
        ids: token ids of each, those of the prefix among them.
        spans: where in each the tokens of a mean begin and end.
        prefix: keys and values of the first p tokens of all of them, which are then not fed; of padded rows.
        packed: all in one row; else a row for each.
        device, dtype: of the decoder.
        several: ranges of tokens of each that have a mean of their own, in place of its one span.
        shared: tokens that all of them begin with and a packed row has once.

    Returns:
        The layout, and the keyword arguments of the decoder's forward.
    """
    if packed:
        # A single text is the row as it is.
        p = shared if len(ids) > 1 else 0
        layout = PackedLayout([len(row) - p for row in ids], spans, p, device, several)
        row = [*ids[0][:p], *(token for one in ids for token in one[p:])]
        return layout, {
            "input_ids": _to(torch.tensor(row)[None], device),
            "position_ids": layout.positions,
            # The packed attention needs no mask, and nobody makes one where there is one in its final form.
            "attention_mask": torch.zeros(1, 1, 1, 1, dtype=dtype, device=device),
        }
    p = prefix.tokens if prefix else 0
    padded, _ = pad_right([row[p:] for row in ids])
    t = p + padded.shape[1]
    last = torch.tensor([len(row) - 1 for row in ids])
    inputs: dict[str, Any] = {
        "input_ids": _to(padded, device),
        # With a row of its own for each text, as compiled layers tell tensors apart by how they lie in memory.
        "position_ids": torch.arange(p, t, device=device).repeat(len(ids), 1),
    }
    if prefix:
        # A mask in its final form is passed on as it is.
        inputs["attention_mask"] = pooling.mask_behind(p, t - p, dtype, device)[None, None]
    mask = pooling.span_mask(_to(torch.tensor(spans), device), t)
    return PaddedLayout(_to(last, device), mask, prefix, several), inputs


def _range_means(
    several: Sequence[Sequence[tuple[int, int]]], starts: Sequence[int], device: torch.device
) -> pooling.RangeMeans:
    """The means over spans of texts whose tokens begin at so many places of one row."""
    placed = zip(starts, several, strict=True)
    return pooling.RangeMeans([(at + start, at + end) for at, spans in placed for start, end in spans], device)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    """To a device, without waiting for what it is busy with."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
