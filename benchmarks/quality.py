"""Spearman correlation of every method on STS files, as one Markdown table.

    python benchmarks/quality.py --data DIR [--model bundled] [--layers SPEC] > benchmarks/quality.md

DIR holds JSON Lines files with sentence1, sentence2 and score (and split, of which only test counts where a file mixes
several). Pairs of all subsets are concatenated; the figure is Spearman of cosine similarity and gold score, times 100.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from scipy.stats import spearmanr

import valuembed
from valuembed.layers import describe

SETS = {
    "STSb dev": ("STSBenchmark.en.dev.jsonl", "dev"),
    "STSb test": ("STSBenchmark.en.test.jsonl", "test"),
    "STS12": ("STS12.jsonl", "test"),
    "STS13": ("STS13.jsonl", "test"),
    "STS14": ("STS14.jsonl", "test"),
}

# Method, template, layers (None: the method's own).
ROWS = [
    ("hidden_mean", "auto", None, "mean of hidden states, after the final norm"),
    ("hidden_mean", "auto", [0], "mean of layer 0's hidden states, about a bag of embeddings"),
    ("hidden_last", "auto", None, "last token's hidden state"),
    ("echo", "auto", None, "Echo"),
    ("prompt_eol", "auto", None, "PromptEOL"),
    ("prompt_eol", "pretended_cot", None, "Pretended CoT"),
    ("prompt_eol", "knowledge", None, "Knowledge"),
    ("meta_eol", "auto", None, "MetaEOL (task texts ours)"),
    ("va", "auto", None, "VA"),
    ("va", "auto", "all", "VA, all layers"),
    ("va", "auto", "half", "VA, second half"),
    ("aligned_va", "auto", None, "AlignedVA"),
    ("wva", "none", None, "WVA, text's own last token (LT)"),
    ("wva", "auto", None, "WVA, PromptEOL"),
    ("wva", "future_eol", None, "WVA, FutureEOL (wording ours)"),
    ("aligned_wva", "none", None, "AlignedWVA, LT"),
    ("aligned_wva", "auto", None, "AlignedWVA, PromptEOL"),
    ("aligned_wva", "auto", "all", "AlignedWVA, PromptEOL, all layers"),
    ("aligned_wva", "future_eol", None, "AlignedWVA, FutureEOL (wording ours)"),
]


BUNDLED_NOTE = """The bundled model was taught the templates of PromptEOL and FutureEOL (see its card), so the rows
with a template profit from that and are no evidence for a training-free method. Nothing was tuned on these sets."""


def read_pairs(path: Path, split: str) -> tuple[list[str], list[str], list[float]]:
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    records = [record for record in records if record.get("split", split) == split]
    return tuple([record[key] for record in records] for key in ("sentence1", "sentence2", "score"))


def spearman(model: valuembed.ValueEncoder, pairs: tuple[list[str], list[str], list[float]]) -> float:
    first, second, scores = pairs
    texts = list(dict.fromkeys([*first, *second]))
    vectors = dict(zip(texts, model.encode(texts).astype("float64"), strict=True))
    a, b = (np.stack([vectors[text] for text in side]) for side in (first, second))
    return 100 * float(spearmanr((a * b).sum(axis=1), scores).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the STS files")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--start", type=int, default=0, help="row to go on with after an interruption, from 0")
    parser.add_argument("--layers", help="layers of the value methods, in place of their default")
    args = parser.parse_args()
    sets = {name: read_pairs(args.data / file, split) for name, (file, split) in SETS.items()}

    print(f"# Quality: every method on {args.model}\n")
    extra = f" --layers {args.layers}" if args.layers else ""
    print(f"Made by `python benchmarks/quality.py --data DIR --model {args.model}{extra}`, float32, on")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__},")
    print(
        f"valuembed {valuembed.__version__}. Spearman x100 of cosine similarity; pairs of all subsets concatenated.\n"
    )
    print("Pairs: " + ", ".join(f"{name} {len(pairs[2])}" for name, pairs in sets.items()) + ".\n")
    print(f"| method | layers | width | {' | '.join(sets)} |")
    print(f"|---|---|---|{'---|' * len(sets)}")
    for method, template, layers, label in ROWS[args.start :]:
        if args.layers and layers is None and valuembed.METHODS[method].signal == "value":
            layers = args.layers
        model = valuembed.load(args.model, method, template=template, layers=layers, dtype="float32")
        figures = [spearman(model, pairs) for pairs in sets.values()]
        read = model.recipe.layers
        shown = describe(read) if isinstance(read, tuple) else "final"
        cells = " | ".join(f"{figure:.2f}" for figure in figures)
        print(f"| {label} | {shown} | {model.get_embedding_dimension()} | {cells} |", flush=True)
        print(f"done: {label}", file=sys.stderr)
    if args.model == "bundled":
        print(f"\n{BUNDLED_NOTE}")


if __name__ == "__main__":
    main()
