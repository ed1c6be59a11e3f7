"""The options that make the tests take this machine for another one do so."""

from __future__ import annotations

import pytest
import torch
from other_machines import BOUNDARY, STEP, half_precision, moved, shift_weights
from saved_models import assert_close, assert_same_weights, assert_saved_alike

from valuembed import load
from valuembed.backbone import dtypes
from valuembed.testing import tiny_checkpoint


def places(model: torch.nn.Module) -> set[int]:
    """Where the parameters of a model lie, relative to the boundaries that kernels like."""
    return {parameter.data_ptr() % BOUNDARY for parameter in model.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("distance", range(0, BOUNDARY, STEP))
def test_a_moved_tensor_is_the_same_elsewhere(distance: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(35, dtype=dtype).view(7, 5)
    there = moved(tensor, distance)
    assert there.data_ptr() % BOUNDARY == distance
    assert torch.equal(there, tensor)
    assert there.is_contiguous()


def test_each_load_has_its_weights_elsewhere(folder, monkeypatch) -> None:
    shift_weights(monkeypatch)
    one, other = load(folder, "va"), load(folder, "va")
    (first,), (second,) = places(one.reader.model), places(other.reader.model)
    assert first != second
    assert_saved_alike(one, other, ["a cat", "rain"])


def test_tied_weights_stay_tied(sliding, monkeypatch) -> None:
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(sliding)
    shift_weights(monkeypatch)
    model = AutoModelForCausalLM.from_pretrained(sliding)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_same_weights(model, stock)


@pytest.mark.parametrize("fast", [True, False])
def test_half_precision_is_taken_as_it_is_said_to_be(fast, tmp_path, monkeypatch) -> None:
    half_precision(monkeypatch, fast=fast)
    for dtype in (torch.bfloat16, torch.float16):
        model = load(tiny_checkpoint(tmp_path / str(dtype), dtype=dtype), "va", device="cpu")
        assert model.dtype == (dtype if fast else torch.float32)
    # Of another device the library still judges by itself.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not fast)
    assert dtypes.has_fast("bfloat16", "cuda") is not fast


def test_what_is_too_far_apart_is_told() -> None:
    assert_close([1.0, 2.0], [1.0, 2.0 + 1e-6])
    with pytest.raises(AssertionError, match=r"^vectors differ by up to 1\.00e-05, and may by 1\.00e-06"):
        assert_close([1.0, 0.5], [1.0, 0.50001])
    assert_close([1.0, 0.5], [1.0, 0.501], dtype=torch.bfloat16)
    assert_close([1000.0], [1000.0005])
