"""Norms that are one operation give what the others give, and are taken back without a trace."""

from __future__ import annotations

import copy
import logging
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from some_texts import some_texts

import valuembed
from valuembed.testing import tiny_checkpoint, tiny_decoder, tiny_tokenizer

TEXTS = some_texts(12)


@pytest.fixture
def calls(monkeypatch):
    """How often torch's operation ran on a step; trials of single norms aside."""
    seen = []
    real = F.rms_norm

    def watched(states, *given):
        seen.append(tuple(states.shape))
        return real(states, *given)

    monkeypatch.setattr("valuembed.execution.fused_norms.F.rms_norm", watched)
    return seen


def fused(model):
    return [name for name, module in model.reader.model.named_modules() if "forward" in vars(module)]


def larger_norms(folder):
    """A model whose norms have weights that are told from ones and zeros."""
    model = valuembed.load(folder, "aligned_wva", dtype="float32", device="cpu")
    with torch.no_grad():
        for module in model.reader.model.modules():
            if type(module).__name__.endswith("Norm"):
                module.weight.add_(torch.linspace(-0.5, 0.5, len(module.weight)))
    return model


# What a layer of each has: before attention and after it, and of queries and keys.
@pytest.mark.parametrize(("architecture", "of_a_layer"), [("llama", 2), ("qwen3", 4), ("gemma3_text", 0), ("gpt2", 0)])
def test_gives_the_same(tmp_path, calls, architecture, of_a_layer):
    model = larger_norms(tiny_checkpoint(tmp_path / "model", architecture, tokenizer="byte_level_bos"))
    expected = model.encode(TEXTS)
    calls.clear()
    model.reader.executor.fuse = True
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    assert len(fused(model)) == of_a_layer * len(model.reader.model.layers) if of_a_layer else not fused(model)
    calls.clear()
    model.encode(TEXTS)
    # A pass ends before the last layer's second norm.
    assert bool(calls) == bool(of_a_layer)


def test_is_what_cuda_does_and_no_cpu(folder, monkeypatch):
    tried = []
    monkeypatch.setattr("valuembed.execution.executor.fuse_norms", lambda model, plan: tried.append(plan))
    model = valuembed.load(folder, "va", device="cpu")
    model.encode(TEXTS)
    assert tried == []
    with monkeypatch.context() as patch:
        patch.setattr(type(model.reader.model), "device", torch.device("cuda"))
        with torch.inference_mode():
            model.reader.executor._set_norms()
            model.reader.executor._set_norms()
    assert tried == [model.reader.plan]


def test_training_copies_and_saved_models_have_their_own(folder, calls, tmp_path):
    model = larger_norms(folder)
    model.reader.executor.fuse = True
    expected = model.encode(TEXTS)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_allclose(made.encode(TEXTS), expected, atol=1e-6)
        # A copy's norms have the copy's weights.
        for module in made.reader.model.modules():
            if type(module).__name__.endswith("Norm"):
                torch.nn.init.ones_(module.weight)
        assert np.abs(made.encode(TEXTS) - expected).max() > 1e-3
    np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
    model.save(str(tmp_path / "saved"))
    np.testing.assert_allclose(valuembed.load(tmp_path / "saved", device="cpu").encode(TEXTS), expected, atol=1e-6)
    calls.clear()
    model(model.preprocess(TEXTS[:3]))["sentence_embedding"].sum().backward()
    assert calls == []
    assert model.reader.model.layers[0].input_layernorm.weight.grad is not None


def test_is_taken_back_for_the_compiler(folder, monkeypatch):
    model = valuembed.load(folder, "va", dtype="float32", device="cpu")
    executor = model.reader.executor
    executor.fuse = True
    model.encode(TEXTS)
    assert fused(model)
    when_compiled = []

    def compile_layers(*given, **options):
        when_compiled.append(fused(model))
        return "no compiler"

    monkeypatch.setattr("valuembed.execution.executor.compile_layers", compile_layers)
    executor.compile = True
    model.encode(TEXTS)
    assert when_compiled == [[]]
    # Where nothing could be compiled, later steps fuse them.
    model.encode(TEXTS)
    assert fused(model)
    executor.fuse = False
    model.encode(TEXTS)
    assert fused(model) == []


def test_a_kernel_that_is_wrong_or_fails(folder, monkeypatch, caplog):
    model = valuembed.load(folder, "va", dtype="float32", device="cpu")
    expected = model.encode(TEXTS)
    real = F.rms_norm

    def wrong(states, *given):
        return real(states, *given) * (1 if states.dim() == 2 else 2)

    def failing(states, *given):
        if states.dim() > 2:
            raise RuntimeError("no such kernel image")
        return real(states, *given)

    for kernel, said in (
        (wrong, "norms are not fused: off by "),
        (failing, "norms are not fused: RuntimeError: no su"),
    ):
        monkeypatch.setattr("valuembed.execution.fused_norms.F.rms_norm", kernel)
        model.reader.executor.fuse, model.reader.executor._fused = True, False
        with caplog.at_level(logging.WARNING, logger="valuembed"):
            np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
            model.encode(TEXTS)
        (message,) = [one for one in caplog.messages if one.startswith("norms are")]
        assert message.startswith(said)
        assert fused(model) == []
        caplog.clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_kernel_gives_the_same(tmp_path, architecture):
    tiny_checkpoint(tmp_path / "model", architecture, tokenizer="byte_level_bos")
    model = valuembed.load(tmp_path / "model", "aligned_wva", dtype="bfloat16", device="cuda")
    vectors = model.encode(TEXTS)
    assert fused(model)
    model.reader.executor.fuse = False
    cosines = (vectors * model.encode(TEXTS)).sum(axis=1)
    assert fused(model) == []
    assert cosines.min() > 0.999


def test_a_wrapped_model_keeps_its_own():
    decoder = tiny_decoder("qwen3", num_hidden_layers=2)
    encoder = valuembed.wrap(decoder, tiny_tokenizer("byte_level_bos"), "va")
    expected = encoder.encode(TEXTS)
    encoder.reader.executor.fuse = True
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-6)
    assert fused(encoder)
    assert not any("forward" in vars(module) for module in decoder.modules())
    # What becomes of the norm that both share counts.
    with torch.no_grad():
        decoder.layers[0].input_layernorm.weight.mul_(torch.linspace(0.1, 2, 32))
    assert np.abs(encoder.encode(TEXTS) - expected).max() > 1e-3
