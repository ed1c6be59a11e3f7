"""The arithmetic of pooling: tensors in, tensors out, sums in float32.

Mask convention: 1 is a real token that counts; scores of attention have a mask of their own, which is added. A mask
enters as a weight of zero in a sum, so no number that stands in the padding reaches a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import normalize

TOKENS_PER_PORTION = 16384
"""Tokens of ranges that are gathered at a time."""


def span_mask(span: Tensor, length: int) -> Tensor:
    """Token ranges as a mask.

    Args:
        span: ``[b, 2]`` start and end (exclusive) of each row's tokens.
        length: t, the padded length.

    Returns:
        ``[b, t]`` bool.
    """
    positions = torch.arange(length, device=span.device)
    return (positions >= span[:, :1]) & (positions < span[:, 1:])


def mask_behind(p: int, tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[tokens, p + tokens]`` to be added to scores: each token sees the p in front, and its own text up to itself."""
    hidden = torch.full((tokens, p + tokens), torch.finfo(dtype).min, dtype=dtype, device=device)
    return hidden.triu_(diagonal=p + 1)


def mean_over_tokens(signal: Tensor, mask: Tensor) -> Tensor:
    """Mean of the tokens that the mask selects.

    Args:
        signal: ``[b, t, width]`` hidden states or ``[b, g, t, d]`` values.
        mask: ``[b, t]``, at least one 1 in each row.

    Returns:
        ``[b, width]`` or ``[b, g, d]`` in float32.
    """
    weights = mask.to(device=signal.device, dtype=torch.float32)
    weights = weights / weights.sum(dim=1, keepdim=True)
    equation = "btw,bt->bw" if signal.dim() == 3 else "bgtd,bt->bgd"
    # Autocast would compute the product, and with it the sum, in half precision.
    with torch.autocast(signal.device.type, enabled=False):
        return torch.einsum(equation, signal.float(), weights)


def mean_over_segments(signal: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each run of tokens.

    Args:
        signal: ``[t, ...]`` the runs, one after the other.
        lengths: ``[b]`` tokens of each run, none of them empty; they add up to t.

    Returns:
        ``[b, ...]`` in float32.
    """
    lengths = lengths.to(signal.device)
    with torch.autocast(signal.device.type, enabled=False):
        return torch.segment_reduce(signal.float(), "mean", lengths=lengths, axis=0, unsafe=True)


def range_index(starts: Tensor, counts: Tensor) -> Tensor:
    """The numbers of ranges, range after range: ``[sum of counts]``.

    Args:
        starts: ``[s]`` first number of each.
        counts: ``[s]`` how many each has.
    """
    before = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (starts - before).repeat_interleave(counts)


class RangeMeans:
    """Means over ranges of tokens, which may overlap, each added up by itself in float32.

    Args:
        ranges: s ranges ``[start, end)``, none of them empty.
        device: where the tokens are.
    """

    def __init__(self, ranges: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> None:
        bounds = torch.tensor(ranges, dtype=torch.long).reshape(-1, 2)
        lengths = bounds[:, 1] - bounds[:, 0]
        self.single = bool((lengths == 1).all())
        # Which tokens are added up, range after range, in portions: ranges that overlap may be many times the tokens.
        portions = ((lengths.cumsum(0) - lengths) // TOKENS_PER_PORTION).tolist()
        self._portions = []
        for _, members in groupby(range(len(ranges)), key=portions.__getitem__):
            rows = list(members)
            starts, counts = bounds[rows, 0], lengths[rows]
            self._portions.append((range_index(starts, counts).to(device), counts.to(device)))

    def __call__(self, signal: Tensor) -> Tensor:
        """``[s, ...]`` float32 of a signal ``[t, ...]``."""
        means = []
        for index, lengths in self._portions:
            chosen = signal.index_select(0, index.to(signal.device))
            means.append(chosen.float() if self.single else mean_over_segments(chosen, lengths))
        return torch.cat(means)


def take_token(signal: Tensor, index: Tensor) -> Tensor:
    """One token of each row.

    Args:
        signal: ``[b, t, ...]``.
        index: ``[b]`` position of the token in each row.

    Returns:
        ``[b, ...]`` in float32.
    """
    rows = torch.arange(signal.shape[0], device=signal.device)
    return signal[rows, index.to(signal.device)].float()


def expand_heads(values: Tensor, query_heads: int) -> Tensor:
    """Repeat value heads for the query heads that read them: query head i reads value head ``i // (h/g)``.

    Args:
        values: ``[b, g, d]``.
        query_heads: h, a multiple of g.

    Returns:
        ``[b, h, d]``.
    """
    return values.repeat_interleave(query_heads // values.shape[1], dim=1)


def centre(vectors: Tensor, mean: Tensor) -> Tensor:
    """``x / |x| - mean`` for vectors ``[b, width]`` and a mean ``[width]``, in float32.

    Scaled to length 1 first, so that a mean of such vectors is no matter of a few long ones.
    """
    return unit(vectors) - mean.to(vectors.device)


def join(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Put the vectors of several parts behind one another, each of length 1 times the root of its weight.

    The cosine of two joined vectors is the mean of the parts' cosines by these weights.

    Args:
        parts: ``[b, width]`` of each.
        weights: of each, above 0.

    Returns:
        ``[b, width]`` float32, the widths added up.
    """
    scaled = [weight**0.5 * unit(part) for part, weight in zip(parts, weights, strict=True)]
    return torch.cat([part.to(scaled[0].device) for part in scaled], dim=1)


def unit(vectors: Tensor) -> Tensor:
    """``x / |x|`` for vectors ``[b, width]``, in float32 also under autocast."""
    with torch.autocast(vectors.device.type, enabled=False):
        return normalize(vectors.float(), dim=1)
