"""Which maps an adapter may sit on: by name, and as autograd on the plain formulas says."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import FAMILIES, METHODS, blocks, doubled
from torch import Tensor, nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D
from watching import hooks_of

from valuembed.errors import RecipeError
from valuembed.models.loading import load
from valuembed.models.value_transformer import ValueTransformer
from valuembed.testing import tiny_checkpoint
from valuembed.training.target_modules import counts, target_modules

pytestmark = pytest.mark.slow

QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_METHODS = ("va", "aligned_va", "wva", "aligned_wva", "hidden_mean")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny checkpoints by family, each made once."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda family: tiny_checkpoint(folder / family, family, tokenizer="byte_level_bos"))


def reader_of(folder: Path, method: str, **options: Any) -> ValueTransformer:
    return load(folder, method, **options).reader


def by_layer(names: list[str]) -> list[list[str]]:
    """``["layers.0.self_attn.q_proj", ...]`` as the last names of each layer."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.split(".")[1], []).append(name.rpartition(".")[2])
    return [layers[number] for number in sorted(layers, key=int)]


class TestNames:
    # A tiny qwen3 has 4 layers, and its methods read the last one: (3,).
    @pytest.mark.parametrize(
        ("method", "last"),
        [
            ("va", ["v_proj"]),
            ("aligned_va", ["v_proj", "o_proj"]),
            ("wva", ["q_proj", "k_proj", "v_proj"]),
            ("aligned_wva", QKVO),
            ("hidden_mean", QKVO),
        ],
    )
    def test_of_the_last_layer_are_what_the_readout_uses(self, folder: Path, method: str, last: list[str]) -> None:
        reader = reader_of(folder, method)
        names = target_modules(reader)
        assert by_layer(names) == [QKVO, QKVO, QKVO, last]
        assert names[:2] == ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"]

    @pytest.mark.parametrize(("layers", "below"), [([1], 1), ([0, 2], 2)])
    def test_above_the_last_chosen_layer_there_is_nothing(self, folder: Path, layers: list[int], below: int) -> None:
        assert by_layer(target_modules(reader_of(folder, "va", layers=layers))) == [QKVO] * below + [["v_proj"]]

    def test_of_a_layer_between_are_all(self, folder: Path) -> None:
        # Layer 2's queries reach the values of layer 3, though its own values are read too.
        assert by_layer(target_modules(reader_of(folder, "va", layers=[2, 3]))) == [QKVO, QKVO, QKVO, ["v_proj"]]

    @pytest.mark.parametrize(
        ("family", "fused", "projection"),
        [
            ("gpt_neox", "layers.{}.attention.query_key_value", "layers.{}.attention.dense"),
            ("phi3", "layers.{}.self_attn.qkv_proj", "layers.{}.self_attn.o_proj"),
            ("gpt2", "h.{}.attn.c_attn", "h.{}.attn.c_proj"),
        ],
    )
    def test_a_fused_map_is_named_whole(self, made: Any, family: str, fused: str, projection: str) -> None:
        below = [name.format(layer) for layer in range(3) for name in (fused, projection)]
        assert target_modules(reader_of(made(family), "va")) == [*below, fused.format(3)]
        assert target_modules(reader_of(made(family), "aligned_va")) == [*below, fused.format(3), projection.format(3)]

    def test_of_a_latent_attention_are_both_steps(self, made: Any) -> None:
        whole = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
        assert by_layer(target_modules(reader_of(made("deepseek_v2"), "va"))) == [whole] * 3 + [whole[2:4]]
        assert by_layer(target_modules(reader_of(made("deepseek_v2"), "wva"))) == [whole] * 3 + [whole[:4]]

    @pytest.mark.parametrize(("family", "projection"), [("lfm2", "out_proj"), ("qwen3_next", "o_proj")])
    def test_of_a_hybrid_are_those_of_its_attention_blocks(self, made: Any, family: str, projection: str) -> None:
        # Layers 1 and 3 attend; 0 and 2 are convolutions or linear attention, whose maps are no attention's.
        prefix = "layers.1.self_attn"
        below = [f"{prefix}.{name}" for name in ("q_proj", "k_proj", "v_proj", projection)]
        assert target_modules(reader_of(made(family), "va")) == [*below, "layers.3.self_attn.v_proj"]
        everywhere = target_modules(reader_of(made(family), "va"), "all")
        assert set(below) < set(everywhere)
        assert {name.split(".")[1] for name in everywhere} == {"0", "1", "2", "3"}

    def test_with_scope_all_feed_forward_parts_count_below_the_last_layer(self, folder: Path) -> None:
        whole = [*QKVO, "gate_proj", "up_proj", "down_proj"]
        assert by_layer(target_modules(reader_of(folder, "va"), "all")) == [whole, whole, whole, ["v_proj"]]
        assert by_layer(target_modules(reader_of(folder, "hidden_mean"), "all")) == [whole] * 4

    def test_experts_are_no_maps(self, made: Any) -> None:
        # Their weights stand in one tensor; what all tokens pass through is a map.
        names = target_modules(reader_of(made("deepseek_v2"), "va"), "all")
        assert [name for name in names if "expert" in name and "shared_experts" not in name] == []
        assert "layers.1.mlp.shared_experts.up_proj" in names


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi3", "deepseek_v2", "lfm2"])
def test_are_those_with_a_gradient_of_the_plain_formulas(made: Any, family: str) -> None:
    stock = AutoModel.from_pretrained(made(family))
    for method in ALL_METHODS:
        reader = reader_of(made(family), method)
        layers = reader.plan.layers
        features = reader.preprocess(["Some words to run through, and a few more."])
        gradients = plain_gradients(family, stock, method, features, layers)
        assert set(target_modules(reader, "all")) == gradients, method
        paths = tuple(FAMILIES[family].attention.format(layer) + "." for layer in reader.plan.decoder_spec.value_layers)
        assert set(target_modules(reader)) == {name for name in gradients if name.startswith(paths)}, method


def plain_gradients(
    family: str, model: nn.Module, method: str, features: dict[str, Tensor], layers: tuple[int, ...]
) -> set[str]:
    """The linear maps whose weight has a gradient that is not zero, of one text's vector [w]."""
    ids = features["input_ids"][0]
    positions = torch.arange(len(ids))
    first, end = features["text_span"][0, 0].tolist()
    with doubled(model) as stock, torch.enable_grad():
        stock.requires_grad_(True)
        if method == "hidden_mean":
            vector = stock(input_ids=ids[None]).last_hidden_state[0, first:end].mean(dim=0)
        else:
            found = blocks(family, stock, ids, positions, layers)
            vector = torch.stack([METHODS[method](block, FAMILIES[family], slice(first, end)) for block in found])
        # Weighted, for the mean square of what a norm has just scaled would hardly change.
        (vector * torch.linspace(1, 2, vector.shape[-1], dtype=torch.float64)).sum().backward()
        return {
            name
            for name, module in stock.named_modules()
            if isinstance(module, (nn.Linear, Conv1D))
            and module.weight.grad is not None
            and bool((module.weight.grad != 0).any())
        }


def test_the_model_is_left_as_it_was(folder: Path) -> None:
    reader = reader_of(folder, "va")
    reader.model.train()
    hooks = hooks_of(reader.model)
    before = {name: tensor.clone() for name, tensor in reader.model.state_dict().items()}
    wanted = {name: weight.requires_grad for name, weight in reader.model.named_parameters()}
    with torch.no_grad():
        target_modules(reader)
        assert not torch.is_grad_enabled()
    assert reader.model.training
    assert hooks_of(reader.model) == hooks
    assert {name: weight.requires_grad for name, weight in reader.model.named_parameters()} == wanted
    assert all(weight.grad is None for weight in reader.model.parameters())
    for name, tensor in reader.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    reader.model.eval()
    target_modules(reader)
    assert not reader.model.training


def test_no_hook_is_left_behind_by_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(folder, "va")

    def fail(*args: Any) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(reader, "read", fail)
    hooks = hooks_of(reader.model)
    reader.model.train()
    with pytest.raises(ValueError, match="no such luck"):
        target_modules(reader)
    assert hooks_of(reader.model) == hooks
    assert reader.model.training


def test_frozen_weights_and_half_precision_change_nothing(folder: Path) -> None:
    expected = target_modules(reader_of(folder, "wva"))
    reader = reader_of(folder, "wva", dtype="bfloat16")
    reader.requires_grad_(False)
    assert target_modules(reader) == expected


def test_an_unknown_scope_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"scope='attn' is unknown; legal: attention, all$"):
        target_modules(reader_of(folder, "va"), "attn")  # type: ignore[arg-type]


def test_nothing_to_train_is_refused(made: Any) -> None:
    # Hidden states after layer 0 of an lfm2, which is a convolution: no attention block comes before them.
    reader = reader_of(made("lfm2"), "hidden_mean", layers=[0])
    message = "method 'hidden_mean' reaches no linear map within scope='attention' of Lfm2Model, so there is nothing"
    with pytest.raises(RecipeError, match=message):
        target_modules(reader)
    assert target_modules(reader, "all")[0] == "layers.0.conv.in_proj"


def test_counts() -> None:
    # 3 * 2 weights and 2 biases, of which the biases are frozen.
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert counts(model) == 8
    assert counts(model, lambda weight: weight.requires_grad) == 6
