"""What a watch on generation costs: `generate` alone, and watched with the vectors of prompt and answer read.

    python benchmarks/generation.py --model FOLDER [--rounds 7] [--tokens 64]

Both take turns round by round in one process, and the one that begins changes each round; ratios are formed within a
round. What reading takes is timed by itself as well: the rest of a ratio is noise of the machine. FOLDER holds a causal
language model. Written beside this script: generation.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import valuembed
from valuembed.evaluation.results import scoring_versions
from valuembed.reporting import markdown

HERE = Path(__file__).parent
PROMPT = (
    "The harbour was quiet before the first boats came in. She kept the old letters in a tin box under the stairs, and "
    "a meeting about the new bridge will be held on Tuesday. Prices rose again this month, but less than last year."
)
METHODS = ("va", "aligned_va")
READS = 50
"""How often the vectors are read again, for their time alone."""


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read(seen: Any) -> None:
    for _ in range(READS):
        seen.vectors(seen.generations[0].prompt_span)
        seen.vectors(seen.generations[0].generated_spans)


def measure(model: Any, ids: torch.Tensor, rounds: int, tokens: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, by method: plain, watched, and reading both vectors from the cache that is there."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "use_cache": True}
    found: dict[str, dict[str, list[float]]] = {}

    def plain() -> torch.Tensor:
        return model.generate(ids, **options)  # type: ignore[no-any-return]

    for method in METHODS:
        times = found[method] = {"plain": [], "watched": [], "reading": []}

        def watched(method: str = method) -> Any:
            with valuembed.watching(model, method) as seen:
                out = model.generate(ids, **options)
            return out, seen.prompt, seen.generated, seen

        same, _, _, seen = watched()
        if not torch.equal(plain(), same):
            raise SystemExit("the watched generation differs")
        for number in range(rounds):
            both = {"plain": plain, "watched": watched}
            for name in list(both)[:: 1 if number % 2 else -1]:
                times[name].append(seconds(both[name]))
            times["reading"].append(seconds(partial(read, seen)) / READS)
    return found


def cell(values: list[float], digits: int = 2) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def cpu() -> str:
    """The name of this machine's CPU."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def report(found: dict[str, dict[str, list[float]]], model: Any, prompt: int, args: argparse.Namespace) -> str:
    """The page that is written."""
    kind, layers = type(model).__name__, model.config.num_hidden_layers
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    told = json.dumps(scoring_versions(), separators=(", ", " "))[1:-1].replace('"', "")
    rows = []
    for method, times in found.items():
        more = [100 * (w / p - 1) for w, p in zip(times["watched"], times["plain"], strict=True)]
        share = [100 * r / p for r, p in zip(times["reading"], times["plain"], strict=True)]
        reading = [1000 * one for one in times["reading"]]
        rows.append(
            [f"`{method}`", cell(times["plain"]), cell(times["watched"]), cell(more, 1), cell(reading), cell(share, 3)]
        )
    head = ["method", "`generate` (s)", "watched (s)", "more (%)", "reading both vectors (ms)", "of `generate` (%)"]
    lines = [
        "# What a watch on generation costs",
        "",
        f"`python benchmarks/generation.py --model FOLDER --rounds {args.rounds} --tokens {args.tokens}`",
        "",
        f"One {kind} of {millions:.0f} million weights in {layers} layers, float32. Behind a prompt of {prompt} tokens",
        f"{args.tokens} more are generated. Median of {args.rounds} rounds (lowest to highest), plain and watched by",
        f"turns in one process. {cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch, {told}.",
        "What a single round differs by is mostly noise of the machine, on which other jobs may run. The two columns",
        "on the right time the reading alone, which is all that a watch adds besides one hook on the first pass.",
        "",
        *markdown.table(head, rows, "-rrrrr"),
        "",
        "The sequences that come back are equal to the bit.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a causal language model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="how many are generated")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32").eval()
    ids = AutoTokenizer.from_pretrained(args.model)(PROMPT, return_tensors="pt").input_ids
    page = report(measure(model, ids, args.rounds, args.tokens), model, ids.shape[1], args)
    (HERE / "generation.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
