"""Vectors from a cache are those that encode gives the same tokens, and every cache that holds none is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from image_text import FAMILIES, TEXT, VISION
from once import EVERY_FAMILY
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    DynamicCache,
    EncoderDecoderCache,
    StaticCache,
    T5Config,
    T5Model,
)
from transformers.cache_utils import DynamicLayer, Fp8QuantizedLayer, QuantizedCache, QuantizedLayer

import valuembed
from valuembed.backbone.tracing import caches_values
from valuembed.errors import InputError, LayerError, NotFiniteError, RecipeError, UnsupportedModelError
from valuembed.models.in_memory import cache_vectors
from valuembed.models.in_memory.cache_vectors import from_cache
from valuembed.models.loading import load
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import tiny_causal_lm, tiny_checkpoint, tiny_config, tiny_decoder

pytestmark = pytest.mark.slow

LATENTS = {"deepseek_v2", "deepseek_v3", "mistral4", "youtu"}
"""Families whose cache keeps what the values are unfolded from."""
TEXTS = ["A tin box.", "Bees were found.", "Snow fell all night."]
RESIDUAL = replace(METHODS["aligned_va"], alignment="residual")


def prefill(model: Any, ids: Tensor, cache: Any = None, mask: Tensor | None = None) -> Any:
    """The cache of a stock model after one pass over ids ``[b, t]``."""
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            input_ids=ids,
            attention_mask=mask,
            **({} if positions is None else {"position_ids": positions}),
            past_key_values=cache,
            use_cache=True,
        )
    return out.past_key_values


def random_ids(rows: int, tokens: int) -> Tensor:
    return torch.randint(5, 500, (rows, tokens), generator=torch.Generator().manual_seed(3))


def tokens_of(encoder: Any, texts: list[str]) -> list[list[int]]:
    return [list(sequence.ids) for sequence in encoder.reader.tokenize_texts(texts, None, None)[0]]


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny_causal_lm("qwen3")


@pytest.fixture(scope="module")
def gemma() -> Any:
    """Layers 0 and 2 have windows of 8 tokens, layers 1 and 3 are full."""
    return tiny_causal_lm("gemma3_text")


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return random_ids(2, 6)


@pytest.fixture(scope="module")
def cache(qwen: Any, ids: Tensor) -> Any:
    return prefill(qwen, ids)


class TestEqualToEncode:
    @pytest.mark.parametrize("architecture", EVERY_FAMILY)
    def test_in_every_family_whose_cache_keeps_all_values(self, architecture: str, tmp_path: Path) -> None:
        model = tiny_decoder(architecture)
        if architecture in LATENTS:
            with pytest.raises(UnsupportedModelError, match=rf"^{architecture}: its cache keeps compressed states"):
                from_cache(prefill(model, random_ids(1, 6)), model)
            return
        tiny_checkpoint(tmp_path, architecture, lm_head=False)
        for method in (METHODS["va"], METHODS["aligned_va"], RESIDUAL):
            encoder = load(tmp_path, method, layers="all", normalize=False)
            # Fewer tokens than any window keeps.
            for text in ("Bees.", "Milk"):
                (tokens,) = tokens_of(encoder, [text])
                assert 1 < len(tokens) < 8
                found = from_cache(prefill(model, torch.tensor([tokens])), model, method, layers="all", normalize=False)
                expected = torch.tensor(encoder.encode([text]))
                assert found.dtype == torch.float32
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gemma3_text"])
    @pytest.mark.parametrize("method", ["va", "aligned_va"])
    def test_in_a_batch_with_padding_on_the_left(self, architecture: str, method: str, tmp_path: Path) -> None:
        encoder = load(tiny_checkpoint(tmp_path, architecture), method, layers=[1, 3])
        rows = tokens_of(encoder, TEXTS)
        width = max(map(len, rows))
        padded = torch.tensor([[9] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        model = tiny_causal_lm(architecture)
        filled = prefill(model, padded, mask=mask)
        expected = torch.tensor(encoder.encode(TEXTS))
        for given in (mask, torch.cat([mask, torch.ones(3, 1)], dim=1), mask.bool()):
            found = from_cache(filled, model, method, [1, 3], attention_mask=given)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        spans = [(width - len(row), width) for row in rows]
        for given_spans in (spans, torch.tensor(spans)):
            found = from_cache(filled, model, method, [1, 3], given_spans)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_of_a_span_are_the_mean_over_it(self, qwen: Any, ids: Tensor, cache: Any) -> None:
        found = from_cache(cache, qwen, layers=[1, 2], span=(2, 5), normalize=False)
        both = [cache.layers[layer].values[:, :, 2:5].mean(2).flatten(1) for layer in (1, 2)]
        torch.testing.assert_close(found, (both[0] + both[1]) / 2)
        apart = from_cache(cache, qwen, layers=[1, 2], span=[(2, 5), (0, 1)], normalize=False)
        torch.testing.assert_close(apart[0], found[0])
        first = [cache.layers[layer].values[1, :, 0].flatten() for layer in (1, 2)]
        torch.testing.assert_close(apart[1], (first[0] + first[1]) / 2)

    def test_default_layers_are_those_of_load(self, tmp_path: Path, qwen: Any, ids: Tensor, cache: Any) -> None:
        encoder = load(tiny_checkpoint(tmp_path, "qwen3"), "va")
        torch.testing.assert_close(
            from_cache(cache, qwen), from_cache(cache, qwen, layers=list(encoder.recipe.layers or ()))
        )

    def test_a_cache_is_left_as_it_is(self, qwen: Any, ids: Tensor) -> None:
        filled = prefill(qwen, ids)
        before = [layer.values.clone() for layer in filled.layers]
        from_cache(filled, qwen, "aligned_va", "all", (1, 3))
        assert all(torch.equal(old, layer.values) for old, layer in zip(before, filled.layers, strict=True))
        assert filled.get_seq_length() == 6

    def test_in_half_precision_sums_are_float32(self, ids: Tensor) -> None:
        model = tiny_causal_lm("qwen3", dtype=torch.bfloat16)
        filled = prefill(model, ids)
        found = from_cache(filled, model, layers=[2], normalize=False)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, filled.layers[2].values.float().mean(2).flatten(1))


class TestKindsOfCaches:
    @pytest.fixture
    def expected(self, qwen: Any, cache: Any) -> Tensor:
        return from_cache(cache, qwen)

    def test_static_ones_count_the_tokens_that_are_filled(self, qwen: Any, ids: Tensor, expected: Tensor) -> None:
        filled = prefill(qwen, ids, StaticCache(qwen.config, max_cache_len=20))
        torch.testing.assert_close(from_cache(filled, qwen), expected)
        with pytest.raises(
            InputError, match=r"^span \(0, 7\) of row 0 is outside the cache, which holds tokens 0 to 6"
        ):
            from_cache(filled, qwen, span=(0, 7))

    def test_tuples_of_keys_and_values(self, qwen: Any, cache: Any, expected: Tensor) -> None:
        pairs = tuple((layer.keys, layer.values) for layer in cache.layers)
        torch.testing.assert_close(from_cache(pairs, qwen), expected)
        with pytest.raises(InputError, match=r"^layer 3 of the cache is no pair of tensors \[b, g, t, d\]; give the "):
            from_cache(((1, 2),) * 4, qwen)

    def test_offloaded_ones(self, qwen: Any, ids: Tensor, expected: Tensor) -> None:
        filled = prefill(qwen, ids)
        # Without a second device nothing travels: only the reading is tried.
        filled.offloading = True
        torch.testing.assert_close(from_cache(filled, qwen), expected)

    def test_those_in_fp8_are_dequantized(self, qwen: Any, ids: Tensor, cache: Any) -> None:
        filled = prefill(qwen, ids, QuantizedCache("fp8", qwen.config))
        found = from_cache(filled, qwen, normalize=False)
        assert isinstance(filled.layers[3], Fp8QuantizedLayer)
        # A float of 3 bits behind the point is off by at most 1/16 of itself.
        values = cache.layers[3].values
        assert (found - values.mean(2).flatten(1)).abs().max() <= values.abs().max() / 16

    def test_those_in_few_bits_are_dequantized_with_what_waits(self, qwen: Any, ids: Tensor, cache: Any) -> None:
        class Doubled(QuantizedLayer):
            """Keeps twice the numbers, as a quantizer that loses nothing."""

            def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
                return 2 * tensor

            def _dequantize(self, q_tensor: Tensor) -> Tensor:
                return q_tensor / 2

        filled: Any = DynamicCache()
        filled.layers = [Doubled() for _ in range(4)]
        prefill(qwen, ids[:, :4], filled)
        prefill(qwen, ids[:, 4:], filled)
        torch.testing.assert_close(from_cache(filled, qwen), from_cache(cache, qwen))
        # A beam search turns the rows that wait at once, and those in few bits with the next token.
        filled.reorder_cache(torch.tensor([1, 0]))
        torch.testing.assert_close(from_cache(filled, qwen), from_cache(cache, qwen).flip(0))

    def test_without_the_package_of_their_bits_they_are_refused(self, qwen: Any, ids: Tensor) -> None:
        class Lacking(QuantizedLayer):
            def _quantize(self, tensor: Tensor, axis: int) -> Tensor:
                return tensor

            def _dequantize(self, q_tensor: Tensor) -> Tensor:
                raise ImportError("No module named 'quanto'")

        filled: Any = DynamicCache()
        filled.layers = [Lacking() for _ in range(4)]
        prefill(qwen, ids, filled)
        with pytest.raises(
            InputError, match=r"^layer 3 of the cache is a Lacking, whose package is not installed: No m"
        ):
            from_cache(filled, qwen)

    def test_those_of_an_encoder_with_a_decoder_are_refused(self, qwen: Any, cache: Any) -> None:
        with pytest.raises(InputError, match=r"^the cache is an EncoderDecoderCache, of an encoder with a decoder"):
            from_cache(EncoderDecoderCache(cache, DynamicCache()), qwen)

    @pytest.mark.parametrize("given", [None, "cache", torch.zeros(2)])
    def test_what_is_no_cache_is_refused(self, qwen: Any, given: Any) -> None:
        match = (
            rf"^past_key_values is of the type {type(given).__name__}; give the cache that the decoder returned: Dyn"
        )
        with pytest.raises(InputError, match=match):
            from_cache(given, qwen)

    @pytest.mark.parametrize("kind", ["lazy", "typed", "static", "tuple", "reset"])
    def test_empty_ones_are_refused(self, qwen: Any, ids: Tensor, kind: str) -> None:
        empty: Any = {
            "lazy": lambda: DynamicCache(),
            "typed": lambda: DynamicCache(config=qwen.config),
            "static": lambda: StaticCache(qwen.config, max_cache_len=9),
            "tuple": lambda: (),
            "reset": lambda: prefill(qwen, ids, StaticCache(qwen.config, max_cache_len=9)),
        }[kind]()
        if kind == "reset":
            empty.reset()
        with pytest.raises(InputError, match=r"^the cache is empty: run the decoder with it first, then read it$"):
            from_cache(empty, qwen)

    def test_a_layer_with_a_state_has_no_values(self, qwen: Any, cache: Any, ids: Tensor) -> None:
        hybrid = tiny_decoder("lfm2")
        filled = prefill(hybrid, ids)
        mixed: Any = DynamicCache()
        mixed.layers = [*cache.layers[:3], filled.layers[0]]
        with pytest.raises(
            InputError,
            match=r"^layer 3 of the cache is a LinearAttentionLayer, which does not keep each token's values$",
        ):
            from_cache(mixed, qwen)
        with pytest.raises(
            LayerError, match=r"layer 0 cannot be read in this model of 4 layers; legal layers are 1, 3"
        ):
            from_cache(filled, hybrid, layers=[0])

    def test_a_layer_of_a_familys_own_kind_is_refused(self, qwen: Any, cache: Any) -> None:
        layer = DynamicLayer()
        layer._layer_type = "compressed"
        mixed: Any = DynamicCache()
        mixed.layers = [*cache.layers[:3], layer]
        with pytest.raises(InputError, match="which does not keep each token's values"):
            from_cache(mixed, qwen)


class TestAnotherModelsCache:
    def test_with_other_layers(self, qwen: Any, ids: Tensor) -> None:
        filled = prefill(tiny_decoder("qwen3", num_hidden_layers=5), ids)
        match = r"^the cache has 5 layers, and Qwen3Model has 4: it was filled by another model$"
        with pytest.raises(InputError, match=match):
            from_cache(filled, qwen)

    def test_with_other_heads(self, qwen: Any, ids: Tensor) -> None:
        filled = prefill(tiny_decoder("qwen3", num_key_value_heads=4, head_dim=16), ids)
        match = (
            r"^the cache holds 4 value heads of width 16 in layer 3, and Qwen3Model has 2 of width 8 there: it was f"
        )
        with pytest.raises(InputError, match=match):
            from_cache(filled, qwen)


class TestWindows:
    @pytest.mark.parametrize("static", [False, True])
    def test_a_short_prompt_is_all_there(self, gemma: Any, static: bool) -> None:
        ids = random_ids(2, 7)
        kind = StaticCache(gemma.config, max_cache_len=30) if static else None
        assert from_cache(prefill(gemma, ids, kind), gemma, layers="all").shape == (2, 16)

    @pytest.mark.parametrize(("static", "kept"), [(False, 7), (True, 8)])
    def test_of_a_long_one_the_full_layers_are(self, gemma: Any, static: bool, kept: int) -> None:
        ids = random_ids(2, 20)
        filled = prefill(gemma, ids, StaticCache(gemma.config, max_cache_len=30) if static else None)
        full = from_cache(filled, gemma, layers=[1, 3], normalize=False)
        both = [filled.layers[layer].values[:, :, :20].mean(2).flatten(1) for layer in (1, 3)]
        torch.testing.assert_close(full, (both[0] + both[1]) / 2)
        match = (
            rf"^the cache has lost tokens from 0 on in layers 0, 2 \(a sliding window\): of 20 tokens the last {kept} "
            rf"are there; choose among layers 1, 3, which have all, or a span from {20 - kept} on, or read the cache "
        )
        with pytest.raises(InputError, match=match):
            from_cache(filled, gemma, layers="all")
        # What is still in the window can be read, and is what stood at these places.
        late = from_cache(filled, gemma, layers=[0], span=(20 - kept, 20), normalize=False)
        torch.testing.assert_close(late, filled.layers[0].values.mean(2).flatten(1))

    def test_where_all_layers_have_windows_the_span_has_to_be_late(self) -> None:
        model = tiny_decoder("mistral")
        match = r"the last 7 are there; choose a span from 13 on, or read the cache before the window is full$"
        with pytest.raises(InputError, match=match):
            from_cache(prefill(model, random_ids(1, 20)), model)


class TestSpans:
    @pytest.mark.parametrize(
        ("span", "match"),
        [
            ((3, 3), r"^span \(3, 3\) of row 0 is empty; give a start below its end$"),
            ([(0, 2), (4, 2)], r"^span \(4, 2\) of row 1 is reversed; give a start below its end$"),
            ((-2, 3), r"^span \(-2, 3\) of row 0 is outside the cache, which holds tokens 0 to 6 \(the end is exclus"),
            ((0, 7), r"^span \(0, 7\) of row 0 is outside the cache"),
            (
                [(0, 1)] * 3,
                r"^span=\[\(0, 1\), \(0, 1\), \(0, 1\)\] is not understood; give \(start, end\) for all rows",
            ),
            ((0.0, 2.0), r"^span=\(0\.0, 2\.0\) is not understood; .* or such a pair for each of 2 rows$"),
            ("all", r"^span='all' is not understood"),
            ([True, False], r"^span=\[True, False\] is not understood"),
            (3, r"^span=3 is not understood"),
        ],
    )
    def test_that_mean_nothing_are_refused(self, qwen: Any, cache: Any, span: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            from_cache(cache, qwen, span=span)

    @pytest.mark.parametrize(
        ("shape", "span", "match"),
        [
            ((2, 4), None, r"^attention_mask tells of 4 tokens, and the cache holds 6; give a mask of all of them, or"),
            ((2, 9), None, r"^attention_mask tells of 9 tokens, and the cache holds 6"),
            ((2, 4), (0, 5), r"^attention_mask tells of 4 tokens, and the cache holds 6"),
            ((3, 6), None, r"^attention_mask has the shape \(3, 6\); give one of \[b, t\] for the 2 rows and 6 tokens"),
            ((2, 1, 6, 6), None, r"^attention_mask has the shape \(2, 1, 6, 6\)"),
        ],
    )
    def test_masks_that_do_not_fit_are_refused(
        self, qwen: Any, cache: Any, shape: tuple[int, ...], span: Any, match: str
    ) -> None:
        with pytest.raises(InputError, match=match):
            from_cache(cache, qwen, span=span, attention_mask=torch.ones(shape))

    def test_a_mask_of_the_span_alone_will_do(self, qwen: Any, cache: Any) -> None:
        found = from_cache(cache, qwen, span=(0, 4), attention_mask=torch.ones(2, 4))
        torch.testing.assert_close(found, from_cache(cache, qwen, span=(0, 4)))

    def test_a_row_without_real_tokens_is_refused(self, qwen: Any, cache: Any) -> None:
        mask = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
        match = r"^no token counts in row 1: the attention_mask is 0 on all of the span; give a span with real tokens$"
        with pytest.raises(InputError, match=match):
            from_cache(cache, qwen, span=(0, 3), attention_mask=mask)


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "why"),
        [
            ("wva", "needs the last token's attention weights, which no cache keeps"),
            ("aligned_wva", "needs the last token's attention weights"),
            ("hidden_mean", "reads hidden states, which no cache keeps"),
            ("prompt_eol", "reads hidden states"),
            ("joined", "joins several readouts"),
            (replace(METHODS["va"], centring="general", method="own"), "takes a mean away that is read from general"),
        ],
    )
    def test_that_need_more_are_refused(self, qwen: Any, cache: Any, method: Any, why: str) -> None:
        name = method if isinstance(method, str) else method.method
        with pytest.raises(RecipeError, match=rf"^method '{name}' {why}.*; from a cache there are va, aligned_va$"):
            from_cache(cache, qwen, method)

    def test_a_recipe_of_ones_own_is_read(self, qwen: Any, cache: Any) -> None:
        own = Recipe(signal="value", weights="mean", layers=[1], template=("Words: {text}",))
        torch.testing.assert_close(from_cache(cache, qwen, own), from_cache(cache, qwen, layers=1))


class TestModels:
    def test_is_public(self) -> None:
        assert valuembed.from_cache is from_cache

    def test_are_traced_once(self, cache: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        model = tiny_causal_lm("qwen3")
        traces = []
        real = cache_vectors.trace_architecture
        monkeypatch.setattr(
            cache_vectors, "trace_architecture", lambda *given, **more: traces.append(1) or real(*given, **more)
        )
        for _ in range(3):
            from_cache(cache, model)
        assert len(traces) == 1

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
    def test_compiled_and_bare_ones_give_the_same(self, qwen: Any, cache: Any) -> None:
        expected = from_cache(cache, qwen, "aligned_va")
        for model in (torch.compile(qwen), qwen.model, qwen.get_decoder()):
            torch.testing.assert_close(from_cache(cache, model, "aligned_va"), expected)

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
    def test_adapters_on_a_projection_count(self, ids: Tensor) -> None:
        peft = pytest.importorskip("peft")
        model = tiny_causal_lm("qwen3")
        plain = from_cache(prefill(model, ids), model, "aligned_va")
        config = peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, config)
        filled = prefill(adapted, ids)
        found = from_cache(filled, adapted, "aligned_va", layers=[3], normalize=False)
        mean = filled.layers[3].values.mean(2).repeat_interleave(2, dim=1).flatten(1)
        with torch.no_grad():
            expected = adapted.base_model.model.model.layers[3].self_attn.o_proj(mean)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(from_cache(filled, adapted, "aligned_va"), plain)

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
    def test_adapters_with_virtual_tokens_are_refused(self, ids: Tensor, cache: Any) -> None:
        peft = pytest.importorskip("peft")
        config = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
        with pytest.raises(
            UnsupportedModelError, match=r"^PeftModelForCausalLM puts learned tokens in front of every text"
        ):
            from_cache(cache, peft.get_peft_model(tiny_causal_lm("qwen3"), config))

    def test_the_text_decoder_of_an_image_text_model_is_found(self, ids: Tensor) -> None:
        text, vision, whole = FAMILIES["llava"]
        config = CONFIG_MAPPING["llava"](text_config={**TEXT, **text}, vision_config={**VISION, **vision}, **whole)
        model = AutoModelForImageTextToText.from_config(config).eval()
        filled = prefill(model, ids)
        found = from_cache(filled, model, "aligned_va", layers=[2])
        torch.testing.assert_close(found, from_cache(filled, model.get_decoder(), "aligned_va", layers=[2]))

    @pytest.mark.parametrize("given", [None, torch.nn.Linear(2, 2), "Qwen/Qwen3-0.6B"])
    def test_what_is_no_model_is_refused(self, cache: Any, given: Any) -> None:
        match = rf"^{type(given).__name__} is no model of transformers: give a PreTrainedModel, such as"
        with pytest.raises(UnsupportedModelError, match=match):
            from_cache(cache, given)

    def test_an_encoder_with_a_decoder_is_refused(self, cache: Any) -> None:
        model = T5Model(T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
        with pytest.raises(UnsupportedModelError, match=r"^T5Model is an encoder-decoder; a decoder is needed"):
            from_cache(cache, model)

    def test_a_decoder_of_another_class_than_its_configuration_says_is_refused(self, cache: Any) -> None:
        model = tiny_decoder("llama")
        model.config = tiny_config("qwen3")
        with pytest.raises(
            UnsupportedModelError, match=r"^LlamaModel holds a Qwen3Config, which describes another family; give"
        ):
            from_cache(cache, model)

    def test_damaged_values_are_named(self, qwen: Any, ids: Tensor) -> None:
        filled = prefill(qwen, ids)
        filled.layers[3].values[1, 0, 2, 1] = float("nan")
        with pytest.raises(NotFiniteError, match="row 1"):
            from_cache(filled, qwen)


class TestValueEncoders:
    def test_read_their_own_recipe_of_a_cache_of_the_whole_model(self, folder: Path) -> None:
        encoder = load(folder, "va", layers=[1, 2])
        rows = tokens_of(encoder, ["Bees were found."])
        filled = prefill(tiny_causal_lm("qwen3"), torch.tensor(rows))
        expected = torch.tensor(encoder.encode(["Bees were found."]))
        # Its template feeds the text alone, and what stands in front of it.
        (sequence,) = encoder.reader.tokenize_texts(["Bees were found."], None, None)[0]
        found = from_cache(filled, encoder, span=sequence.span)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    def test_read_another_method_on_their_layers(self, folder: Path) -> None:
        encoder = load(folder, "wva", layers=[0, 1])
        filled = prefill(tiny_causal_lm("qwen3"), random_ids(1, 5))
        with pytest.raises(RecipeError, match=r"^method 'wva' needs the last token's attention weights"):
            from_cache(filled, encoder)
        model = tiny_causal_lm("qwen3")
        # Plain values of a layer that was not loaded are in the cache too.
        for layer in (1, 3):
            found = from_cache(filled, encoder, "va", [layer])
            torch.testing.assert_close(found, from_cache(filled, model, "va", [layer]))
        match = (
            r"^layers 1-3 are asked for, and layers 2-3 are not here: this decoder holds the first 2 of 4 layers; load "
            r"it with more, or give the whole model$"
        )
        with pytest.raises(LayerError, match=match):
            from_cache(filled, encoder, "aligned_va", [1, 2, 3])

    def test_read_a_cache_that_they_filled_themselves(self, folder: Path) -> None:
        encoder = load(folder, "va", layers=[0, 1])
        ids = random_ids(1, 5)
        filled = prefill(encoder.reader.model, ids)
        torch.testing.assert_close(
            from_cache(filled, encoder), from_cache(prefill(tiny_causal_lm("qwen3"), ids), encoder)
        )
        match = (
            r"^layer 3 is asked for, and the cache was filled by Qwen3Model cut to its first 2 layers; give the cache "
            r"of the whole model, or layers that it has$"
        )
        with pytest.raises(InputError, match=match):
            from_cache(filled, encoder, layers=[3])

    def test_their_later_modules_count_for_their_own_recipe(self, folder: Path) -> None:
        encoder = load(folder, "va", layers=[1], normalize=False)

        class Negate(torch.nn.Module):
            def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
                return {"sentence_embedding": -features["sentence_embedding"]}

        encoder.add_module("1", Negate())
        filled = prefill(tiny_causal_lm("qwen3"), random_ids(1, 5))
        plain = from_cache(filled, encoder, "va", [1])
        torch.testing.assert_close(from_cache(filled, encoder), -plain)

    def test_of_a_family_with_latents_are_refused(self, tmp_path: Path) -> None:
        encoder = load(tiny_checkpoint(tmp_path, "deepseek_v3"), "va")
        with pytest.raises(
            UnsupportedModelError, match=r"^deepseek_v3: its cache keeps compressed states and not the va"
        ):
            from_cache(prefill(tiny_decoder("deepseek_v3"), random_ids(1, 4)), encoder)


def test_a_family_that_takes_no_cache_but_its_own_is_told_by_its_shapes() -> None:
    assert caches_values(tiny_config("minimax"), type(tiny_decoder("minimax")))
    assert not caches_values(tiny_config("youtu"), type(tiny_decoder("youtu")))
