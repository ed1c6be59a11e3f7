"""Steps that do not fit into memory."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from some_texts import some_texts

import valuembed
from valuembed.errors import ReadingError
from valuembed.execution import executor

TEXTS = some_texts(80)
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried..."),
}


@pytest.fixture
def limited(monkeypatch):
    """Steps of more than so many tokens fail; the sizes of those that were tried."""
    real = executor.lay_out

    def limit(tokens, error):
        tried = []

        def lay_out(*given, **options):
            layout, inputs = real(*given, **options)
            fed = inputs["input_ids"].numel()
            tried.append(fed)
            if fed > tokens:
                raise error
            return layout, inputs

        monkeypatch.setattr(executor, "lay_out", lay_out)
        return tried

    return limit


# What is told apart of an error does not depend on the method.
@pytest.mark.slow
@pytest.mark.parametrize(("method", "device"), [("va", "cuda"), ("va", "cpu"), ("meta_eol", "cpu")])
def test_half_the_budget_goes_on_and_loses_nothing(folder, limited, caplog, method, device):
    model = valuembed.load(folder, method, dtype="float32")
    longest = max(len(row.ids) for row in model.reader.tokenize_texts(TEXTS, None, None)[0])
    usual = 32 * longest
    model.reader.executor.tokens_per_step = usual
    expected = model.encode(TEXTS)
    tried = limited(8 * longest, ERRORS[device])
    with caplog.at_level(logging.WARNING, logger="valuembed"):
        made = model.encode(TEXTS)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    # Halved until steps fit, and no further.
    halvings = len(caplog.records)
    assert halvings >= 1
    assert model.reader.executor.tokens_per_step == usual // 2**halvings >= 4 * longest
    assert sum(size > 8 * longest for size in tried) == halvings
    assert (
        caplog.messages[-1] == f"out of memory: going on with steps of {model.reader.executor.tokens_per_step} tokens"
    )
    # The next call begins with what fits.
    tried.clear()
    model.encode(TEXTS)
    assert max(tried) <= 8 * longest


def test_a_single_text_that_does_not_fit(folder, limited):
    model = valuembed.load(folder, "va", dtype="float32")
    limited(3, ERRORS["cuda"])
    with pytest.raises(
        ReadingError,
        match=r"a text of \d+ tokens, template included, does not fit into the memory of cpu; cut texts with max_tok",
    ):
        model.encode(TEXTS)


def test_other_failures_and_training_are_not_tried_again(folder, limited):
    model = valuembed.load(folder, "va", dtype="float32")
    model.reader.executor.tokens_per_step = 8192
    # Its trial would fail too, and is no step of the call.
    model.reader.executor.prefix_unsupported_reason()
    tried = limited(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model.encode(TEXTS)
    assert len(tried) == 1
    tried = limited(3, ERRORS["cuda"])
    with pytest.raises(torch.OutOfMemoryError):
        model(model.preprocess(TEXTS))
    assert len(tried) == 1
    assert model.reader.executor.tokens_per_step == 8192
