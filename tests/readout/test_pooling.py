"""Pooling on small whole numbers: every expected value is derived in a comment, and the padding is poisoned."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from valuembed.readout import pooling
from valuembed.readout.pooling import centre, expand_heads, join, mean_over_tokens, span_mask, take_token, unit

POISON = 1e4
SIDES = ("left", "right")

# Two texts of 3 and 2 tokens, g = 2 value heads of width d = 2, written [token][head][d].
VALUES = (
    [[[1, 2], [0, 9]], [[3, 4], [3, 0]], [[5, 6], [6, 0]]],
    [[[2, 4], [-1, 1]], [[4, 8], [1, -5]]],
)
# Text 0: head 0 is (1+3+5, 2+4+6)/3 = (3, 4), head 1 is (0+3+6, 9+0+0)/3 = (3, 3).
# Text 1: head 0 is (2+4, 4+8)/2 = (3, 6), head 1 is (-1+1, 1-5)/2 = (0, -2).
MEANS = torch.tensor([[[3.0, 4.0], [3.0, 3.0]], [[3.0, 6.0], [0.0, -2.0]]])


def padded(rows: tuple, side: str, t: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of tokens as ``[b, t, ...]`` with poison in the padding, their mask ``[b, t]`` and spans ``[b, 2]``."""
    signal = torch.full((len(rows), t, *torch.tensor(rows[0]).shape[1:]), POISON)
    mask = torch.zeros(len(rows), t, dtype=torch.long)
    spans = []
    for index, row in enumerate(rows):
        start = t - len(row) if side == "left" else 0
        signal[index, start : start + len(row)] = torch.tensor(row, dtype=torch.float32)
        mask[index, start : start + len(row)] = 1
        spans.append([start, start + len(row)])
    return signal, mask, torch.tensor(spans)


@pytest.mark.parametrize("side", SIDES)
class TestMean:
    def test_of_values(self, side):
        signal, mask, _ = padded(VALUES, side)
        assert torch.equal(mean_over_tokens(signal.transpose(1, 2), mask), MEANS)

    @pytest.mark.parametrize(
        ("query_heads", "expected"),
        [
            # g = h: nothing to repeat.
            (2, [[3, 4, 3, 3], [3, 6, 0, -2]]),
            # g < h: query heads 0 and 1 read value head 0, query heads 2 and 3 value head 1.
            (4, [[3, 4, 3, 4, 3, 3, 3, 3], [3, 6, 3, 6, 0, -2, 0, -2]]),
        ],
    )
    def test_of_values_brought_to_the_query_heads(self, side, query_heads, expected):
        signal, mask, _ = padded(VALUES, side)
        heads = expand_heads(mean_over_tokens(signal.transpose(1, 2), mask), query_heads)
        assert torch.equal(heads.flatten(1), torch.tensor(expected, dtype=torch.float32))

    def test_of_hidden_states(self, side):
        # (1+3+8)/3 = 4, (0-6+3)/3 = -1; (10+20)/2 = 15, (1+2)/2 = 1.5.
        signal, mask, _ = padded(([[1, 0], [3, -6], [8, 3]], [[10, 1], [20, 2]]), side)
        assert torch.equal(mean_over_tokens(signal, mask), torch.tensor([[4.0, -1.0], [15.0, 1.5]]))

    def test_of_a_part_of_the_tokens(self, side):
        # The last two tokens of text 0, (3+5, 4+6)/2 and (3+6, 0+0)/2, and the last one of text 1.
        signal, _, spans = padded(VALUES, side)
        inner = torch.stack((spans[:, 0] + 1, spans[:, 1]), dim=1)
        expected = torch.tensor([[[4.0, 5.0], [4.5, 0.0]], [[4.0, 8.0], [1.0, -5.0]]])
        assert torch.equal(mean_over_tokens(signal.transpose(1, 2), span_mask(inner, 5)), expected)

    def test_every_kind_of_mask_counts_alike(self, side):
        signal, mask, _ = padded(VALUES, side)
        for kind in (torch.bool, torch.long, torch.float32, torch.bfloat16):
            assert torch.equal(mean_over_tokens(signal.transpose(1, 2), mask.to(kind)), MEANS)

    def test_gradient_is_one_share_a_token_and_zero_in_the_padding(self, side):
        signal, mask, _ = padded(VALUES, side)
        signal.requires_grad_()
        mean_over_tokens(signal.transpose(1, 2), mask).sum().backward()
        # d mean / d token = 1/3 for each token of text 0 and 1/2 for each of text 1.
        share = mask.float() / torch.tensor([[3.0], [2.0]])
        assert torch.allclose(signal.grad, share[:, :, None, None].expand_as(signal), atol=1e-7, rtol=0)
        assert not signal.grad[mask == 0].any()

    def test_last_token(self, side):
        # Head 1 of the last token: (6, 0) of text 0 and (1, -5) of text 1.
        signal, _, spans = padded(VALUES, side)
        taken = take_token(signal, spans[:, 1] - 1)
        assert torch.equal(taken, torch.tensor([[[5.0, 6.0], [6.0, 0.0]], [[4.0, 8.0], [1.0, -5.0]]]))

    def test_span_as_mask(self, side):
        _, mask, spans = padded(VALUES, side)
        assert torch.equal(span_mask(spans, 5).long(), mask)
        assert span_mask(spans, 5).dtype == torch.bool


def test_sums_are_float32_whatever_comes_in():
    # bfloat16 has 7 bits behind the point: 1 and 1 + 1/128 are neighbours, and their mean 1 + 1/256 lies between them.
    # A sum of 300 ones in bfloat16 stays at 256, where the next number is 258.
    pair = torch.tensor([[[1.0], [1.0078125]]], dtype=torch.bfloat16)
    mean = mean_over_tokens(pair, torch.ones(1, 2))
    assert mean.dtype == torch.float32
    assert mean.item() == 1.00390625
    ones = torch.ones(1, 1, 300, 1, dtype=torch.bfloat16)
    assert mean_over_tokens(ones, torch.ones(1, 300)).item() == pytest.approx(1, abs=1e-6)
    taken = take_token(pair, torch.tensor([1]))
    assert taken.dtype == torch.float32
    assert taken.item() == 1.0078125


class TestRangeMeans:
    SIGNAL = torch.tensor([[1.0, 10.0], [3.0, 30.0], [8.0, 80.0], [16.0, 160.0]])

    def test_ranges_may_overlap_in_any_order(self):
        # 8/1, (1+3)/2, (1+3+8+16)/4, (3+8)/2; the second column is ten times the first.
        means = pooling.RangeMeans([(2, 3), (0, 2), (0, 4), (1, 3)])(self.SIGNAL)
        assert means.tolist() == [[8.0, 80.0], [2.0, 20.0], [7.0, 70.0], [5.5, 55.0]]

    def test_single_tokens(self):
        assert pooling.RangeMeans([(3, 4), (0, 1)])(self.SIGNAL).tolist() == [[16.0, 160.0], [1.0, 10.0]]

    @pytest.mark.parametrize("tokens", [1, 2, 3, 100])
    def test_in_portions(self, tokens, monkeypatch):
        monkeypatch.setattr(pooling, "TOKENS_PER_PORTION", tokens)
        means = pooling.RangeMeans([(0, 2), (1, 4), (3, 4), (0, 4)])(self.SIGNAL)
        assert means[:, 0].tolist() == [2.0, 9.0, 16.0, 7.0]

    def test_sums_are_float32(self):
        # In bfloat16, 256 + 1 is 256.
        signal = torch.tensor([[256.0], [1.0], [1.0], [1.0]], dtype=torch.bfloat16)
        means = pooling.RangeMeans([(0, 4), (1, 2)])(signal)
        assert (means.tolist(), means.dtype) == ([[259 / 4], [1.0]], torch.float32)


def test_take_token_reads_another_position_in_each_row_and_sends_the_gradient_there():
    signal = torch.arange(12.0).view(2, 3, 2).requires_grad_()
    taken = take_token(signal, torch.tensor([2, 0]))
    # Row 0 holds 0..5, its token 2 is (4, 5); row 1 holds 6..11, its token 0 is (6, 7).
    assert torch.equal(taken, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    taken.sum().backward()
    assert signal.grad.tolist() == [[[0, 0], [0, 0], [1, 1]], [[1, 1], [0, 0], [0, 0]]]


def test_expand_repeats_each_head_beside_itself():
    values = torch.tensor([[[1.0], [2.0], [3.0]]], requires_grad=True)
    # h/g = 2: query head i reads value head i // 2. Repeating the whole row, 1 2 3 1 2 3, is the mistake to catch.
    expanded = expand_heads(values, 6)
    assert expanded.flatten().tolist() == [1, 1, 2, 2, 3, 3]
    # One value head for all (MQA).
    assert expand_heads(torch.tensor([[[7.0, 8.0]]]), 3).tolist() == [[[7, 8], [7, 8], [7, 8]]]
    # Each value head is read twice, so its gradient is the sum of two weights: 1+2, 3+4, 5+6.
    (expanded.flatten() * torch.arange(1.0, 7.0)).sum().backward()
    assert values.grad.flatten().tolist() == [3, 7, 11]


@given(
    spans=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5),
    poison=st.sampled_from([POISON, -POISON, 1e30]),
)
def test_whatever_stands_outside_the_span_never_shows(spans, poison):
    length = 12
    span = torch.tensor([[start, start + size] for start, size in spans])
    mask = span_mask(span, length)
    assert mask.sum(dim=1).tolist() == [size for _, size in spans]
    # Every token of the span holds its row's number, so the mean is that number.
    rows = torch.arange(1.0, len(spans) + 1)
    signal = torch.where(mask[:, :, None], rows[:, None, None], torch.tensor(poison)).expand(-1, -1, 3)
    assert torch.allclose(mean_over_tokens(signal, mask), rows[:, None].expand(-1, 3), rtol=1e-6, atol=0)


class TestJoin:
    def test_parts_are_of_length_one_times_the_root_of_their_weight(self):
        # (3, 4) / 5 * 1 and (0, 0, 7) / 7 * 2, for the root of 4 is 2.
        both = join([torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0, 7.0]])], [1.0, 4.0])
        assert torch.allclose(both, torch.tensor([[0.6, 0.8, 0.0, 0.0, 2.0]]))

    def test_a_cosine_is_the_weighted_mean_of_the_parts(self):
        # Cosines of the parts are 0 and 1, weights 1 and 3: (1 * 0 + 3 * 1) / 4.
        both = join([torch.tensor([[2.0, 0.0], [0.0, 9.0]]), torch.tensor([[1.0], [5.0]])], [1.0, 3.0])
        assert torch.cosine_similarity(both[0], both[1], dim=0) == pytest.approx(0.75)

    def test_a_part_of_zeros_stays_zero(self):
        assert torch.equal(join([torch.zeros(1, 2), torch.ones(1, 1)], [1.0, 1.0]), torch.tensor([[0.0, 0.0, 1.0]]))

    def test_is_float32_whatever_comes_in(self):
        assert join([torch.ones(1, 2, dtype=torch.bfloat16)], [1.0]).dtype == torch.float32


def test_centred_is_the_unit_vector_without_the_mean():
    # (3, 4) / 5 - (0.5, 0.2)
    assert torch.allclose(centre(torch.tensor([[3.0, 4.0]]), torch.tensor([0.5, 0.2])), torch.tensor([[0.1, 0.6]]))
    assert torch.equal(unit(torch.tensor([[0.0, 2.0]])), torch.tensor([[0.0, 1.0]]))
