"""Gradients of the contrastive loss to the adapters, as autograd gives them for formulas spelt out in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from reference import FAMILIES, METHODS, blocks, doubled
from torch import Tensor
from transformers import AutoModel

from valuembed.models.encoder import ValueEncoder
from valuembed.models.loading import load
from valuembed.testing import tiny_checkpoint
from valuembed.training.finetune import _adapt
from valuembed.training.settings import TrainSettings
from valuembed.training.trainer import _loss

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny checkpoints by family, each made once."""
    folder = tmp_path_factory.mktemp("families")
    # Training switches the decoder's own dropout on, where it has one, and no two passes would be the same.
    still = {"gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, "phi3": {"resid_pdrop": 0.0}}
    return cache(
        lambda family: tiny_checkpoint(folder / family, family, tokenizer="byte_level_bos", **still.get(family, {}))
    )


class TestGradients:
    # Of many lengths, so that most rows are padded.
    ANCHORS = ("Rain.", "The train left ten minutes late.", "She bought a used car from a man in town.")
    OTHERS = ("It rains again and again.", "A late train.", "A car.")

    @pytest.mark.parametrize(
        ("family", "method"),
        [
            *(("qwen3", method) for method in ("va", "aligned_va", "wva", "aligned_wva", "hidden_mean")),
            *(("gemma3_text", method) for method in ("va", "aligned_wva")),
            *(("deepseek_v2", method) for method in ("aligned_va", "wva")),
            *(("lfm2", method) for method in ("va", "aligned_wva")),
            *(("phi3", method) for method in ("va", "aligned_va")),
            # Its projections are stored the other way round.
            *(("gpt2", method) for method in ("va", "aligned_wva")),
        ],
    )
    def test_equal_those_of_the_plain_formulas(self, made: Any, family: str, method: str) -> None:
        settings = TrainSettings(rank=3)
        encoder = load(made(family), method, device="cpu")
        maps = _adapt(encoder, settings)
        generator = torch.Generator().manual_seed(1)
        adapters = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
        for weight in adapters.values():
            # One of the two starts as zeros, and the other would get no gradient.
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
        sides = [encoder.preprocess(list(side)) for side in (self.ANCHORS, self.OTHERS)]
        expected = self._expected(AutoModel.from_pretrained(made(family)), family, method, encoder, maps, sides)

        right = expected.pop("loss")
        assert adapters.keys() == expected.keys()
        encoder.train()
        for checkpointing in (False, True):
            if checkpointing:
                encoder.reader.model.activation_checkpointing_enable({"use_reentrant": False})
            encoder.zero_grad()
            loss = _loss(encoder, replace(settings, checkpointing=checkpointing), 1)(sides, torch.empty(0))
            loss.backward()

            assert abs(loss.item() - right.item()) < 1e-4
            for name, weight in adapters.items():
                assert weight.grad is not None, name
                error = ((weight.grad.double() - expected[name]).norm() / expected[name].norm()).item()
                assert error < 2e-4, f"{name}: relative error {error:.2e}, {checkpointing=}"

    def _expected(
        self,
        model: Any,
        family: str,
        method: str,
        encoder: ValueEncoder,
        maps: list[str],
        sides: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Loss and gradients by the adapters' names: each map's weight W becomes W + 2 B A."""
        leaves: dict[str, Tensor] = {}
        with doubled(model) as stock, torch.enable_grad():
            stock.requires_grad_(False)
            for name in maps:
                module = stock.get_submodule(name)
                for part in ("lora_A", "lora_B"):
                    key = f"0.model.{name}.{part}.default.weight"
                    leaves[key] = encoder.get_parameter(key).detach().double().requires_grad_(True)
                a, b = (leaves[f"0.model.{name}.{part}.default.weight"] for part in ("lora_A", "lora_B"))
                update = 2 * b @ a
                weight = module._parameters.pop("weight")
                module.weight = weight + (update if weight.shape == update.shape and family != "gpt2" else update.T)
            layers = encoder.reader.plan.layers
            anchors, others = (
                torch.stack([self._vector(stock, family, method, layers, side, row) for row in range(3)])
                for side in sides
            )
            anchors, others = (x / x.norm(dim=1, keepdim=True) for x in (anchors, others))
            logits = anchors @ others.T / 0.05
            # Each anchor's own positive against all: the mean of log(sum of exp) less its own.
            loss = (logits.logsumexp(dim=1) - logits.diagonal()).mean()
            loss.backward()
        gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def _vector(
        self, stock: Any, family: str, method: str, layers: tuple[int, ...], side: dict[str, Tensor], row: int
    ) -> Tensor:
        (length,) = side["sequence_ends"][row].tolist()
        first, end = side["text_span"][row, 0].tolist()
        ids = side["input_ids"][row, :length]
        if method == "hidden_mean":
            return stock(input_ids=ids[None]).last_hidden_state[0, first:end].mean(dim=0)
        found = blocks(family, stock, ids, torch.arange(length), layers)
        return torch.stack([METHODS[method](block, FAMILIES[family], slice(first, end)) for block in found]).mean(0)
