"""Where the time of a step goes: matrix products, attention, and everything between them.

    python benchmarks/where.py [--shape qwen3-0.6b] [--texts 100] [--dtype bfloat16] [--method va]

One profile of an ``encode`` call on a random checkpoint of the shape on the CPU, as it is and compiled, also with
products in int8 where the CPU is made for it, in a process of its own each. Profiling costs time itself, so only shares
mean something. Written beside this script: where.md, with what was tried to make more of the time and did not.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from real import cpu_name
from shapes import SHAPES, make_checkpoint, some_texts
from throughput import wrap

from valuembed.backbone import computes_in_int8

HERE = Path(__file__).parent
KINDS = {
    "matrix products": ("aten::mm", "aten::_int_mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
}
REST = "norms, rotary positions, activations, copies"

TRIED = [
    (
        "one matrix for queries, keys and values, one for gate and up",
        "2,048 tokens run at 260 GFLOP/s through 576 x 576, and at 260 through 576 x 3,072",
        "nothing to gain",
    ),
    (
        "`torch.nn.functional.rms_norm` on the CPU, `[2048, 576]`",
        "1.3 ms; transformers' own eight operations take 0.9",
        "as it is",
    ),
    (
        "torchao's int8 with dynamic activations, SmolLM2",
        "88 texts/s, where float32 has 100; compiled, it was refused: off by 0.09",
        "our own layer: 149, compiled 230",
    ),
    (
        "torch's `linear_dynamic`, one step for all tokens",
        "0.3 to 0.8 of the speed of int8 products, and a token with large activations takes all others' precision",
        "a step for each token",
    ),
    (
        "oneDNN's linear map with float32 results, `[2048, 576]` to 3,072",
        "10.0 ms; `_int_mm` and the scaling of its sums take 11.0, and less where a compiler joins them; with signed "
        "activations it takes a minute",
        "`_int_mm`",
    ),
    (
        "`torch.quantize_per_channel` with a step for each token, `[2048, 576]`",
        "6.0 ms; four plain operations take 0.8",
        "plain operations",
    ),
    (
        "int8 without smoothing, SmolLM2, VA",
        "mean cosine to float32 0.987; with it 0.997",
        "smoothing",
    ),
    (
        "smoothing by random tokens in place of sentences, Gemma 3 270M, VA",
        "mean cosine to float32 0.997; by sentences 0.999",
        "sentences",
    ),
    (
        "huge pages (`glibc.malloc.hugetlb=1`), 200 sentences, SmolLM2, VA, compiled, three processes of each in turns",
        "120, 82 and 74 texts/s; without 123, 80 and 77",
        "as it is",
    ),
    (
        "the compiler's own matrix products (`max_autotune`, backends CPP and ATEN), the same sentences",
        "82 texts/s beside 77 to 80, which is noise; the first call takes 25 s in place of 15",
        "oneDNN's",
    ),
    (
        "the same with frozen weights",
        "71 texts/s; the first call takes 114 s, as each layer is compiled by itself",
        "one compilation for all layers",
    ),
    (
        "packed steps of 384 to 2,048 tokens, 256 sentences, SmolLM2, VA",
        "0.99 to 1.09 times padded steps in float32, 0.92 to 1.07 in int8, without an order",
        "2,048",
    ),
    (
        "packed rows whose texts of up to 64 tokens attend in one group, SmolLM2, AlignedWVA, int8, calls of 64",
        "0.77 times padded rows; in groups of up to 16, 32 and 64 tokens 1.23",
        "groups from 16 on",
    ),
]
"""What was tried, what was found, and what stands in its place."""


def shares(path: str, method: str, dtype: str, count: int, compiled: bool) -> dict[str, float]:
    """Of the operations' own time, the share of each kind."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    import valuembed
    from valuembed.execution.cpu_memory import tune_memory

    tune_memory()
    torch.set_num_threads(os.cpu_count() or 1)
    model = valuembed.load(path, method, dtype=dtype, device="cpu", compile=compiled)
    texts = some_texts(count)
    model.encode(texts)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        model.encode(texts)
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), REST)
        spent[kind] += event.self_cpu_time_total
    return {kind: spent[kind] / spent.total() for kind in (*KINDS, REST)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--method", default="va")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(make_checkpoint(Path(folder), args.shape, args.dtype))
        found = {}
        for weights in (args.dtype, *(["int8"] if computes_in_int8("int8", device="cpu") else [])):
            for compiled in (False, True):
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    given = (path, args.method, weights, args.texts, compiled)
                    name = f"{weights}, {'compiled' if compiled else 'as it is'}"
                    found[name] = process.submit(shares, *given).result()
    kinds = (*KINDS, REST)
    lines = [
        "# Where the time goes",
        "",
        f"`python benchmarks/where.py --shape {args.shape} --texts {args.texts} --dtype {args.dtype} "
        f"--method {args.method}`",
        "",
        *wrap(
            f"Shares of the operations' own time in one `encode` of {args.texts} texts of log-normal length, a random "
            f"checkpoint in the shape of {args.shape}, {cpu_name()}, {os.cpu_count()} threads. Profiling makes small "
            "operations look larger than they are."
        ),
        "",
        f"| | {' | '.join(kinds)} |",
        f"|:--|{'--:|' * len(kinds)}",
        *(f"| {name} | {' | '.join(f'{of[kind]:.0%}' for kind in kinds)} |" for name, of in found.items()),
        "",
        "## What was tried and did not pay",
        "",
        *wrap(
            "Measured once each, on two cores of an Intel Xeon with AVX-512 and VNNI, without AMX, in float32 unless "
            "another precision is named; SmolLM2 is SmolLM2-135M, its rates those of 600 sentences by VA."
        ),
        "",
        "| tried | found | in its place |",
        "|:--|:--|:--|",
        *(f"| {' | '.join(row)} |" for row in TRIED),
    ]
    (HERE / "where.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
