"""Where the time of a step goes: matrix products, attention, and everything between them.

    python benchmarks/where.py [--shape qwen3-0.6b] [--texts 100] [--dtype bfloat16] [--method va]

One profile of an ``encode`` call on a random checkpoint of the shape on the CPU, as it is and compiled, in a process of
its own each. Profiling costs time itself, so only shares mean something. Written beside this script: where.md.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import platform
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from shapes import SHAPES, make_checkpoint, some_texts
from throughput import wrap

HERE = Path(__file__).parent
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
}
REST = "norms, rotary positions, activations, copies"


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
        for compiled in (False, True):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                given = (path, args.method, args.dtype, args.texts, compiled)
                found["compiled" if compiled else "as it is"] = process.submit(shares, *given).result()
    kinds = (*KINDS, REST)
    lines = [
        "# Where the time goes",
        "",
        f"`python benchmarks/where.py --shape {args.shape} --texts {args.texts} --dtype {args.dtype} "
        f"--method {args.method}`",
        "",
        *wrap(
            f"Shares of the operations' own time in one `encode` of {args.texts} texts of log-normal length, a random "
            f"checkpoint in the shape of {args.shape}, {args.dtype}, CPU ({platform.machine()}), {os.cpu_count()} "
            "threads. Profiling makes small operations look larger than they are."
        ),
        "",
        f"| | {' | '.join(kinds)} |",
        f"|:--|{'--:|' * len(kinds)}",
        *(f"| {name} | {' | '.join(f'{of[kind]:.0%}' for kind in kinds)} |" for name, of in found.items()),
    ]
    (HERE / "where.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
