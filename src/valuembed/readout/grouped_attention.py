"""Attention of a packed row on a CPU: texts of about one length together, as torch's own kernel takes them.

The kernel wants rows of equal length. Texts that are equally long and many are such rows as they lie; the others are
copied into rows of their own, filled up to the longest of their group. Only attention computes that padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from valuembed.readout import pooling

ALIKE_FROM = 8
"""Texts of one length that are attended to as they lie: for fewer, a call of the kernel costs more than copies."""

SHORT = 16
"""Texts up to so many tokens are one group, and each further one goes up to twice as many: attention among so few
tokens costs little beside the layers' products, among more its padding would."""


@dataclass(frozen=True)
class Group:
    """Texts of a packed row that are attended to in one call.

    Attributes:
        count: n texts.
        queries: of one text, the longest of the group.
        keys: of one text; beyond its queries those of a shared beginning.
        rows: where in the row the queries are; None, they are ``first`` and those that follow.
        first: where in the row the first query is.
        own: which of the n x queries are no padding, and where in the row they are; None for all.
        key_rows: where in the row the keys are; None, where the queries are.
    """

    count: int
    queries: int
    keys: int
    first: int
    rows: Tensor | None = None
    own: tuple[Tensor, Tensor] | None = None
    key_rows: Tensor | None = None

    def take(self, states: Tensor, rows: Tensor | None, tokens: int) -> Tensor:
        """``[n, heads, tokens, d]`` of states ``[t, heads, d]``."""
        as_they_lie = states[self.first : self.first + self.count * tokens]
        taken = as_they_lie if rows is None else states.index_select(0, rows)
        return taken.view(self.count, tokens, *states.shape[1:]).transpose(1, 2)


def group_texts(lengths: Sequence[int], p: int = 0, device: torch.device | str = "cpu") -> list[Group]:
    """Groups of the texts of a packed row.

    Args:
        lengths: tokens of each text that are its own.
        p: tokens in front of the row that all texts begin with; they are a group of their own.
        device: of the decoder.
    """
    groups = [Group(1, p, p, 0)] if p else []
    apart: dict[int, list[tuple[int, int]]] = {}
    start = p
    for length, alike in groupby(lengths):
        count = len(list(alike))
        if count >= ALIKE_FROM or count == len(lengths):
            texts = [(start + at * length, length) for at in range(count)]
            keys = _rows(texts, length, p).to(device) if p else None
            groups.append(Group(count, length, p + length, start, key_rows=keys))
        else:
            size = max(0, (length - 1).bit_length() - (SHORT - 1).bit_length())
            apart.setdefault(size, []).extend((start + at * length, length) for at in range(count))
        start += count * length
    for texts in apart.values():
        longest = max(length for _, length in texts)
        rows = _rows(texts, longest)
        which = torch.cat([torch.arange(length) + at * longest for at, (_, length) in enumerate(texts)])
        own = which.to(device), rows[which].to(device)
        keys = _rows(texts, longest, p).to(device) if p else None
        groups.append(Group(len(texts), longest, p + longest, texts[0][0], rows.to(device), own, keys))
    return groups


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, groups: Sequence[Group], scaling: float | None
) -> Tensor:
    """Causal attention of each text to its beginning and its own tokens.

    Args:
        query: ``[t, h, d]``.
        key, value: ``[t, g, d]``.
        groups: of the row's texts.
        scaling: of the scores; None is ``d ** -0.5``.

    Returns:
        ``[t, h, d]`` of values' width.
    """
    shares = query.shape[1] != key.shape[1]
    found: Tensor | None = None
    for group in groups:
        q = group.take(query, group.rows, group.queries)
        rows = group.rows if group.key_rows is None else group.key_rows
        k, v = (group.take(states, rows, group.keys) for states in (key, value))
        p = group.keys - group.queries
        mask = pooling.mask_behind(p, group.queries, query.dtype, query.device) if p else None
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shares
        )
        output = output.transpose(1, 2).flatten(0, 1)
        if len(groups) == 1 and group.own is None:
            return output
        if found is None:
            found = output.new_empty(query.shape[0], *output.shape[1:])
        if group.own is None:
            found[group.first : group.first + group.count * group.queries] = output
        else:
            which, where = group.own
            found.index_copy_(0, where, output.index_select(0, which))
    assert found is not None, "a row has texts"
    return found


def _rows(texts: Sequence[tuple[int, int]], longest: int, p: int = 0) -> Tensor:
    """Where the tokens of texts are, each text filled up to the longest with its own last token, behind a beginning."""
    starts, lengths = torch.tensor(texts).unbind(1)
    own = starts[:, None] + torch.minimum(torch.arange(longest)[None], lengths[:, None] - 1)
    return torch.cat([torch.arange(p).expand(len(texts), p), own], dim=1).flatten()
