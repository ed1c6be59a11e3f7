"""Several spans of a text in one pass, against the float64 reference, however the texts lie."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from once import traced
from reference import doubled, references

from valuembed.backbone.plan import Plan
from valuembed.execution import parts as parts_file
from valuembed.execution.executor import Executor, PrefixCache
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.readout import Readout
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import tiny_decoder, tiny_tokenizer
from valuembed.tokenization.sequences import TokenSequence
from valuembed.tokenization.tokenizer import TextTokenizer

pytestmark = pytest.mark.slow

LENGTHS = (21, 9, 4)
# Parts that overlap, that are all of a text, that are one token; as many of each text for the reference's sake.
SPANS = (
    ((0, 21), (3, 9), (6, 21), (20, 21)),
    ((0, 9), (1, 2), (5, 9), (2, 8)),
    ((0, 4), (0, 1), (1, 3), (3, 4)),
)
RECIPES = {"va": METHODS["va"], "aligned_va": METHODS["aligned_va"]}
FAMILIES = ("deepseek_v3", "gemma3_text", "gpt2", "lfm2", "mistral", "qwen3")


@lru_cache(maxsize=2)
def _opened(architecture):
    decoder_spec = traced(architecture)
    model = tiny_decoder(architecture)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def _ids():
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(5, 500, (length,), generator=generator).tolist() for length in LENGTHS]


def _sequences(prefix=0):
    return [
        (TokenSequence(ids, spans[0], spans=spans, prefix=prefix),) for ids, spans in zip(_ids(), SPANS, strict=True)
    ]


@lru_cache(maxsize=2)
def _expected(architecture):
    """By method ``[12, width]``, the spans of the first text before those of the second."""
    model, decoder_spec = _opened(architecture)
    layers = decoder_spec.value_layers
    rows = {name: [] for name in (*RECIPES, "hidden_mean")}
    for ids, spans in zip(_ids(), SPANS, strict=True):
        one, length = torch.tensor([ids]), len(ids)
        found = references(
            architecture,
            model,
            one,
            torch.ones_like(one),
            torch.arange(length)[None],
            [torch.tensor([span]) for span in spans],
            RECIPES,
            layers,
        )
        for name in RECIPES:
            rows[name] += [found[number, name][0] for number in range(len(spans))]
        with doubled(model) as stock:
            states = stock(input_ids=one, use_cache=False)[0][0]
        rows["hidden_mean"] += [states[start:end].mean(dim=0) for start, end in spans]
    return {name: torch.stack(of_name) for name, of_name in rows.items()}


def _plans(decoder_spec):
    layers = decoder_spec.value_layers
    of_values = [Plan(recipe, layers, decoder_spec) for recipe in RECIPES.values()]
    return [*of_values, Plan(METHODS["hidden_mean"], (), decoder_spec)]


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("architecture", FAMILIES)
@torch.inference_mode()
def test_every_span_is_the_mean_of_its_tokens(architecture, layout):
    model, decoder_spec = _opened(architecture)
    executor = Executor(model, _plans(decoder_spec)[0])
    executor.layout = layout
    tolerance = 1e-4 if architecture == "lfm2" else 1e-5
    vectors = {name: [] for name in _expected(architecture)}
    batches = executor.schedule(_sequences(), executor.packing(8))
    for batch in batches:
        read = executor.read(batch, _plans(decoder_spec))
        for name, of_plan in zip(vectors, read, strict=True):
            vectors[name] += zip(batch.rows, torch.split(of_plan, batch.counts), strict=True)
    for name, expected in _expected(architecture).items():
        found = torch.cat([of_text for _, of_text in sorted(vectors[name], key=lambda pair: pair[0])])
        error = (found - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < tolerance, name


@torch.inference_mode()
def test_behind_a_shared_prefix_in_steps_of_any_size(monkeypatch):
    model, decoder_spec = _opened("qwen3")
    # Three texts that begin with the same five tokens, of which no span is made.
    head = [7, 8, 9, 10, 11]
    spans = [tuple((start + 5, end + 5) for start, end in of_text) for of_text in SPANS]
    sequences = [
        (TokenSequence(head + ids, of_text[0], spans=of_text, prefix=5),)
        for ids, of_text in zip(_ids(), spans, strict=True)
    ]
    plan = Plan(METHODS["aligned_va"], decoder_spec.value_layers, decoder_spec)
    hidden = Plan(Recipe(signal="hidden", weights="mean", layers=[1]), (1,), decoder_spec)
    executor = Executor(model, plan)
    expected = executor.read(executor.batch(sequences), [plan, hidden])
    executor.tokens_per_step = 1
    for batch, prefixes in (
        (executor.batch(sequences), None),
        (executor.batch(sequences, share=True), PrefixCache(model, decoder_spec)),
    ):
        for one, other in zip(executor.read(batch, [plan, hidden], prefixes), expected, strict=True):
            assert one.shape[0] == 12
            assert (one - other).norm(dim=1).max() < 1e-5 * other.norm(dim=1).max()


@torch.inference_mode()
def test_a_step_that_does_not_fit_is_halved_with_its_spans(monkeypatch):
    model, decoder_spec = _opened("qwen3")
    plan = Plan(METHODS["va"], decoder_spec.value_layers, decoder_spec)
    executor = Executor(model, plan)
    expected = executor.read(executor.batch(_sequences()), [plan])[0]
    run = Readout.run

    def full(self, **inputs):
        if inputs["input_ids"].numel() > 30:
            raise torch.OutOfMemoryError
        return run(self, **inputs)

    monkeypatch.setattr(Readout, "run", full)
    executor.tokens_per_step = 64
    found = executor.read(executor.batch(_sequences()), [plan])[0]
    assert executor.tokens_per_step < 64
    assert (found - expected).abs().max() < 1e-6


@torch.inference_mode()
def test_texts_are_tokenized_in_portions_and_come_back_in_order(monkeypatch):
    model, decoder_spec = _opened("qwen3")
    plan = Plan(METHODS["va"], decoder_spec.value_layers, decoder_spec)
    executor, tokenizer = Executor(model, plan), TextTokenizer(tiny_tokenizer())
    texts = ["rain fell " * (at % 4 + 1) for at in range(11)]
    parts = [[(0, 4)] * (at % 3) + [(2, 9)] for at in range(11)]
    whole = parts_file.read_parts(executor, tokenizer, texts, parts, plan)
    monkeypatch.setattr("valuembed.execution.stream.TEXTS_PER_WINDOW", 3)
    monkeypatch.setattr("valuembed.execution.stream.PREFETCH_FROM", 1)
    found = parts_file.read_parts(executor, tokenizer, texts, parts, plan)
    assert found.vectors.shape[0] == sum(map(len, parts))
    assert (found.vectors - whole.vectors).abs().max() < 1e-6
    assert found.tokens == whole.tokens
    assert found.report == whole.report
    assert [len(of_text) for of_text in found.tokens] == [len(of_text) for of_text in parts]
