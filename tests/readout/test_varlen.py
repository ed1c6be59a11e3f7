"""The packed lane gives what the padded one gives, wherever it is taken."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import pytest
import torch
from once import EVERY_FAMILY, traced
from some_texts import some_texts

import valuembed
from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.execution import capabilities
from valuembed.execution.capabilities import packed_up_to, prefix_unsupported_reason
from valuembed.execution.executor import Executor, PrefixCache
from valuembed.execution.scheduler import Packing
from valuembed.readout import varlen
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PackedLayout
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import HYBRIDS, tiny_checkpoint, tiny_config, tiny_decoder
from valuembed.tokenization.tokenizer import TokenSequence

pytestmark = pytest.mark.slow

TEXTS = some_texts(40)
LENGTHS = (21, 12, 11, 10)
SHARED = 9
RECIPES = [
    METHODS["va"],
    METHODS["aligned_va"],
    METHODS["wva"],
    METHODS["aligned_wva"],
    Recipe(signal="hidden", weights="mean", layers=[1]),
    Recipe(signal="hidden", weights="last", layers=[1]),
    METHODS["hidden_mean"],
]


@lru_cache(maxsize=2)
def _opened(architecture):
    decoder_spec = traced(architecture)
    model = tiny_decoder(architecture)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def _plans(decoder_spec):
    layers = decoder_spec.value_layers[:-1]
    return [
        Plan(recipe, layers if recipe.signal == "value" else recipe.layers or (), decoder_spec)
        for recipe in RECIPES
        if not recipe.aligned
        or recipe.weights == "last"
        or all(decoder_spec.block(layer).projection for layer in layers)
    ]


def _texts(lengths=LENGTHS, shared=SHARED):
    """Sequences that begin with the same tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 500, (len(lengths), max(lengths)), generator=generator)
    ids[:, :shared] = ids[0, :shared]
    return [
        (TokenSequence(row[:length], (shared, length), prefix=shared),)
        for row, length in zip(ids.tolist(), lengths, strict=True)
    ]


def _read(model, plans, texts, up_to=0, prefixes=None):
    """The vectors of texts in their order, each of the plans."""
    executor = Executor(model, plans[0])
    executor.tokens_per_step = 8192
    batches = executor.schedule(texts, Packing(up_to), share=prefixes is not None)
    order = torch.tensor([row for batch in batches for row in batch.rows]).argsort()
    vectors = [executor.read(batch, plans, prefixes) for batch in batches]
    return [torch.cat(of_plan)[order] for of_plan in zip(*vectors, strict=True)]


def _relative(one, other):
    return float(((one - other).norm(dim=1) / one.norm(dim=1)).max())


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
@torch.inference_mode()
def test_every_family_gives_the_same_or_says_why_it_cannot(architecture, caplog):
    model, decoder_spec = _opened(architecture)
    plans, texts = _plans(decoder_spec), _texts()
    with caplog.at_level(logging.WARNING, logger="valuembed"):
        longest = packed_up_to(model, plans[0], "packed")
    said = [message for message in caplog.messages if message.startswith("texts are padded")]
    if architecture in HYBRIDS:
        assert said == [
            f"texts are padded, for in {type(model).__name__} it has layers whose state would leak from text to text"
        ]
    assert bool(said) == (longest == 0)
    if not longest:
        return
    padded = _read(model, plans, texts)
    for plan, one, other in zip(plans, padded, _read(model, plans, texts, longest), strict=True):
        assert _relative(one, other) < 1e-5, f"{plan.recipe.method}, {plan.recipe.weights}"
    if prefix_unsupported_reason(model, plans[0], packed=True):
        return
    behind = _read(model, plans, texts, longest, PrefixCache(model, decoder_spec))
    for plan, one, other in zip(plans, padded, behind, strict=True):
        assert _relative(one, other) < 1e-5, f"{plan.recipe.method}, {plan.recipe.weights}, behind a prefix"


@torch.inference_mode()
def test_most_families_take_it():
    usual = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "qwen3_moe", "gpt_neox")
    assert [name for name in usual if not packed_up_to(_opened(name)[0], _plans(_opened(name)[1])[0], "packed")] == []


@torch.inference_mode()
def test_texts_longer_than_a_window_are_padded():
    model, decoder_spec = _opened("mistral")
    window = model.config.sliding_window
    assert packed_up_to(model, _plans(decoder_spec)[0], "packed") == varlen.longest_text(model) == window == 8
    texts = _texts((21, 12, 8, 5), shared=2)
    shapes = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    mixed = _read(model, _plans(decoder_spec), texts, window)
    hook.remove()
    assert shapes == [(2, 21), (1, 8 + 5)]
    for one, other in zip(_read(model, _plans(decoder_spec), texts), mixed, strict=True):
        assert _relative(one, other) < 1e-5


class TestEncoder:
    @pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "hidden_mean", "meta_eol"])
    def test_gives_the_same(self, folder, method):
        model = valuembed.load(folder, method, dtype="float32")
        padded = model.encode(TEXTS)
        model.reader.executor.layout = "packed"
        shapes = []
        model.reader.model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        np.testing.assert_allclose(model.encode(TEXTS[:2]), padded[:2], atol=1e-6)
        # The trial pads once; from then on, and after that of a shared prefix, there is one row a pass.
        assert [rows for rows, _ in shapes].count(4) == 1
        with torch.inference_mode():
            model.reader.executor.prefix_unsupported_reason()
        shapes.clear()
        np.testing.assert_allclose(model.encode(TEXTS), padded, atol=1e-6)
        assert {rows for rows, _ in shapes} == {1}

    @pytest.mark.parametrize("method", ["va", "aligned_wva", "meta_eol"])
    def test_a_cpu_packs_where_padding_costs_more(self, folder, method):
        model = valuembed.load(folder, method, dtype="float32", device="cpu")
        mixed = [" ".join(["word"] * count) for count in (1, 2, 3, 5, 8, 13, 21, 34)]
        alike = ["one two three"] * 8
        model.encode(mixed)
        shapes = []
        model.reader.model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        packed = model.encode(mixed)
        assert {rows for rows, _ in shapes} == {1}
        shapes.clear()
        model.encode(alike)
        assert {rows for rows, _ in shapes} <= {1, 8}
        assert any(rows == 8 for rows, _ in shapes)
        shapes.clear()
        # Fewer are not worth a trial.
        few = model.encode(mixed[-3:])
        assert sum(rows for rows, _ in shapes) == 3 * len(model.recipe.template)
        np.testing.assert_allclose(few, packed[-3:], atol=1e-6)
        model.reader.executor.layout = "padded"
        np.testing.assert_allclose(packed, model.encode(mixed), atol=1e-6)

    def test_a_cpu_pads_where_another_kernel_was_asked_for(self, folder, caplog):
        model = valuembed.load(folder, "va", device="cpu", model_kwargs={"attn_implementation": "eager"})
        assert packed_up_to(model.reader.model, model.reader.plan) == 0
        assert caplog.messages == []

    def test_a_cpu_that_has_to_pad_says_nothing(self, caplog):
        with caplog.at_level(logging.INFO, logger="valuembed"):
            assert packed_up_to(_opened("gemma2")[0], _plans(_opened("gemma2")[1])[0]) == 0
        assert caplog.messages == []

    def test_a_shared_prefix_is_in_every_row_once(self, folder):
        template = "In front of every text stands the same long line, and here it comes : {text} . In one word :"
        model = valuembed.load(folder, "aligned_wva", template=template, dtype="float32")
        padded = model.encode(TEXTS)
        reader = model.reader
        reader.executor.layout = "packed"
        reader.executor.tokens_per_step = 400
        with torch.inference_mode():
            assert reader.executor.prefix_unsupported_reason() is None
        shapes = []
        reader.model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        np.testing.assert_allclose(model.encode(TEXTS), padded, atol=1e-6)
        tokens = sum(len(row.ids) for row in reader.tokenize_texts(TEXTS, None, None)[0])
        prefix = len(reader.texts.prefix(template))
        assert len(shapes) > 1
        assert sum(fed for _, fed in shapes) == tokens - (len(TEXTS) - len(shapes)) * prefix
        assert model.report.reused == len(TEXTS) * prefix

    def test_training_pads(self, folder):
        model = valuembed.load(folder, "va")
        model.reader.executor.layout = "packed"
        features = model.preprocess(TEXTS[:3])
        shapes = []
        model.reader.model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        model(features)["sentence_embedding"].sum().backward()
        assert sum(rows for rows, _ in shapes) == 3

    def test_the_choice_is_made_once(self, folder, monkeypatch):
        model = valuembed.load(folder, "va")
        model.reader.executor.layout = "packed"
        model.encode(TEXTS)
        monkeypatch.setattr("valuembed.execution.executor.packed_up_to", None)
        model.encode(TEXTS)


class TestReasons:
    def why(self, model, decoder_spec, caplog, layout="packed"):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="valuembed"):
            assert packed_up_to(model, _plans(decoder_spec)[0], layout) == 0
        (said,) = (message for message in caplog.messages if message.startswith("texts are padded"))
        return said.partition(f"{type(model).__name__} ")[2]

    def test_sinks_and_softcaps(self, caplog):
        assert self.why(*_opened("gpt_oss"), caplog) == "no kernel of the packed layout has sinks"
        assert self.why(*_opened("gemma2"), caplog) == "no kernel of the packed layout has a softcap"

    def test_heads_that_are_too_wide(self, caplog):
        decoder_spec = trace_architecture(tiny_config("qwen3", head_dim=264))
        model = tiny_decoder("qwen3", head_dim=264)
        assert self.why(model, decoder_spec, caplog) == "no kernel of the packed layout has heads of width 264"

    def test_no_kernel_for_a_precision(self, caplog, monkeypatch):
        model, decoder_spec = _opened("qwen3")
        monkeypatch.setattr(type(model), "device", torch.device("cuda"))
        assert self.why(model, decoder_spec, caplog, "auto") == "no kernel packs float32 on this device"

    def test_a_trial_that_differs(self, caplog, monkeypatch):
        # Rotary positions are relative, and may count on over the row; learned ones have to begin anew.
        model, decoder_spec = _opened("gpt2")
        monkeypatch.setattr(PackedLayout, "positions", property(lambda layout: torch.arange(layout.tokens)[None]))
        assert self.why(model, decoder_spec, caplog).startswith("a trial of the packed layout was off by 0.")

    def test_a_trial_that_fails(self, caplog, monkeypatch):
        model, decoder_spec = _opened("qwen3")

        def fail(*args):
            raise RuntimeError("no such kernel image")

        monkeypatch.setattr(varlen, "attend", fail)
        assert self.why(model, decoder_spec, caplog) == "a trial of the packed layout failed: RuntimeError"


class TestTorchKernel:
    """Torch's function, as its releases have it."""

    STATES = torch.zeros(7, 4, 8), torch.zeros(7, 2, 8), torch.zeros(7, 2, 8)

    def given(self):
        layout = PackedLayout([4, 3], [(0, 4), (0, 3)])
        told = {}

        def newer(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
            told.update(scale=scale, window_size=window_size, enable_gqa=enable_gqa)
            return cu_seq_q.tolist(), cu_seq_k.tolist(), max_q, max_k

        def torch_2_11(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
            told.update(scale=scale, window_size=window_size)
            return cu_seq_q.tolist(), cu_seq_k.tolist(), max_q, max_k

        def torch_2_10(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
            return None

        return layout, told, newer, torch_2_11, torch_2_10

    def test_a_release_is_given_what_it_takes(self):
        layout, told, newer, torch_2_11, torch_2_10 = self.given()
        where = ([0, 4, 7], [0, 4, 7], 4, 4)
        assert varlen.torch_kernel(newer)(*self.STATES, layout, 0.5) == where
        assert told == {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": True}
        told.clear()
        assert varlen.torch_kernel(torch_2_11)(*self.STATES, layout, 0.5) == where
        assert told == {"scale": 0.5, "window_size": (-1, 0)}
        assert varlen.torch_kernel(torch_2_10) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize("method", ["va", "aligned_va", "wva", "aligned_wva", "meta_eol"])
    @pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
    def test_the_fast_kernel_gives_the_same(self, tmp_path, method, architecture):
        tiny_checkpoint(tmp_path / "model", architecture, tokenizer="byte_level_bos")
        model = valuembed.load(tmp_path / "model", method, dtype="bfloat16", device="cuda")
        assert capabilities.packed_up_to(model.reader.model, model.reader.plan) > 0
        packed = model.encode(TEXTS)
        model.reader.executor.layout = "padded"
        cosines = (packed * model.encode(TEXTS)).sum(axis=1)
        assert cosines.min() > 0.999

    def test_float32_is_padded(self, folder):
        model = valuembed.load(folder, "va", dtype="float32", device="cuda")
        assert capabilities.packed_up_to(model.reader.model, model.reader.plan) == 0
