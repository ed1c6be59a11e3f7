"""What goes on to ``from_pretrained``: unknown names and values that mean nothing are told in one line."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from transformers import PreTrainedModel

import valuembed
from valuembed.backbone.model_kwargs import LEGAL, RESERVED, check_model_kwargs
from valuembed.errors import CheckpointError, DeviceError, MissingExtraError, RecipeError, UnsupportedModelError
from valuembed.models.multi_readout import MultiReadout


def test_what_is_legal_is_an_argument_of_from_pretrained():
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    removed = re.search(r"for name in \[(.*?)\]:", source)
    taken = {
        *re.findall(r'kwargs\.pop\(\s*"(\w+)"', source),
        *re.findall(r'"(\w+)"', removed[1] if removed else ""),
        *inspect.signature(PreTrainedModel.from_pretrained).parameters,
    }
    assert set(LEGAL) <= taken
    assert not set(LEGAL) & RESERVED


@pytest.mark.parametrize(
    "given", [None, {}, {"attn_implementation": "eager"}, {"device_map": {"": "cpu", "layers": "disk"}}]
)
def test_what_is_fine_is_copied(given):
    checked = check_model_kwargs(given)
    assert checked == (given or {})
    assert checked is not given


@pytest.mark.parametrize("place", ["auto", "balanced", "balanced_low_0", "sequential", "cpu", torch.device("cpu")])
def test_places(place):
    assert check_model_kwargs({"device_map": place, "max_memory": {"cpu": "1GB", "disk": 5}})["device_map"] == place


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"foo": 1}, RecipeError, "model_kwargs: 'foo' is unknown; legal: allow_all_kernels, attn_implementation, "),
        (
            {"atn_implementation": "eager"},
            RecipeError,
            "'atn_implementation' is unknown; did you mean 'attn_implementatio",
        ),
        ({"devicemap": "auto"}, RecipeError, "'devicemap' is unknown; did you mean 'device_map'? legal: "),
        ({7: 1}, RecipeError, "model_kwargs: 7 is unknown; legal: "),
        (
            {"load_in_4bit": True},
            RecipeError,
            "load_in_4bit is no argument of its own; give transformers' quantization_",
        ),
        (
            {"load_in_8bit": True},
            RecipeError,
            "BitsAndBytesConfig(load_in_8bit=True), which needs the package bitsandby",
        ),
        ({"backend": "onnx"}, RecipeError, "model_kwargs: backend='onnx' is not possible, values are read while torch"),
        (
            {"quantization_config": 5},
            RecipeError,
            "quantization_config=5 has to be one of transformers' configurations",
        ),
        (
            {"quantization_config": {"quant_method": "foo"}},
            UnsupportedModelError,
            "the quantization foo is none that can",
        ),
        ({"revision": "x"}, CheckpointError, "model_kwargs cannot hold revision: "),
        ({"device_map": "autoo"}, DeviceError, "device_map: device 'autoo' is unknown; this machine has: cpu"),
        (
            {"device_map": "autoo"},
            DeviceError,
            "did you mean 'auto'? legal: auto, balanced, balanced_low_0, sequential, ",
        ),
        (
            {"device_map": "cpu:3"},
            DeviceError,
            "model_kwargs: device_map: device 'cpu:3' is not there; this machine has",
        ),
        ({"device_map": 99}, DeviceError, "model_kwargs: device_map: device 99 is not there; this machine has: cpu"),
        (
            {"device_map": {"layers.0": "cdua"}},
            DeviceError,
            "device_map['layers.0']: device 'cdua' is unknown; did you me",
        ),
        (
            {"device_map": {"": 99}},
            DeviceError,
            "model_kwargs: device_map['']: device 99 is not there; this machine has",
        ),
        (
            {"max_memory": {"cpu": "1GB"}},
            RecipeError,
            "max_memory says how a device map is drawn up; give device_map='au",
        ),
        (
            {"device_map": "auto", "max_memory": "1GB"},
            RecipeError,
            "max_memory='1GB' has to be a dict, such as {0: '20G",
        ),
        ({"device_map": "auto", "max_memory": {"gpu": 1}}, DeviceError, "max_memory: device 'gpu' is unknown; "),
        (5, RecipeError, "model_kwargs=5 has to be a dict of arguments for from_pretrained"),
        ([("a", 1)], RecipeError, "model_kwargs=[('a', 1)] has to be a dict of arguments for from_pretrained"),
    ],
)
def test_what_is_not_is_told_in_one_line(folder, given, error, message):
    for use in (
        lambda: valuembed.load(folder, model_kwargs=given),
        lambda: MultiReadout.load(folder, {"va": "va"}, model_kwargs=given),
    ):
        with pytest.raises(error) as raised:
            use()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_quantization_whose_package_is_missing(folder, monkeypatch):
    from transformers import BitsAndBytesConfig

    monkeypatch.setattr("valuembed.backbone.checkpoints.quantized._is_installed", lambda module: False)
    for settings in ({"load_in_4bit": True}, BitsAndBytesConfig(load_in_4bit=True)):
        with pytest.raises(
            MissingExtraError, match=r"^model_kwargs: the quantization bitsandbytes 4-bit needs bitsandbytes"
        ):
            valuembed.load(folder, model_kwargs={"quantization_config": settings})


def test_an_embedding_matrix_on_disk(folder):
    places = {"device_map": "auto", "max_memory": {"cpu": "10KB"}}
    with pytest.raises(
        CheckpointError, match="the device map leaves its embedding matrix on disk, where nothing can be fed"
    ):
        valuembed.load(folder, model_kwargs=places)


def test_sizes_of_memory_that_mean_nothing(folder):
    with pytest.raises(CheckpointError, match=r"its weights cannot be loaded: .*1xB is not in a valid format"):
        valuembed.load(folder, model_kwargs={"device_map": "auto", "max_memory": {"cpu": "1xB"}})
