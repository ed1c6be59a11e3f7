"""What a precision costs in quality, and what it gives in speed and memory, with a real decoder.

    python benchmarks/precision.py --model DIR --sts FILE [--texts 400] [--rounds 3] [--device cpu] [--weights NAME ...]

Everyone in a process of its own, in turns; quality by the score of the same sentences' cosines, and by the cosines of
the vectors to those of float32. ``fp8`` needs the extra ``quantize``. Written beside this script: precision.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: several processes wait for their turn.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
from pathlib import Path

import numpy as np
import torch
from contenders import PRECISIONS
from throughput import contenders, device_name, pairs_of, score_of, three, wrap
from torch import Tensor

import valuembed
from valuembed.data import StsFile

HERE = Path(__file__).parent
WEIGHTS = ("float32", "bfloat16", "int8", "fp8")
METHODS = ("va", "aligned_wva")


def size(weight: Tensor) -> int:
    """Bytes of a tensor, or of those that a quantized one is made of."""
    if hasattr(weight, "__tensor_flatten__"):
        names, _ = weight.__tensor_flatten__()
        return sum(size(getattr(weight, name)) for name in names)
    return weight.numel() * weight.element_size()


def megabytes(decoder: torch.nn.Module) -> float:
    """What a decoder's weights take, embeddings among them."""
    held = {id(tensor): size(tensor.data) for tensor in (*decoder.parameters(), *decoder.buffers())}
    return sum(held.values()) / 2**20


def quality(args: argparse.Namespace, pairs: StsFile) -> tuple[dict[str, list[str]], dict[str, tuple[str, float]]]:
    """For each precision a score, the mean and the lowest cosine of each method; what it computes in, and megabytes."""
    texts = [*pairs.sentences1, *pairs.sentences2]
    found: dict[str, list[str]] = {weights: [] for weights in args.weights}
    held: dict[str, tuple[str, float]] = {}
    for method in METHODS:
        exact = valuembed.load(args.model, method, dtype="float32", device=args.device).encode(texts)
        for weights in args.weights:
            model = valuembed.load(args.model, method, dtype=weights, device=args.device)
            held.setdefault(weights, (model.compute_dtype, megabytes(model.reader.model)))
            vectors = model.encode(texts)
            cosines = np.einsum("ij,ij->i", vectors, exact)
            found[weights] += [f"{score_of(vectors, pairs):.2f}", f"{cosines.mean():.4f}", f"{cosines.min():.4f}"]
    return found, held


def speed(args: argparse.Namespace, pairs: StsFile) -> dict[str, list[float]]:
    """Times as fast as float32 that is not compiled, round by round."""
    texts = [*pairs.sentences1, *pairs.sentences2]
    names = [f"VA, {weights}{how}" for weights in args.weights for how in ("", ", compiled")]
    pace: dict[str, list[float]] = {name: [] for name in names if name in PRECISIONS}
    with contenders(list(pace), args.model, args) as lines:
        # The first turn warms up.
        for number in range(args.rounds + 1):
            for name, line in lines.items():
                line.send(texts)
                seconds, _ = line.recv()
                if number:
                    pace[name].append(len(texts) / seconds)
                print(f"round {number}: {name} {len(texts) / seconds:.2f} texts/s", flush=True)
    usual = pace["VA, float32"]
    return {name: [one / other for one, other in zip(found, usual, strict=True)] for name, found in pace.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a decoder")
    parser.add_argument("--sts", type=Path, required=True, help="file of pairs whose sentences are embedded")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="float32 among them")
    args = parser.parse_args()
    if "float32" not in args.weights:
        parser.error("--weights float32 is what the others are compared with")
    args.dtype = "float32"
    pairs = pairs_of(args)
    assert pairs is not None
    torch.set_num_threads(args.threads)
    scores, held = quality(args, pairs)
    pace = speed(args, pairs)
    lines = [
        "# Precision",
        "",
        f"`python benchmarks/precision.py --model DIR/{args.model.name} --sts {args.sts.name} --texts {args.texts} "
        f"--rounds {args.rounds} --device {args.device} --weights {' '.join(args.weights)}`",
        "",
        *wrap(
            f"{args.model.name}, {args.texts} sentences of {args.sts.name}, {device_name(args.device)}, {args.threads} "
            f"threads, torch {torch.__version__}. Speed: VA, times as fast as float32 that is not compiled, median "
            "(lowest-highest) of the rounds, everyone in turns. Quality: 100 times Spearman's correlation of the "
            "cosines with the labels, and the cosines of the vectors to those of float32."
        ),
        "",
        "| dtype | computes in | MB | as it is | compiled | VA | mean, lowest cosine | AlignedWVA, PromptEOL | mean, "
        "lowest cosine |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for weights in args.weights:
        one, other = (three(pace[f"VA, {weights}{how}"]) for how in ("", ", compiled"))
        computed, megabytes_held = held[weights]
        va, va_mean, va_least, aligned, aligned_mean, aligned_least = scores[weights]
        lines.append(
            f"| {weights} | {computed} | {megabytes_held:.0f} | {one} | {other} | {va} | {va_mean}, {va_least} | "
            f"{aligned} | {aligned_mean}, {aligned_least} |"
        )
    (HERE / "precision.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
