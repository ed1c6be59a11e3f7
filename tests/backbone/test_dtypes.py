"""Precisions by name. What a load makes of them is held in test_decoder."""

import pytest
import torch

from valuembed._utils import cpu_features
from valuembed.backbone.dtypes import COMPUTED, dtype_name, has_fast, usable_name
from valuembed.errors import RecipeError


def test_bytes_are_those_of_torch():
    assert {name: getattr(torch, name).itemsize for name in COMPUTED} == COMPUTED


@pytest.mark.parametrize(
    ("given", "name"),
    [(None, None), ("auto", None), ("float16", "float16"), ("torch.float64", "float64"), (torch.bfloat16, "bfloat16")],
)
def test_a_precision_has_a_name(given, name):
    assert dtype_name(given) == name


@pytest.mark.parametrize("given", ["int3", "float8", torch.int8, 16])
def test_an_unknown_precision_is_refused(given):
    with pytest.raises(RecipeError, match=r"is unknown; legal: auto, float32, bfloat16, float16, float64, int8, fp8$"):
        dtype_name(given)


@pytest.mark.parametrize("fast", [frozenset(), frozenset({"bfloat16"})])
def test_a_half_that_is_slow_becomes_float32(fast, monkeypatch):
    monkeypatch.setattr("valuembed.backbone.dtypes.fast_halves", lambda: fast)
    assert usable_name("bfloat16", "cpu") == ("bfloat16" if fast else "float32")
    assert usable_name("float16", "cpu:0") == "float32"
    assert usable_name("float64", "cpu") == "float64"


@pytest.mark.parametrize("native", [True, False])
def test_which_gpu_is_fast_in_half_precision(native, monkeypatch):
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_fast("bfloat16", "cuda:0") is native
    assert has_fast("float16", "cuda:0")


def test_without_a_device_it_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr("valuembed._utils.devices.machine_devices", lambda: ["cpu", "cuda:0"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr("valuembed.backbone.dtypes.fast_halves", frozenset)
    assert has_fast("bfloat16", None)
    monkeypatch.setattr("valuembed._utils.devices.machine_devices", lambda: ["cpu"])
    assert not has_fast("bfloat16", None)


def test_the_kernel_and_torch_agree_on_this_machine():
    assert cpu_features.fast_halves() == cpu_features._as_torch_tells()
    assert cpu_features.fast_int8.__wrapped__() or not torch.cpu._is_vnni_supported()


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("avx2 avx_vnni", True),
        ("avx512bw avx512vl avx512dq avx512_vnni", True),
        ("avx512bw avx512vl avx512dq", False),
        ("avx2 fma", False),
    ],
)
def test_which_cpus_are_fast_at_bytes(flags, fast, monkeypatch):
    monkeypatch.setattr(cpu_features, "_cpu_flags", lambda: set(flags.split()))
    assert cpu_features.fast_int8.__wrapped__() is fast


@pytest.mark.parametrize("fast", [True, False])
def test_where_the_kernel_does_not_tell_torch_does(fast, monkeypatch):
    monkeypatch.setattr(cpu_features, "_cpu_flags", lambda: None)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: fast)
    assert cpu_features.fast_int8.__wrapped__() is fast
