"""Groups of a packed row's texts: each text attends as it would alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from valuembed.readout.grouped_attention import ALIKE_FROM, SHORT, group_texts, grouped_attention

HEADS, SHARED_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 16


def attended(query, key, value, scaling):
    """Attention by its formula, of queries that are the last ones of the keys."""
    key, value = (states.repeat_interleave(HEADS // SHARED_HEADS, dim=1) for states in (key, value))
    scores = torch.einsum("thd,uhd->htu", query, key) * scaling
    n, m = scores.shape[1:]
    hidden = torch.ones(n, m, dtype=torch.bool).triu(diagonal=m - n + 1)
    return torch.einsum("htu,uhd->thd", scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), value)


def check(lengths, p):
    drawn = torch.Generator().manual_seed(0)
    tokens = p + sum(lengths)
    query = torch.randn(tokens, HEADS, WIDTH, generator=drawn)
    key = torch.randn(tokens, SHARED_HEADS, WIDTH, generator=drawn)
    value = torch.randn(tokens, SHARED_HEADS, VALUE_WIDTH, generator=drawn)
    found = grouped_attention(query, key, value, group_texts(lengths, p), 0.3)
    expected = [attended(query[:p], key[:p], value[:p], 0.3)] if p else []
    start = p
    for length in lengths:
        own = slice(start, start + length)
        keys, values = (torch.cat([states[:p], states[own]]) for states in (key, value))
        expected.append(attended(query[own], keys, values, 0.3))
        start += length
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("p", [0, 1, 5])
@pytest.mark.parametrize(
    "lengths",
    [
        [7],
        [5, 5, 5],
        [1, 2, 3],
        [3] * ALIKE_FROM + [2],
        [9, *([4] * ALIKE_FROM), 2, *([4] * ALIKE_FROM), SHORT + 1, 1],
        [4 * SHORT, SHORT, 2 * SHORT + 1, 1, 2 * SHORT],
    ],
)
def test_each_text_attends_as_it_would_alone(lengths, p):
    check(lengths, p)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), p=st.integers(0, 4))
def test_any_lengths(lengths, p):
    check(lengths, p)


def test_groups_by_hand():
    groups = group_texts([70, 9, *([4] * ALIKE_FROM), 3, 129], p=2)
    found = [(group.count, group.queries, group.keys, group.first, group.rows is None) for group in groups]
    assert found == [
        (1, 2, 2, 0, True),
        (ALIKE_FROM, 4, 6, 2 + 70 + 9, True),
        (1, 70, 72, 2, False),
        (2, 9, 11, 2 + 70, False),
        (1, 129, 131, 2 + 70 + 9 + 4 * ALIKE_FROM + 3, False),
    ]
    # The texts of 9 and 3 tokens, the shorter one filled up with its last token.
    assert groups[3].rows.tolist() == [*range(72, 81), 113, 114, *[115] * 7]
    which, where = groups[3].own
    assert which.tolist() == [*range(12)]
    assert where.tolist() == [*range(72, 81), 113, 114, 115]
    assert groups[3].key_rows.tolist() == [0, 1, *range(72, 81), 0, 1, 113, 114, *[115] * 7]


@given(lengths=st.lists(st.integers(1, 600), min_size=1, max_size=30))
def test_padding_is_less_than_half_of_what_long_texts_attend_with(lengths):
    tokens = 0
    for group in group_texts(lengths):
        own = group.count * group.queries if group.own is None else len(group.own[0])
        if group.queries > SHORT:
            assert own > group.count * group.queries / 2
        tokens += own
    assert tokens == sum(lengths)
