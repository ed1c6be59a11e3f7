"""What torch was told by the program around us: vectors, scores and training are the same as in a plain process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from training_runs import GRADED, pairs_file, trained

import valuembed
from valuembed._utils.torch_settings import building, default_device_and_precision, gradients
from valuembed.analysis.layer_sweep import sweep
from valuembed.models.encoder import ValueEncoder
from valuembed.models.explanation import explain
from valuembed.models.multi_readout import MultiReadout
from valuembed.research import linear_probe
from valuembed.serving.engine import EncoderEngine
from valuembed.serving.jobs import EmbedRequest
from valuembed.testing import tiny_decoder
from valuembed.training.target_modules import target_modules

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_anew")]

TEXTS = ["the sun rose", "over a quiet town while nobody watched", "rain"] * 4
METHODS = ("aligned_va", "wva")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
        assert torch.get_default_device() == torch.device(name)
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def without_gradients() -> Iterator[None]:
    torch.set_grad_enabled(False)
    try:
        yield
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@contextmanager
def products(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


AROUND: dict[str, Any] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "within meta": lambda: torch.device("meta"),
    "within cpu": lambda: torch.device("cpu"),
    "deterministic": deterministic,
    "no gradients": without_gradients,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "matmul": lambda: products("high"),
}


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ValueEncoder:
    return valuembed.load(folder, "aligned_va", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def vectors(encoder: ValueEncoder) -> np.ndarray:
    return encoder.encode(TEXTS)


@pytest.fixture(scope="module")
def weighed(folder: Path) -> ValueEncoder:
    return valuembed.load(folder, "wva", dtype="float32", device="cpu")


@contextmanager
def everything() -> Iterator[None]:
    autocast = torch.autocast("cpu", torch.bfloat16)
    with default_dtype(torch.float64), torch.device("meta"), autocast, torch.inference_mode(), deterministic():
        yield


@pytest.mark.parametrize("around", AROUND)
def test_vectors_are_those_of_a_plain_process(around: str, encoder: ValueEncoder, vectors: np.ndarray) -> None:
    with AROUND[around]():
        found = encoder.encode(TEXTS)
        none = encoder.encode([], convert_to_tensor=True)
        one = encoder.encode(TEXTS[0], convert_to_tensor=True)
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors)
    assert (none.dtype, none.device.type, tuple(none.shape)) == (torch.float32, "cpu", (0, vectors.shape[1]))
    assert (one.dtype, one.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("around", ["float64", "bfloat16", "meta", "within meta", "inference"])
def test_loaded_weights_are_those_of_a_plain_process(
    around: str, folder: Path, encoder: ValueEncoder, vectors: np.ndarray
) -> None:
    with AROUND[around]():
        again = valuembed.load(folder, "aligned_va", dtype="float32", device="cpu")
    for one, other in zip(encoder.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype
    assert not any(weight.is_inference() or not weight.requires_grad for weight in again.parameters())
    assert np.allclose(again.encode(TEXTS), vectors, atol=1e-6)


class TestEverythingAtOnce:
    def test_a_panel(self, folder: Path) -> None:
        panel = MultiReadout.load(folder, {name: name for name in METHODS}, dtype="float32", device="cpu")
        before = panel.encode(TEXTS)
        with everything():
            after = panel.encode(TEXTS)
        for name in METHODS:
            assert np.array_equal(after[name], before[name])

    def test_an_engine(self, encoder: ValueEncoder, vectors: np.ndarray) -> None:
        with everything():
            engine = EncoderEngine(encoder)
            served = engine.run(engine.prepare(TEXTS, EmbedRequest()))
        assert np.allclose(served, vectors, atol=1e-6)

    def test_weights_of_tokens(self, weighed: ValueEncoder) -> None:
        before = explain(weighed, TEXTS[1])
        with everything():
            after = explain(weighed, TEXTS[1])
        assert np.array_equal(after.sequences[0].weights, before.sequences[0].weights)

    def test_what_is_trained(self, encoder: ValueEncoder) -> None:
        before = target_modules(encoder.reader)
        with everything():
            assert target_modules(encoder.reader) == before

    def test_a_saved_folder(self, encoder: ValueEncoder, vectors: np.ndarray, tmp_path: Path) -> None:
        with everything():
            encoder.save_pretrained(str(tmp_path))
            again = valuembed.load(tmp_path, device="cpu")
            found = again.encode(TEXTS)
        assert np.allclose(found, vectors, atol=1e-6)

    def test_a_plain_sentence_transformer(self, encoder: ValueEncoder, vectors: np.ndarray, tmp_path: Path) -> None:
        encoder.save_pretrained(str(tmp_path))
        with everything():
            plain = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
            found = plain.encode(TEXTS)
        assert np.allclose(found, vectors, atol=1e-6)

    def test_a_sweep(self, folder: Path) -> None:
        before = sweep(folder, f"sts:{GRADED}", dtype="float32", device="cpu", progress=False)
        with everything():
            after = sweep(folder, f"sts:{GRADED}", dtype="float32", device="cpu", progress=False)
        assert after.scores == before.scores

    def test_a_linear_probe(self) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs, targets = torch.randn(64, 8, generator=generator), torch.arange(64) % 4
        before = linear_probe.train_softmax(inputs, targets, inputs, targets, 4)
        with everything():
            assert linear_probe.train_softmax(inputs, targets, inputs, targets, 4) == before

    def test_a_tiny_decoder(self) -> None:
        before = tiny_decoder("qwen3")
        with everything():
            after = tiny_decoder("qwen3")
        for one, other in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.equal(one, other)

    def test_training(self, folder: Path, tmp_path: Path) -> None:
        pairs = pairs_file(tmp_path / "pairs.jsonl")
        before = trained(folder, pairs, tmp_path / "one", steps=2)
        with everything():
            after = trained(folder, pairs, tmp_path / "two", steps=2)
        assert np.allclose(after.record["losses"], before.record["losses"], rtol=1e-5)


def test_a_trainer_keeps_its_autocast(encoder: ValueEncoder) -> None:
    # Where gradients are recorded, who asked for autocast gets it: products are rounded to bfloat16.
    features = encoder.preprocess(TEXTS[:2])
    exact = encoder(dict(features))["sentence_embedding"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder(dict(features))["sentence_embedding"]
    assert rounded.requires_grad
    assert 0 < float((exact - rounded).detach().abs().max()) < 0.05


def test_models_are_built_one_at_a_time() -> None:
    seen: list[torch.dtype] = []

    def build() -> None:
        for _ in range(50):
            with building():
                torch.set_default_dtype(torch.bfloat16)
                torch.set_default_dtype(torch.float32)
                seen.append(torch.get_default_dtype())

    with default_dtype(torch.float64):
        threads = [threading.Thread(target=build) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [torch.float32] * 200


def test_what_each_setting_is_within() -> None:
    with torch.inference_mode(), torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        with default_device_and_precision():
            assert torch.empty(1).device.type == "cpu"
            assert not torch.is_autocast_enabled("cpu")
            assert torch.is_inference_mode_enabled()
        with gradients():
            assert torch.empty(1).device.type == "cpu"
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
        assert torch.empty(1).device.type == "meta"
