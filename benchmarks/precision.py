"""What a precision of the weights costs in quality, and what it gives in speed and memory.

    python benchmarks/precision.py --task sts:FILE [--shape qwen3-0.6b] [--texts 200] [--rounds 3] [--device cpu]

Speed and memory on a random bfloat16 checkpoint of the shape, everyone in a process of its own, in turns; quality with
the bundled model, whose weights are bfloat16 too: its score on the task, and the lowest cosine of a text's vector to
that of float32. Needs the extra ``quantize``. Written beside this script: precision.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: several processes wait for their turn.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from contenders import PRECISIONS
from shapes import SHAPES, make_checkpoint, some_texts
from throughput import contenders, three, wrap
from torch import Tensor

import valuembed
from valuembed.data.labelled import read_sts
from valuembed.evaluation.runner import evaluate

HERE = Path(__file__).parent
WEIGHTS = ("float32", "bfloat16", "int8", "fp8")
METHODS = ("va", "aligned_wva")


def size(weight: Tensor) -> int:
    """Bytes of a tensor, or of those that a quantized one is made of."""
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return sum(size(getattr(weight, name)) for name in names)
    return weight.numel() * weight.element_size()


def megabytes(path: Path, weights: str) -> float:
    """What a decoder's weights take, embeddings among them."""
    model = valuembed.load(path, "va", dtype=weights, device="cpu")
    return sum(size(weight.data) for weight in model.reader.model.parameters()) / 2**20


def quality(task: str, device: str) -> dict[str, list[str]]:
    """For each precision and method a score and the lowest cosine."""
    pairs = read_sts(task.removeprefix("sts:"))
    texts = list(dict.fromkeys(pairs.sentences1))
    found: dict[str, list[str]] = {weights: [] for weights in WEIGHTS}
    for method in METHODS:
        exact = valuembed.load("bundled", method, dtype="float32", device=device).encode(texts)
        for weights in WEIGHTS:
            vectors = valuembed.load("bundled", method, dtype=weights, device=device).encode(texts)
            made = evaluate("bundled", method, task, dtype=weights, device=device, progress=False)
            (score,) = made.scores
            found[weights] += [f"{score.score:.2f}", f"{np.einsum('ij,ij->i', vectors, exact).min():.4f}"]
    return found


def speed(args: argparse.Namespace, path: Path) -> dict[str, list[float]]:
    """Times as fast as bfloat16 eager, round by round."""
    texts = some_texts(args.texts)
    names = [name for name in PRECISIONS if name.startswith("VA")]
    pace: dict[str, list[float]] = {name: [] for name in names}
    with contenders(names, path, args) as lines:
        # The first turn warms up.
        for number in range(args.rounds + 1):
            for name, line in lines.items():
                line.send(texts)
                seconds, _ = line.recv()
                if number:
                    pace[name].append(len(texts) / seconds)
                print(f"round {number}: {name} {len(texts) / seconds:.2f} texts/s", flush=True)
    usual = pace["VA, bfloat16"]
    return {name: [one / other for one, other in zip(found, usual, strict=True)] for name, found in pace.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="sts:FILE")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    args.dtype = "bfloat16"
    scores = quality(args.task, args.device)
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder), args.shape, args.dtype)
        sizes = {weights: megabytes(path, weights) for weights in WEIGHTS}
        pace = speed(args, path)
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU ({platform.machine()})"
    lines = [
        "# Precision of the weights",
        "",
        f"`python benchmarks/precision.py --task sts:{Path(args.task.removeprefix('sts:')).name} --shape {args.shape} "
        f"--texts {args.texts} --rounds {args.rounds} --device {args.device}`",
        "",
        *wrap(
            f"{device}, {args.threads} threads, torch {torch.__version__}, torchao {version('torchao')}. Speed and "
            f"memory: VA, default layers, a random bfloat16 checkpoint in the shape of {args.shape}, {args.texts} "
            "texts of log-normal length; times as fast as bfloat16 that is not compiled, median (lowest-highest) of "
            "the rounds. int8 and fp8 compute in bfloat16. Quality: the bundled model; Spearman x 100 on the task, and "
            "the lowest cosine of a text's vector to that of float32, which holds the same weights."
        ),
        "",
        "| weights | MB | not compiled | compiled | VA | lowest cosine | AlignedWVA, PromptEOL | lowest cosine |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for weights in WEIGHTS:
        one, other = (three(pace[f"VA, {weights}{how}"]) for how in ("", ", compiled"))
        lines.append(f"| {weights} | {sizes[weights]:.0f} | {one} | {other} | {' | '.join(scores[weights])} |")
    (HERE / "precision.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
