"""Compiled layers give what the others give, are compiled once for all, and never stand in the way."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from some_texts import some_texts
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import valuembed
from valuembed.errors import RecipeError
from valuembed.readout.readout import is_compiled
from valuembed.testing import tiny_checkpoint

TEXTS = some_texts(40)
LONG = "In front of every text stands the same long line, and here it comes : {text} . In one word :"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this library said; torch has loggers of its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("valuembed")]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts what is compiled, by a backend that runs it as it is."""
    counter = CompileCounterWithBackend("eager")
    real = nn.Module.compile

    def watched(module: nn.Module, **options: Any) -> None:
        real(module, backend=counter, **options)

    monkeypatch.setattr(nn.Module, "compile", watched)
    return counter


@pytest.mark.slow
class TestGivesTheSame:
    def test_for_every_signal(self, folder, graphs):
        for method in ("aligned_va", "aligned_wva", "hidden_mean"):
            expected = valuembed.load(folder, method, dtype="float32").encode(TEXTS)
            model = valuembed.load(folder, method, dtype="float32", compile=True)
            # The first compiles, when it is called; models of the same layers after it find most of theirs there.
            assert (graphs.frame_count == 0) == (method == "aligned_va")
            np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6, err_msg=method)
            assert is_compiled(model.reader.model)
            compiled = graphs.frame_count
            model.encode(TEXTS)
            assert graphs.frame_count == compiled > 0

    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
    def test_with_the_real_compiler(self, folder):
        expected = valuembed.load(folder, "aligned_wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "aligned_wva", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-5)
        assert is_compiled(model.reader.model)

    @pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2"])
    def test_for_other_families(self, tmp_path, graphs, architecture):
        folder = tiny_checkpoint(tmp_path / "model", architecture, tokenizer="byte_level_bos")
        expected = valuembed.load(folder, "aligned_wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "aligned_wva", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        assert is_compiled(model.reader.model)

    def test_on_the_packed_layout(self, folder, graphs):
        expected = valuembed.load(folder, "wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "wva", dtype="float32", compile=True)
        model.reader.executor.layout = "packed"
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        assert is_compiled(model.reader.model)


@pytest.mark.slow
class TestOnceForAll:
    @pytest.mark.parametrize("template", ["{text}", LONG])
    def test_layers_and_shapes_share_what_is_compiled(self, tmp_path, graphs, template):
        counts = []
        # Two layers are few enough for the compiler to make something for each, twelve are too many.
        for layers in (2, 12):
            torch._dynamo.reset()
            graphs.frame_count = 0
            name = f"model-{layers}"
            folder = tiny_checkpoint(tmp_path / name, "qwen3", tokenizer="byte_level_bos", num_hidden_layers=layers)
            model = valuembed.load(folder, "va", layers=[layers - 1], template=template, compile=True)
            model.reader.executor.tokens_per_step = 300
            model.encode(TEXTS)
            counts.append(graphs.frame_count)
            # Other numbers of texts and tokens, single texts among them.
            for some in (TEXTS[:9], TEXTS[3:20], TEXTS[:1], [text[:9] for text in TEXTS]):
                model.encode(some)
            assert graphs.frame_count == counts[-1]
        assert counts[0] == counts[1]


@pytest.mark.slow
class TestStaysOutOfTheWay:
    def test_training_copies_and_what_is_saved_get_plain_layers(self, folder, graphs, tmp_path):
        model = valuembed.load(folder, "wva", dtype="float32", compile=True)
        expected = model.encode(TEXTS)
        before = graphs.op_count, graphs.frame_count
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not is_compiled(made.reader.model)
            np.testing.assert_allclose(made.encode(TEXTS), expected, atol=1e-6)
        model.save(str(tmp_path / "saved"))
        np.testing.assert_allclose(valuembed.load(tmp_path / "saved").encode(TEXTS), expected, atol=1e-6)
        model(model.preprocess(TEXTS[:3]))["sentence_embedding"].sum().backward()
        assert (graphs.op_count, graphs.frame_count) == before
        assert model.reader.model.layers[0].self_attn.v_proj.weight.grad is not None

    def test_a_compiler_that_fails(self, folder, monkeypatch, caplog):
        def fail(*args: Any, **options: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\nlook here")

        real = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda module, **options: real(module, backend=fail, **options))
        expected = valuembed.load(folder, "va", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "va", dtype="float32", compile=True)
        with caplog.at_level(logging.WARNING, logger="valuembed"):
            np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
            model.encode(TEXTS)
        (said,) = warned(caplog)
        assert said.startswith("layers are not compiled: ")
        assert "No working C++ compiler found" in said
        assert not is_compiled(model.reader.model)

    def test_a_compiler_that_is_wrong(self, folder, monkeypatch, caplog):
        def double(graph: Any, example: Any) -> Any:
            return lambda *given: tuple(
                2 * out if torch.is_tensor(out) and out.is_floating_point() else out for out in graph(*given)
            )

        real = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda module, **options: real(module, backend=double, **options))
        expected = valuembed.load(folder, "va", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "va", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        (said,) = warned(caplog)
        assert said.startswith("layers are not compiled: off by ")


@pytest.mark.parametrize("given", ["auto", 1])
def test_anything_else_is_an_error(folder, given):
    with pytest.raises(RecipeError, match=rf"^compile={given!r} is unknown; legal: True, False$"):
        valuembed.load(folder, "va", compile=given)
