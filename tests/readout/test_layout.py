"""Where the texts of a step lie: means and last tokens on both lanes, by hand."""

from __future__ import annotations

import torch
from torch import tensor
from torch.overrides import TorchFunctionMode

from valuembed.readout.layout import PackedLayout, PaddedLayout, PrefixKV, lay_out

POISON = 1e4


class TestPadded:
    def test_means_and_last_tokens(self):
        # Two texts of 3 and 2 tokens; the mean covers tokens 1 and 2 of the first, token 0 of the second.
        layout = PaddedLayout(last=tensor([2, 1]), mask=tensor([[0, 1, 1], [1, 0, 0]]))
        states = tensor([[[1.0], [2.0], [4.0]], [[8.0], [16.0], [POISON]]])
        assert (layout.values_shape, layout.fed_shape) == ((2, 3), (2, 3))
        # (2 + 4) / 2 and 8 / 1.
        assert layout.mean_states(states).tolist() == [[3.0], [8.0]]
        assert layout.mean_values(states[:, None]).tolist() == [[[3.0]], [[8.0]]]
        assert layout.last(states).tolist() == [[4.0], [16.0]]

    def test_behind_a_cached_token(self):
        # Values are there for all three tokens, states for the last two.
        layout = PaddedLayout(last=tensor([2, 1]), mask=tensor([[0, 1, 1], [0, 1, 0]]), prefix=PrefixKV(1))
        values = tensor([[[[POISON], [2.0], [4.0]]], [[[POISON], [16.0], [POISON]]]])
        states = tensor([[[2.0], [4.0]], [[16.0], [POISON]]])
        assert (layout.values_shape, layout.fed_shape) == ((2, 3), (2, 2))
        assert layout.mean_values(values).tolist() == [[[3.0]], [[16.0]]]
        assert layout.mean_states(states).tolist() == [[3.0], [16.0]]
        assert layout.last(states).tolist() == [[4.0], [16.0]]

    def test_several_spans_of_a_text(self):
        # Tokens 0-1, 2 and all of the first text, which overlap; token 1 of the second.
        several = [[(0, 2), (2, 3), (0, 3)], [(1, 2)]]
        layout = PaddedLayout(tensor([2, 1]), tensor([[1, 1, 1], [1, 1, 0]]), several=several)
        states = tensor([[[1.0], [3.0], [8.0]], [[16.0], [32.0], [POISON]]])
        # (1 + 3) / 2, 8, (1 + 3 + 8) / 3 and 32.
        assert layout.mean_states(states).tolist() == [[2.0], [8.0], [4.0], [32.0]]
        assert layout.mean_values(states[:, None]).tolist() == [[[2.0]], [[8.0]], [[4.0]], [[32.0]]]

    def test_several_spans_behind_a_cached_token(self):
        several = [[(1, 2), (1, 3)], [(1, 2)]]
        mask = tensor([[0, 1, 1], [0, 1, 0]])
        layout = PaddedLayout(tensor([2, 1]), mask, PrefixKV(1), several)
        values = tensor([[[[POISON], [2.0], [4.0]]], [[[POISON], [16.0], [POISON]]]])
        states = tensor([[[2.0], [4.0]], [[16.0], [POISON]]])
        assert layout.mean_values(values).tolist() == [[[2.0]], [[3.0]], [[16.0]]]
        assert layout.mean_states(states).tolist() == [[2.0], [3.0], [16.0]]


class TestPacked:
    def test_means_and_last_tokens(self):
        # The same two texts in one row.
        layout = PackedLayout([3, 2], [(1, 3), (0, 1)])
        states = tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
        assert (layout.values_shape, layout.fed_shape) == ((1, 5), (1, 5))
        assert layout.mean_states(states).tolist() == [[3.0], [8.0]]
        assert layout.mean_values(states[:, None]).tolist() == [[[3.0]], [[8.0]]]
        assert layout.last(states).tolist() == [[4.0], [16.0]]

    def test_where_texts_begin(self):
        layout = PackedLayout([3, 2], [(0, 3), (0, 2)])
        assert layout.positions.tolist() == [[0, 1, 2, 0, 1]]
        assert layout.cu_seqlens_q.tolist() == layout.cu_seqlens_k.tolist() == [0, 3, 5]
        assert layout.cu_seqlens_q.dtype == torch.int32
        assert layout.key_order is None

    def test_behind_two_shared_tokens(self):
        # Spans count the shared tokens: token 2 is the first of a text's own.
        layout = PackedLayout([2, 1], [(2, 4), (2, 3)], p=2)
        states = tensor([[[POISON], [POISON], [1.0], [3.0], [5.0]]])
        assert (layout.values_shape, layout.fed_shape) == ((1, 5), (1, 5))
        assert layout.mean_values(states[:, None]).tolist() == [[[2.0]], [[5.0]]]
        assert layout.mean_states(states).tolist() == [[2.0], [5.0]]
        assert layout.last(states).tolist() == [[3.0], [5.0]]
        assert layout.positions.tolist() == [[0, 1, 2, 3, 2]]
        # Queries are 2, 2 and 1; keys 2, 2 + 2 and 2 + 1, the shared ones in front of each text's own.
        assert layout.cu_seqlens_q.tolist() == [0, 2, 4, 5]
        assert layout.cu_seqlens_k.tolist() == [0, 2, 6, 9]
        assert layout.key_order.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4]

    def test_a_row_holds_what_is_shared_once(self):
        given = {"packed": True, "device": torch.device("cpu"), "dtype": torch.float32, "shared": 2}
        layout, inputs = lay_out([[7, 8, 1, 2], [7, 8, 3]], [(2, 4), (2, 3)], **given)
        assert inputs["input_ids"].tolist() == [[7, 8, 1, 2, 3]]
        assert layout.p == 2
        # A text that is alone shares nothing.
        layout, inputs = lay_out([[7, 8, 1, 2]], [(2, 4)], **given)
        assert inputs["input_ids"].tolist() == [[7, 8, 1, 2]]
        assert (layout.p, layout.key_order, layout.positions.tolist()) == (0, None, [[0, 1, 2, 3]])

    def test_many_texts_take_no_more_operations(self):
        class Counter(TorchFunctionMode):
            calls = 0

            def __torch_function__(self, function, types, args=(), kwargs=None):
                self.calls += 1
                return function(*args, **(kwargs or {}))

        counts = []
        for texts in (3, 300):
            with Counter() as counter:
                layout = PackedLayout([4] * texts, [(3, 5)] * texts, p=2)
                assert layout.key_order.shape == (2 + texts * 6,)
                assert (layout.positions.shape, layout.cu_seqlens_k.shape) == ((1, 2 + texts * 4), (texts + 2,))
            counts.append(counter.calls)
        assert counts[0] == counts[1]

    def test_sums_are_float32(self):
        layout = PackedLayout([4], [(0, 4)])
        states = torch.full((1, 4, 1), 1.0, dtype=torch.bfloat16)
        states[0, 0] = 256
        # In bfloat16, 256 + 1 is 256.
        assert layout.mean_states(states).tolist() == [[259 / 4]]
        assert layout.mean_states(states).dtype == layout.last(states).dtype == torch.float32

    def test_several_spans_of_a_text(self):
        several = [[(0, 2), (2, 3), (0, 3)], [(1, 2)]]
        layout = PackedLayout([3, 2], [(0, 3), (0, 2)], several=several)
        states = tensor([[[1.0], [3.0], [8.0], [16.0], [32.0]]])
        assert layout.mean_states(states).tolist() == [[2.0], [8.0], [4.0], [32.0]]
        assert layout.mean_values(states[:, None]).tolist() == [[[2.0]], [[8.0]], [[4.0]], [[32.0]]]
        behind = PackedLayout([2, 1], [(2, 4), (2, 3)], p=2, several=[[(2, 3), (2, 4)], [(2, 3)]])
        states = tensor([[[POISON], [POISON], [1.0], [3.0], [5.0]]])
        assert behind.mean_values(states[:, None]).tolist() == [[[1.0]], [[2.0]], [[5.0]]]
        assert behind.mean_states(states).tolist() == [[1.0], [2.0], [5.0]]
