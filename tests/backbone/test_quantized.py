"""Quantized checkpoints: what reads them is named before any weight is read, in one line."""

from __future__ import annotations

import json

import pytest
from running import fails, succeeds
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import valuembed
from valuembed.backbone.checkpoints import quantized
from valuembed.backbone.checkpoints.quantized import NEEDS, check_quantization, describe_quantization
from valuembed.cli import main as cli
from valuembed.errors import MissingExtraError, UnsupportedModelError
from valuembed.testing import tiny_checkpoint

BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture
def machine(monkeypatch):
    """A machine with some packages and perhaps a GPU."""

    def have(*modules, gpu=False):
        monkeypatch.setattr(quantized, "_is_installed", lambda module: module in modules)
        monkeypatch.setattr(quantized, "machine_devices", lambda: ["cpu", *(["cuda:0"] if gpu else [])])

    return have


def checkpoint(folder, **settings):
    tiny_checkpoint(folder, "qwen3")
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": settings}
    path.write_text(json.dumps(config))
    return folder


def test_the_table_is_that_of_transformers():
    theirs = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    # Weights in .gguf files are not read.
    assert set(NEEDS) == theirs - {"gguf"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            BITSANDBYTES,
            "the quantization bitsandbytes 4-bit needs bitsandbytes and accelerate, which are not installed;",
        ),
        ({"load_in_8bit": True}, "the quantization bitsandbytes 8-bit needs bitsandbytes and accelerate, which are"),
        (
            {"quant_method": "gptq", "bits": 4},
            "the quantization gptq 4-bit needs optimum and gptqmodel, which are not ins",
        ),
        ({"quant_method": "awq", "bits": 4}, "run: pip install gptqmodel accelerate"),
        ({"quant_method": "compressed-tensors"}, "run: pip install compressed-tensors"),
        ({"quant_method": "hqq"}, "the quantization hqq needs hqq, which is not installed; run: pip install hqq"),
        ({"quant_method": "quanto", "weights": "int8"}, "run: pip install optimum-quanto accelerate"),
        ({"quant_method": "aqlm"}, 'run: pip install "aqlm[gpu,cpu]" accelerate'),
        ({"quant_method": "torchao"}, "run: pip install torchao"),
        ({"quant_method": "auto-round", "bits": 4}, "run: pip install auto-round"),
        ({"quant_method": "quark"}, "run: pip install amd-quark"),
        ({"quant_method": "fp8"}, "run: pip install accelerate"),
    ],
)
def test_a_missing_package_is_named(machine, settings, message):
    machine(gpu=True)
    with pytest.raises(MissingExtraError) as raised:
        check_quantization(settings, "model 'x'")
    assert str(raised.value).startswith("model 'x': the quantization ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", sorted(NEEDS))
def test_what_is_here_passes(machine, method):
    machine(*NEEDS[method].packages, gpu=True)
    check_quantization({"quant_method": method}, "model 'x'")
    assert "not installed" not in (describe_quantization({"quant_method": method}) or "")


def test_a_missing_gpu_is_named(machine):
    machine("vptq", "accelerate")
    with pytest.raises(
        UnsupportedModelError, match="the quantization vptq needs a GPU, of which this machine has none; use"
    ):
        check_quantization({"quant_method": "vptq"}, "model 'x'")
    machine()
    with pytest.raises(
        UnsupportedModelError, match="has none, and vptq and accelerate, not installed either; use a mach"
    ):
        check_quantization({"quant_method": "vptq"}, "model 'x'")


@pytest.mark.parametrize("settings", [{"quant_method": "modelopt"}, {"quant_method": None, "bits": 4}, {"bits": 4}])
def test_an_unknown_quantization_is_refused(settings):
    name = settings.get("quant_method") or "without a quant_method"
    with pytest.raises(
        UnsupportedModelError, match=f"the quantization {name}.* is none that can be read; legal: aqlm, "
    ):
        check_quantization(settings, "model 'x'")


@pytest.mark.parametrize("settings", [None, {}])
def test_weights_that_are_not_quantized(settings):
    check_quantization(settings, "model 'x'")
    assert describe_quantization(settings) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit, needs optimum and gptqmodel (gptqmodel not installed)"),
        ({"quant_method": "bitnet"}, "bitnet, needs accelerate (installed)"),
        ({"quant_method": "gemma"}, "gemma"),
        (
            {"quant_method": "nvfp4"},
            "nvfp4, needs kernels (kernels not installed), needs a GPU (this machine has none)",
        ),
        ({"quant_method": "modelopt"}, "modelopt, which transformers has no reader for"),
    ],
)
def test_in_a_few_words(machine, settings, told):
    machine("optimum", "accelerate")
    assert describe_quantization(settings) == told


def test_a_package_whose_parent_is_missing_is_missing():
    assert not quantized._is_installed("no_such_package.quanto")
    assert quantized._is_installed("json.decoder")


def test_loading_says_it_in_one_line(machine, tmp_path):
    machine()
    folder = checkpoint(tmp_path, quant_method="gptq", bits=4)
    with pytest.raises(
        MissingExtraError, match=r"^model '.*': the quantization gptq 4-bit needs optimum and gptqmodel"
    ):
        valuembed.load(folder)
    assert cli.app.registered_commands
    message = fails("similarity", "a", "b", "--model", folder)
    assert message.endswith("run: pip install optimum gptqmodel")


def test_info_says_it_beforehand(machine, tmp_path):
    machine()
    folder = checkpoint(tmp_path, quant_method="gptq", bits=4)
    told = "gptq 4-bit, needs optimum and gptqmodel (optimum and gptqmodel not installed)"
    assert valuembed.info(folder).quantization == told
    shown = [" ".join(line.split()) for line in succeeds("info", folder).splitlines()]
    assert f"quantized {told}" in shown


def test_what_a_reader_raises_is_one_line(machine, tmp_path, monkeypatch):
    from transformers import PreTrainedModel

    def fail(*args, **kwargs):
        raise AssertionError("Torch not compiled with CUDA enabled\nand more")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    message = fails("similarity", "a", "b", "--model", tiny_checkpoint(tmp_path))
    assert "its weights cannot be loaded: Torch not compiled with CUDA enabled and more" in message
