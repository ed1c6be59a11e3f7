"""The door that all families share: what goes wrong without each of its cures, early stop, verification, gradients."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from once import traced
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from watching import hooks_of

from valuembed.backbone.architecture import DecoderSpec
from valuembed.backbone.kernels import KERNELS
from valuembed.backbone.plan import Plan
from valuembed.backbone.tracing import trace_architecture
from valuembed.errors import ReadingError, UnsupportedModelError
from valuembed.readout.hooks import install_attention_hooks
from valuembed.readout.layout import PaddedLayout
from valuembed.readout.readout import Readout
from valuembed.recipes.methods import METHODS
from valuembed.recipes.recipe import Recipe
from valuembed.testing import tiny_config, tiny_decoder

VALUE_METHODS = ("va", "aligned_va", "wva", "aligned_wva")
HIDDEN_MEAN = METHODS["hidden_mean"]


def opened(architecture: str, **overrides: Any) -> tuple[nn.Module, DecoderSpec]:
    decoder_spec = trace_architecture(tiny_config(architecture, **overrides)) if overrides else traced(architecture)
    model = tiny_decoder(architecture, **overrides)
    install_attention_hooks(model, decoder_spec)
    return model, decoder_spec


def read(model: nn.Module, plan: Plan, ids: Tensor, **inputs: Any) -> Tensor:
    rows, t = ids.shape
    mask = inputs.get("attention_mask", torch.ones(rows, t, dtype=torch.long))
    last = (mask * torch.arange(t)).argmax(dim=1)
    inputs.setdefault("position_ids", torch.arange(t).expand(rows, t))
    return Readout(model, [plan], PaddedLayout(last, mask)).run(input_ids=ids, **inputs)[0]


def some_ids(rows: int, t: int, seed: int = 0) -> Tensor:
    return torch.randint(5, 500, (rows, t), generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def test_a_kernel_without_its_mask_builder_would_lose_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    model, decoder_spec = opened("mistral")
    plan = Plan(METHODS["wva"], (2, 3), decoder_spec)
    ids = some_ids(2, 20)
    stock = copy.deepcopy(model)
    stock.set_attn_implementation("eager")
    whole = stock(input_ids=ids).last_hidden_state
    through_door = model(input_ids=ids).last_hidden_state
    assert relative(through_door, whole) < 1e-5
    right = read(model, plan, ids)
    monkeypatch.delitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "valuembed_sdpa")
    assert relative(read(model, plan, ids), right) > 0.1


def test_every_kernel_has_its_own_mask_builder() -> None:
    for kernel in KERNELS:
        registered = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[f"valuembed_{kernel}"]
        assert registered is ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[kernel]


@pytest.mark.parametrize(("architecture", "dropped"), [("gpt_oss", "s_aux"), ("gemma2", "softcap")])
def test_sinks_and_softcap_are_never_left_to_sdpa(architecture: str, dropped: str) -> None:
    model, decoder_spec = opened(architecture)
    assert {need for block in decoder_spec.blocks for need in block.needs} == {dropped}
    assert model.config._attn_implementation == "valuembed_eager"
    model.config._attn_implementation_internal = "valuembed_sdpa"
    with pytest.raises(
        UnsupportedModelError, match=rf"sdpa kernel would drop {dropped} in silence; load with model_kwargs"
    ):
        read(model, Plan(METHODS["wva"], (0, 1), decoder_spec), some_ids(1, 6))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_bigcode", "biogpt"])
def test_left_padding_without_positions_would_be_wrong(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    plan = Plan(METHODS["va"], decoder_spec.value_layers, decoder_spec)
    ids = some_ids(1, 7)
    padded = torch.cat([torch.full((1, 6), 9), ids], dim=1)
    mask = torch.tensor([[0] * 6 + [1] * 7])
    alone = read(model, plan, ids)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert relative(read(model, plan, padded, attention_mask=mask, position_ids=positions), alone) < 1e-5
    counted_from_padding = torch.arange(13).expand(1, 13)
    assert relative(read(model, plan, padded, attention_mask=mask, position_ids=counted_from_padding), alone) > 0.1


class Counting(nn.Module):
    """Stands in front of a module and counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "last_projection_runs"), [("va", 0), ("aligned_va", 1), ("wva", 0), ("aligned_wva", 1)]
)
def test_the_pass_ends_inside_the_last_chosen_layer(method: str, last_projection_runs: int) -> None:
    model, decoder_spec = opened("qwen3")
    feed_forward = [Counting(layer.mlp) for layer in model.layers]
    for layer, counting in zip(model.layers, feed_forward, strict=True):
        layer.mlp = counting
    last = model.layers[2].self_attn
    calls = {"o_proj": 0, "q_proj": 0}
    for name in calls:
        last.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    read(model, Plan(METHODS[method], (1, 2), decoder_spec), some_ids(2, 5))
    assert [counting.calls for counting in feed_forward] == [1, 1, 0, 0]
    assert calls["o_proj"] == last_projection_runs


@torch.no_grad()
def test_hidden_states_with_layers_are_the_stream_before_the_norm() -> None:
    model, decoder_spec = opened("llama")
    ids = some_ids(2, 6)
    stock = model(input_ids=ids, output_hidden_states=True).hidden_states
    # hidden_states[0] is the embedding, hidden_states[l + 1] follows layer l (the last one comes after the norm).
    got = read(model, Plan(replace(HIDDEN_MEAN, layers=(0, 2)), (0, 2), decoder_spec), ids)
    assert torch.allclose(got, (stock[1] + stock[3]).mean(dim=1) / 2, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "opt"])
def test_hidden_states_without_layers_are_the_last_hidden_state_after_the_norm(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    ids = some_ids(2, 6)
    stock = model(input_ids=ids).last_hidden_state
    assert torch.allclose(read(model, Plan(HIDDEN_MEAN, (), decoder_spec), ids), stock.mean(dim=1), atol=1e-6)
    last = read(model, Plan(METHODS["hidden_last"], (), decoder_spec), ids)
    assert torch.allclose(last, stock[:, -1], atol=1e-6)


@torch.no_grad()
def test_a_model_changed_after_loading_is_noticed() -> None:
    model, decoder_spec = opened("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(
        ReadingError, match=r"LlamaModel: of layers 1-2 each has to report once .* layers 1-2 reported \[0\] times"
    ):
        read(model, Plan(METHODS["va"], (1, 2), decoder_spec), some_ids(1, 4))


@torch.no_grad()
def test_a_shape_that_was_not_expected_is_noticed() -> None:
    model, decoder_spec = opened("llama")
    wider = replace(decoder_spec, blocks=tuple(replace(block, head_width=9) for block in decoder_spec.blocks))
    message = r"LlamaModel, layer 1: values of shape \(1, 2, 4, 9\) expected, got \(1, 2, 4, 8\)"
    with pytest.raises(ReadingError, match=message):
        read(model, Plan(METHODS["va"], (1,), wider), some_ids(1, 4))


def test_a_kernel_that_cannot_be_read_is_refused() -> None:
    decoder_spec = trace_architecture(tiny_config("llama"))
    model = tiny_decoder("llama")
    model.config._attn_implementation_internal = "paged|eager"
    with pytest.raises(
        UnsupportedModelError, match=r"attn_implementation='paged\|eager' cannot be read; legal: eager, sdpa"
    ):
        install_attention_hooks(model, decoder_spec)


@torch.no_grad()
@pytest.mark.parametrize("method", VALUE_METHODS)
def test_kernels_agree(method: str) -> None:
    ids = some_ids(2, 12)
    vectors = []
    for kernel in ("eager", "sdpa"):
        decoder_spec = trace_architecture(tiny_config("qwen3"))
        model = tiny_decoder("qwen3", attn_implementation=kernel)
        assert install_attention_hooks(model, decoder_spec) == kernel
        vectors.append(read(model, Plan(METHODS[method], (1, 3), decoder_spec), ids))
    assert relative(*vectors) < 1e-5


@torch.no_grad()
def test_nothing_is_read_and_nothing_changes_outside_a_reading() -> None:
    stock = tiny_decoder("qwen3")
    model, decoder_spec = opened("qwen3")
    ids = some_ids(2, 9)
    hooks = hooks_of(model)
    read(model, Plan(METHODS["va"], (0,), decoder_spec), ids)
    assert torch.equal(model(input_ids=ids).last_hidden_state, stock(input_ids=ids).last_hidden_state)
    assert hooks_of(model) == hooks
    install_attention_hooks(model, decoder_spec)
    assert hooks_of(model) == hooks


@torch.no_grad()
def test_half_precision_is_summed_in_float32() -> None:
    model, decoder_spec = opened("llama", dtype=torch.bfloat16)
    for method in VALUE_METHODS:
        assert read(model, Plan(METHODS[method], (0, 1), decoder_spec), some_ids(1, 5)).dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["qwen3", "gpt_oss", "gpt2", "deepseek_v3"])
def test_recipes_read_in_one_pass_are_the_recipes_read_alone(architecture: str) -> None:
    model, decoder_spec = opened(architecture)
    layers = {"va": (0, 2), "aligned_va": (2, 3), "wva": (1,), "aligned_wva": (1, 2), "hidden_last": (0, 1)}
    plans = [Plan(METHODS[method], chosen, decoder_spec) for method, chosen in layers.items()]
    plans += [Plan(HIDDEN_MEAN, (), decoder_spec), Plan(METHODS["va"], (2,), decoder_spec)]
    ids = some_ids(3, 9)
    inputs = {"input_ids": ids, "position_ids": torch.arange(9).expand(3, 9)}
    last, mask = torch.tensor([8, 8, 8]), torch.ones(3, 9)
    together = Readout(model, plans, PaddedLayout(last, mask)).run(**inputs)
    for plan, vectors in zip(plans, together, strict=True):
        assert torch.equal(vectors, Readout(model, [plan], PaddedLayout(last, mask)).run(**inputs)[0]), (
            plan.recipe.method
        )


@torch.no_grad()
def test_one_pass_for_several_recipes_ends_with_the_deepest() -> None:
    model, decoder_spec = opened("qwen3")
    model.layers[3] = Counting(model.layers[3])
    plans = [Plan(METHODS["va"], (0, 1), decoder_spec), Plan(METHODS["aligned_wva"], (2,), decoder_spec)]
    ids = some_ids(2, 5)
    Readout(model, plans, PaddedLayout(torch.tensor([4, 4]), torch.ones(2, 5))).run(input_ids=ids)
    assert model.layers[3].calls == 0


def gradients(model: nn.Module, plan: Plan, ids: Tensor, checkpointing: dict[str, Any] | None) -> dict[str, Tensor]:
    model = copy.deepcopy(model).train()
    if checkpointing is not None:
        model.activation_checkpointing_enable(checkpointing)
    read(model, plan, ids).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", [*VALUE_METHODS, "hidden_mean"])
def test_gradient_checkpointing_changes_no_gradient(method: str) -> None:
    model, decoder_spec = opened("qwen3")
    recipe: Recipe = replace(METHODS[method], layers=(1, 2))
    plan = Plan(recipe, (1, 2), decoder_spec)
    ids = some_ids(2, 7)
    plain = gradients(model, plan, ids, None)
    recomputed = gradients(model, plan, ids, {"use_reentrant": False})
    assert "layers.0.mlp.down_proj.weight" in plain
    assert "layers.3.self_attn.v_proj.weight" not in plain
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, recomputed[name], rtol=1e-4, atol=1e-6), name


def test_reentrant_checkpointing_is_refused() -> None:
    model, decoder_spec = opened("qwen3")
    with pytest.raises(ReadingError, match="reentrant gradient checkpointing gives the embeddings no gradient; use"):
        gradients(model, Plan(METHODS["va"], (1, 2), decoder_spec), some_ids(2, 7), {"use_reentrant": True})
