"""What a template puts in front of every text is computed once, and nobody can tell from the vectors."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from once import EVERY_FAMILY, traced
from some_texts import some_texts

import valuembed
from valuembed.backbone.plan import Plan
from valuembed.execution import executor
from valuembed.execution.capabilities import prefix_unsupported_reason
from valuembed.execution.executor import Executor, PrefixCache
from valuembed.execution.scheduler import Batch
from valuembed.models.multi_readout import MultiReadout
from valuembed.readout.hooks import install_attention_hooks
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import (
    HYBRIDS,
    TOKENIZERS,
    tiny_checkpoint,
    tiny_decoder,
    tiny_tokenizer,
)
from valuembed.tokenization.tokenizer import TextTokenizer, TokenSequence

pytestmark = pytest.mark.slow

TEXTS = some_texts(40)
LONG = "In front of every text stands the same long line, {prompt}and here it comes : {text} . In one word :"
SIGNALS = {
    "va": METHODS["va"],
    "aligned_va": METHODS["aligned_va"],
    "wva": METHODS["wva"],
    "aligned_wva": METHODS["aligned_wva"],
    "mean of a layer": Recipe(signal="hidden", weights="mean", layers=[1]),
    "last of a layer": Recipe(signal="hidden", weights="last", layers=[1]),
    "mean at the end": METHODS["hidden_mean"],
}
REASONS = (
    "it has layers that keep a state instead of keys and values",
    "its attention has windows",
    "its rotary frequencies depend on the longest text",
)
WINDOWED = ("mistral", "gemma3_text", "phi3", "cohere2", "gpt_oss")


@lru_cache(maxsize=2)
def _opened(architecture):
    decoder_spec = traced(architecture)
    model = tiny_decoder(architecture)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def _texts():
    """Sequences of 21, 12, 11 and 10 tokens that share their first 9."""
    generator = torch.Generator().manual_seed(3)
    prefix = torch.randint(5, 500, (9,), generator=generator)
    ids = torch.randint(5, 500, (4, 21), generator=generator)
    ids[:, :9] = prefix
    lengths = (21, 12, 11, 10)
    return [
        (TokenSequence(row[:length], (9, length), prefix=9),) for row, length in zip(ids.tolist(), lengths, strict=True)
    ]


@pytest.mark.parametrize("architecture", EVERY_FAMILY)
@torch.inference_mode()
def test_every_family_gives_the_same_or_says_why_it_cannot(architecture):
    model, decoder_spec = _opened(architecture)
    plan = Plan(SIGNALS["va"], decoder_spec.value_layers[:-1], decoder_spec)
    reason = prefix_unsupported_reason(model, plan)
    if architecture == "doge":
        # Its attention makes a mask of its own, for as many keys as there are queries.
        assert reason == "a trial of it failed: RuntimeError"
    else:
        assert reason in (None, *REASONS)
    if architecture in HYBRIDS:
        assert reason == REASONS[0]
    if architecture in WINDOWED:
        assert reason == REASONS[1]
    if reason:
        return
    layers = decoder_spec.value_layers[:-1]
    plans = [
        Plan(recipe, layers if recipe.signal == "value" else recipe.layers or (), decoder_spec)
        for recipe in SIGNALS.values()
        if not recipe.aligned
        or recipe.weights == "last"
        or all(decoder_spec.block(layer).projection for layer in layers)
    ]
    runs, texts = Executor(model, plans[0]), _texts()
    whole = runs.read(Batch.of(range(4), texts), plans)
    shared = runs.read(Batch.of(range(4), texts, share=True), plans, PrefixCache(model, decoder_spec))
    for plan, one, other in zip(plans, whole, shared, strict=True):
        error = ((one - other).norm(dim=1) / one.norm(dim=1)).max()
        assert error < 1e-5, f"{plan.recipe.method}, {plan.recipe.weights}: largest relative error {error:.1e}"


def _plan(architecture):
    decoder_spec = _opened(architecture)[1]
    return Plan(SIGNALS["va"], decoder_spec.value_layers[:-1], decoder_spec)


@torch.inference_mode()
def test_most_families_can():
    able = [
        architecture
        for architecture in ("llama", "qwen3", "gpt2", "phi", "glm4", "opt")
        if not prefix_unsupported_reason(_opened(architecture)[0], _plan(architecture))
    ]
    assert able == ["llama", "qwen3", "gpt2", "phi", "glm4", "opt"]


@pytest.fixture
def fed(monkeypatch):
    """How many tokens each pass was fed, rows times columns, where texts are padded."""
    seen = []

    def watch(encoder):
        encoder[0].executor.layout = "padded"
        # Not those of the trial.
        encoder[0].executor.prefix_unsupported_reason()
        encoder[0].model.register_forward_pre_hook(
            lambda _, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        return seen

    return watch


def whole(monkeypatch, encoder, *given, **more):
    """What an encoder gives when every text is run whole."""
    with monkeypatch.context() as patch:
        patch.setattr(executor, "SHARED_FROM", 10**9)
        return encoder.encode(*given, **more)


class TestEncoder:
    @pytest.mark.parametrize("method", ["va", "wva", "aligned_wva", "prompt_eol", "meta_eol"])
    def test_gives_the_same(self, folder, monkeypatch, method):
        template = "auto" if method == "meta_eol" else LONG
        model = valuembed.load(folder, method, template=template, dtype="float32")
        expected = whole(monkeypatch, model, TEXTS)
        assert np.abs(model.encode(TEXTS) - expected).max() < 1e-5
        with_prompt = whole(monkeypatch, model, TEXTS, prompt="Query: ")
        assert np.abs(model.encode(TEXTS, prompt="Query: ") - with_prompt).max() < 1e-5
        assert np.abs(with_prompt - expected).max() > 1e-3

    def test_the_beginning_is_fed_once_a_call(self, folder, fed):
        model = valuembed.load(folder, "va", template=LONG)
        seen = fed(model)
        prefix = len(model.reader.texts.prefix(LONG))
        assert prefix > 10
        model.encode(TEXTS)
        assert seen[0] == (1, prefix)
        rows = [len(row.ids) for row in model.reader.tokenize_texts(TEXTS, None, None)[0]]
        assert sum(shape[0] for shape in seen[1:]) == 40
        assert max(shape[1] for shape in seen[1:]) == max(rows) - prefix
        assert (model.report.tokens, model.report.reused) == (sum(rows), 40 * prefix)

    def test_several_templates_fill_their_steps(self, folder, fed):
        model = valuembed.load(folder, "meta_eol")
        seen = fed(model)
        model.encode(TEXTS)
        # Eight beginnings, each once, and no step of a single text.
        assert [shape[0] for shape in seen].count(1) == 8
        assert sum(shape[0] for shape in seen) == 8 + 8 * 40

    def test_a_text_is_not_changed_by_those_beside_it(self, folder):
        model = valuembed.load(folder, "wva", template=LONG, dtype="float32")
        together = model.encode(TEXTS)
        alone = np.stack([model.encode(text) for text in TEXTS])
        assert np.abs(together - alone).max() < 1e-5

    def test_texts_that_melt_into_the_template_are_run_whole(self, folder, monkeypatch):
        # The last token before the text may take in its first letters, so that these texts have another beginning.
        template = "The very same words stand in front of it, so here it is: un{text} and that is all"
        model = valuembed.load(folder, "va", template=template, dtype="float32")
        prefix = model.reader.texts.prefix(template)
        texts = [*TEXTS, "der", "til", "ited", "."]
        expected = whole(monkeypatch, model, texts)
        assert np.abs(model.encode(texts) - expected).max() < 1e-5
        rows = model.reader.tokenize_texts(texts, None, None)[0]
        melted = [tuple(row.ids[: len(prefix)]) != prefix for row in rows]
        assert any(melted)
        assert not all(melted)

    def test_truncated_texts(self, folder, monkeypatch):
        model = valuembed.load(folder, "va", template=LONG, dtype="float32")
        room = max(len(row.ids) for row in model.reader.tokenize_texts(TEXTS, None, None)[0]) - 3
        model.max_seq_length = room
        with pytest.warns(valuembed.TruncationWarning):
            expected = whole(monkeypatch, model, TEXTS)
        with pytest.warns(valuembed.TruncationWarning):
            assert np.abs(model.encode(TEXTS) - expected).max() < 1e-5

    def test_weights_that_change_between_calls_are_seen(self, folder, monkeypatch):
        model = valuembed.load(folder, "va", template=LONG, dtype="float32")
        before = model.encode(TEXTS)
        with torch.no_grad():
            model.reader.model.layers[0].self_attn.k_proj.weight.mul_(-2)
        after = model.encode(TEXTS)
        assert np.abs(after - before).max() > 1e-3
        assert np.abs(after - whole(monkeypatch, model, TEXTS)).max() < 1e-5

    @pytest.mark.parametrize(
        "recipe",
        [
            Recipe(signal="hidden", weights="mean", span="all", template=LONG),
            Recipe(signal="value", weights="mean", span="all", template=LONG),
        ],
    )
    def test_a_mean_over_all_tokens_runs_them_all(self, folder, fed, recipe):
        model = valuembed.load(folder, recipe)
        seen = fed(model)
        model.encode(TEXTS)
        assert (sum(shape[0] for shape in seen), min(shape[0] for shape in seen) > 1) == (40, True)

    def test_few_texts_and_short_beginnings_are_run_whole(self, folder, fed):
        model = valuembed.load(folder, "va", template=LONG)
        seen = fed(model)
        model.encode(TEXTS[:7])
        assert (sum(shape[0] for shape in seen), min(shape[0] for shape in seen) > 1) == (7, True)
        model = valuembed.load(folder, "va", template="A {text}")
        seen = fed(model)
        seen.clear()
        model.encode(TEXTS)
        assert (sum(shape[0] for shape in seen), min(shape[0] for shape in seen) > 1) == (40, True)

    def test_windows_run_every_text_whole(self, sliding, fed):
        model = valuembed.load(sliding, "va", template=LONG)
        seen = fed(model)
        model.encode(TEXTS)
        assert (sum(shape[0] for shape in seen), min(shape[0] for shape in seen) > 1) == (40, True)


def test_a_panel_counts_what_it_reused(folder):
    panel = MultiReadout.load(folder, {"va": METHODS["va"], "wva": METHODS["wva"]}, dtype="float32")
    panel.encode(TEXTS)
    prefix = len(panel.reader.texts.prefix(METHODS["wva"].template[0]))
    assert prefix >= 4
    assert panel.report.reused == 40 * prefix


def test_a_panel_gives_the_same(folder, monkeypatch):
    panel = MultiReadout.load(
        folder, {name: recipe for name, recipe in SIGNALS.items() if recipe.layers is None}, dtype="float32"
    )
    monkeypatch.setattr(executor, "SHARED_FROM", 10**9)
    expected = panel.encode(TEXTS)
    monkeypatch.undo()
    for name, vectors in panel.encode(TEXTS).items():
        error = np.linalg.norm(vectors - expected[name], axis=1) / np.linalg.norm(expected[name], axis=1)
        assert error.max() < 1e-5, name


class TestBeginning:
    @pytest.mark.parametrize("kind", TOKENIZERS)
    def test_stops_before_the_text(self, kind):
        texts = TextTokenizer(tiny_tokenizer(kind))
        prefix = texts.prefix(LONG)
        rows = texts.rows(TEXTS, LONG, max_tokens=None)
        alike = [row for row in rows if tuple(row.ids[: len(prefix)]) == prefix]
        assert len(alike) >= 36
        assert all(len(prefix) <= row.span[0] for row in alike)
        assert len(prefix) > 5

    def test_of_no_template_is_the_bos_alone(self):
        assert len(TextTokenizer(tiny_tokenizer("byte_level_bos")).prefix("{text}")) <= 1
        assert TextTokenizer(tiny_tokenizer("byte_level")).prefix("{text}") == ()

    def test_holds_an_instruction(self):
        texts = TextTokenizer(tiny_tokenizer("byte_level"))
        assert len(texts.prefix(LONG, "Find what fits: ")) > len(texts.prefix(LONG))


def test_a_kernel_that_was_not_tried(tmp_path):
    tiny_checkpoint(tmp_path / "model", "qwen3")
    reader = valuembed.load(tmp_path / "model", "va").reader
    model = reader.model
    for part in model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "valuembed_flex_attention"
    reason = prefix_unsupported_reason(model, reader.plan)
    assert reason == "the kernel flex_attention has not been tried for it"
