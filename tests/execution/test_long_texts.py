"""Texts of many tokens: nothing of the size of all pairs of tokens is made, and vectors are those of short ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import valuembed
from valuembed.execution import executor
from valuembed.execution.scheduler import ATTENTION_REACH, Packing, schedule, shared_tokens
from valuembed.testing import tiny_checkpoint
from valuembed.tokenization.tokenizer import TokenSequence

TEMPLATE = 'In front of every text stands the same line: "{text}" in one word:"'
LONG = "A word and the next one, again and again. " * 50


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        sizes = [math.prod(one.shape) for one in tree_leaves(given) if isinstance(one, torch.Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return given


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=1024)


def _sequence(tokens: int, prefix: int) -> TokenSequence:
    return TokenSequence([1] * prefix + [2] * (tokens - prefix), (prefix, tokens), prefix=prefix)


def test_long_sequences_share_no_prefix():
    longest = math.isqrt(8 * ATTENTION_REACH)
    assert [shared_tokens(_sequence(tokens, 8)) for tokens in (16, longest, longest + 1)] == [8, 8, 0]
    # In one row with others attention needs no mask.
    assert shared_tokens(_sequence(longest + 1, 8), packing=Packing(1000)) == 8
    assert shared_tokens(_sequence(longest + 1, 8), packing=Packing(1000, masked=True)) == 0
    assert shared_tokens(_sequence(16, 8), share=False) == shared_tokens(_sequence(16, 3)) == 0


def test_a_call_with_long_and_short_sequences_shares_for_the_short_ones():
    texts = [(_sequence(tokens, 8),) for tokens in (700, 16, 15, 14)]
    found = {row: batch.steps[0].p for batch in schedule(texts, 2048, 128, share=True) for row in batch.rows}
    assert found == {0: 0, 1: 8, 2: 8, 3: 8}
    packed = schedule(texts, 2048, 128, share=True, packing=Packing(1000))
    assert {step.p for batch in packed for step in batch.steps} == {8}


@pytest.mark.parametrize("method", ["va", "aligned_wva", "hidden_mean"])
@pytest.mark.parametrize("texts", [1, 8])
def test_nothing_has_the_size_of_all_pairs_of_tokens(folder, method, texts):
    options = {} if method == "hidden_mean" else {"template": TEMPLATE}
    model = valuembed.load(folder, method, dtype="float32", max_tokens=1024, **options)
    assert model.reader.executor.prefix_unsupported_reason() is None
    # One text a step, so that a step's tokens are a text's.
    model.reader.executor.tokens_per_step = 1
    with Largest() as largest:
        model.encode([LONG] * texts)
    tokens = model.report.tokens // texts
    assert tokens >= 800
    inner = model.reader.model.config.intermediate_size
    assert largest.numbers == tokens * inner < tokens * tokens // 8


def test_vectors_are_those_of_texts_run_whole(folder, monkeypatch):
    model = valuembed.load(folder, "aligned_wva", dtype="float32", max_tokens=1024, template=TEMPLATE)
    texts = [LONG, *("A short one. " * count for count in range(1, 9))]
    shared = model.encode(texts)
    # Only the short ones share theirs.
    prefix = model.report.reused // 8
    assert prefix >= 4
    assert model.report.reused == 8 * prefix
    monkeypatch.setattr(executor, "SHARED_FROM", 10**9)
    whole = model.encode(texts)
    assert model.report.reused == 0
    np.testing.assert_allclose(shared, whole, atol=1e-5, rtol=1e-4)
