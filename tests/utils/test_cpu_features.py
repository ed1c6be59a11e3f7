"""Which half precisions a CPU is fast in: read from what Linux tells, asked of torch elsewhere."""

from collections.abc import Iterator

import pytest
import torch

from valuembed._utils import cpu_features

PRODUCTS = "avx512bw avx512vl avx512dq"


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    cpu_features.fast_halves.cache_clear()
    yield
    cpu_features.fast_halves.cache_clear()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx2", set()),
        (f"fpu {PRODUCTS} avx512_vnni", set()),
        (f"{PRODUCTS} avx512_bf16", {"bfloat16"}),
        (f"{PRODUCTS} amx_tile amx_bf16", {"bfloat16"}),
        ("avx512_bf16", set()),
        (f"{PRODUCTS} amx_tile amx_fp16", {"bfloat16", "float16"}),
    ],
)
def test_by_the_flags_of_an_x86_cpu(flags, expected, tmp_path, monkeypatch):
    told = tmp_path / "cpuinfo"
    told.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: none\nprocessor\t: 1\nflags\t: other\n")
    monkeypatch.setattr(cpu_features, "_FLAGS", told)
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: "x86_64")
    assert cpu_features.fast_halves() == expected


@pytest.mark.parametrize("machine", ["arm64", "x86_64"])
@pytest.mark.parametrize(
    ("avx512", "amx", "mkldnn", "expected"),
    [(True, False, True, True), (False, True, True, True), (False, False, True, False), (True, True, False, False)],
)
def test_torch_is_asked_where_the_kernel_does_not_tell(machine, avx512, amx, mkldnn, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_features, "_FLAGS", tmp_path / "none")
    monkeypatch.setattr(cpu_features.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: mkldnn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: False)
    assert cpu_features.fast_halves() == ({"bfloat16"} if expected else set())
