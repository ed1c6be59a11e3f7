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
from valuembed.execution import executor
from valuembed.execution.compilation import seconds_of_pass
from valuembed.readout.readout import is_compiled
from valuembed.testing import tiny_checkpoint

TEXTS = some_texts(40)
LONG = "In front of every text stands the same long line, and here it comes : {text} . In one word :"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What this library said; torch has loggers of its own."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("valuembed")]


@pytest.fixture
def fresh() -> None:
    """Nothing that earlier tests compiled is found."""
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def counter() -> Iterator[CompileCounterWithBackend]:
    """The backend of all tests: layers that one of them has compiled are found by those after it."""
    yield CompileCounterWithBackend("eager")
    torch._dynamo.reset()


@pytest.fixture
def graphs(counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled, by a backend that runs it as it is."""
    real = nn.Module.compile

    def watched(module: nn.Module, **options: Any) -> None:
        real(module, backend=counter, **options)

    monkeypatch.setattr(nn.Module, "compile", watched)
    # Else layers of too many kinds would go on as they are, and nobody would notice.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counter


@pytest.mark.slow
class TestGivesTheSame:
    @pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
    def test_with_the_real_compiler(self, tmp_path, fresh):
        # It takes seconds for each shape: no size of a trial is a number of heads, for which it would make another.
        folder = tiny_checkpoint(
            tmp_path / "model", "qwen3", tokenizer="byte_level_bos", num_hidden_layers=2, num_attention_heads=8
        )
        texts = TEXTS[:6]
        expected = valuembed.load(folder, "aligned_wva", dtype="float32").encode(texts)
        model = valuembed.load(folder, "aligned_wva", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)
        assert is_compiled(model.reader.model, model.reader.plan.decoder_spec)

    # A window of which no other size of the decoder is one: sizes that are alike are compiled as one, then apart.
    @pytest.mark.parametrize(
        ("architecture", "settings"), [("gemma3_text", {"sliding_window": 13, "num_attention_heads": 8}), ("gpt2", {})]
    )
    def test_for_other_families(self, tmp_path, fresh, graphs, architecture, settings):
        folder = tiny_checkpoint(tmp_path / "model", architecture, tokenizer="byte_level_bos", **settings)
        expected = valuembed.load(folder, "aligned_wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "aligned_wva", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        assert is_compiled(model.reader.model, model.reader.plan.decoder_spec)

    def test_for_every_signal(self, folder, fresh, graphs):
        before = graphs.frame_count
        for method in ("aligned_va", "aligned_wva", "hidden_mean"):
            expected = valuembed.load(folder, method, dtype="float32").encode(TEXTS)
            model = valuembed.load(folder, method, dtype="float32", compile=True)
            # The first compiles, when it is called; models of the same layers after it find most of theirs there.
            assert (graphs.frame_count == before) == (method == "aligned_va")
            np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6, err_msg=method)
            assert is_compiled(model.reader.model, model.reader.plan.decoder_spec)
            compiled = graphs.frame_count
            model.encode(TEXTS)
            assert graphs.frame_count == compiled > before

    def test_on_the_packed_layout(self, folder, graphs):
        expected = valuembed.load(folder, "wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "wva", dtype="float32", compile=True)
        model.reader.executor.layout = "packed"
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        assert is_compiled(model.reader.model, model.reader.plan.decoder_spec)


@pytest.mark.slow
class TestOnceForAll:
    def test_layers_and_shapes_share_what_is_compiled(self, tmp_path, graphs):
        counts = []
        # Two layers are few enough for the compiler to make something for each, twelve are too many.
        for layers in (2, 12):
            name = f"model-{layers}"
            folder = tiny_checkpoint(tmp_path / name, "qwen3", tokenizer="byte_level_bos", num_hidden_layers=layers)
            for template in ("{text}", LONG):
                model = valuembed.load(folder, "va", layers=[layers - 1], template=template, compile=True)
                model.reader.executor.tokens_per_step = 300
                model.encode(TEXTS)
                counts.append(graphs.frame_count)
                # Other numbers of texts and tokens, single texts among them.
                for some in (TEXTS[:9], TEXTS[3:20], TEXTS[:1], [text[:9] for text in TEXTS]):
                    model.encode(some)
                assert graphs.frame_count == counts[-1]
        # The deeper decoder finds all that the other one's layers needed.
        assert counts[1:] == [counts[1]] * 3


@pytest.mark.slow
class TestStaysOutOfTheWay:
    def test_training_copies_and_what_is_saved_get_plain_layers(self, folder, graphs, tmp_path):
        model = valuembed.load(folder, "wva", dtype="float32", compile=True)
        expected = model.encode(TEXTS)
        before = graphs.op_count, graphs.frame_count
        for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert not is_compiled(made.reader.model, made.reader.plan.decoder_spec)
            np.testing.assert_allclose(made.encode(TEXTS), expected, atol=1e-6)
        model.save(str(tmp_path / "saved"))
        np.testing.assert_allclose(valuembed.load(tmp_path / "saved").encode(TEXTS), expected, atol=1e-6)
        model(model.preprocess(TEXTS[:3]))["sentence_embedding"].sum().backward()
        assert (graphs.op_count, graphs.frame_count) == before
        assert model.reader.model.layers[0].self_attn.v_proj.weight.grad is not None

    def test_a_compiler_that_fails(self, folder, fresh, monkeypatch, caplog):
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
        assert not is_compiled(model.reader.model, model.reader.plan.decoder_spec)

    def test_a_compiler_that_is_wrong(self, folder, monkeypatch, caplog):
        def double(layer: nn.Module, **options: Any) -> None:
            layer._compiled_call_impl = lambda *args, **kwargs: 2 * layer._call_impl(*args, **kwargs)

        monkeypatch.setattr(nn.Module, "compile", double)
        expected = valuembed.load(folder, "va", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "va", dtype="float32", compile=True)
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        (said,) = warned(caplog)
        assert said.startswith("layers are not compiled: off by ")


@pytest.mark.slow
class TestAuto:
    """What is compiled, by what passes are said to take."""

    @pytest.fixture
    def seconds(self, monkeypatch):
        """Seconds of the passes that are timed, in their order."""
        given = []
        monkeypatch.setattr(executor, "seconds_of_pass", lambda model, plan, *, packed: given.pop(0))
        return given

    def encoded(self, folder, monkeypatch, after):
        monkeypatch.setattr(executor, "TRIAL_AFTER_SECONDS", after)
        expected = valuembed.load(folder, "wva", dtype="float32").encode(TEXTS)
        model = valuembed.load(folder, "wva", dtype="float32", compile="auto")
        for _ in range(2):
            np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
        return is_compiled(model.reader.model, model.reader.plan.decoder_spec), model.reader.executor.compile

    def test_layers_that_are_faster_are_kept(self, folder, graphs, monkeypatch, seconds):
        seconds += [1.0, 0.9]
        assert self.encoded(folder, monkeypatch, 0.0) == (True, True)
        assert seconds == []

    def test_layers_that_are_hardly_faster_are_taken_back(self, folder, graphs, monkeypatch, seconds, caplog):
        seconds += [1.0, 0.97]
        with caplog.at_level(logging.INFO, logger="valuembed"):
            assert self.encoded(folder, monkeypatch, 0.0) == (False, False)
        assert warned(caplog) == ["layers are not compiled: they are 1.03 times as fast"]

    def test_nothing_is_compiled_before_there_was_work_enough(self, folder, graphs, monkeypatch, seconds):
        before = graphs.frame_count
        assert self.encoded(folder, monkeypatch, 1e9) == (False, "auto")
        assert graphs.frame_count == before

    def test_a_compiler_that_fails_is_asked_once(self, folder, fresh, monkeypatch, seconds, caplog):
        def fail(*args: Any, **options: Any) -> Any:
            raise RuntimeError("no compiler")

        real = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda module, **options: real(module, backend=fail, **options))
        seconds += [1.0]
        assert self.encoded(folder, monkeypatch, 0.0) == (False, False)
        (said,) = warned(caplog)
        assert said.startswith("layers are not compiled: ")

    def test_a_pass_is_timed(self, folder):
        reader = valuembed.load(folder, "va", dtype="float32").reader
        for packed in (False, True):
            assert seconds_of_pass(reader.model, reader.plan, packed=packed) > 0


@pytest.mark.parametrize("given", ["always", 1])
def test_anything_else_is_an_error(folder, given):
    with pytest.raises(RecipeError, match=rf"^compile={given!r} is unknown; legal: True, False, 'auto'$"):
        valuembed.load(folder, "va", compile=given)
