"""What measuring costs: six methods in one command, and a sweep of every layer and signal, against plain runs.

    python benchmarks/measuring.py --task sts:FILE [--model bundled] [--rounds 5] [--dtype float32]

All in one process, taking turns round by round; ratios are formed within a round. Peak memory is that of a process of
its own for each. Written beside this script: measuring.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import valuembed
from valuembed.analysis.layer_sweep import sweep
from valuembed.data.labelled import read_sts
from valuembed.evaluation.results import scoring_versions
from valuembed.evaluation.runner import evaluate

HERE = Path(__file__).parent
GROUPS = {"none": ["va", "aligned_va", "hidden_mean"], "prompt_eol": ["wva", "aligned_wva", "prompt_eol"]}
# One method for each template that runs all layers, as the six together do.
PLAIN = ["hidden_mean", "prompt_eol"]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_megabytes(code: str) -> float:
    """Peak memory of a process of its own that runs this code."""
    told = f"{code}\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    # What getrusage tells begins with the size of the process that started this one.
    return int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="sts:FILE")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    pairs = read_sts(args.task.removeprefix("sts:"))
    # As mteb has them embedded: both sides, each text once.
    texts = list(dict.fromkeys([*pairs.sentences1, *pairs.sentences2]))
    model = valuembed.load(args.model, "prompt_eol", dtype=args.dtype)
    jobs: dict[str, Callable[[], object]] = {
        "six": lambda: evaluate(
            args.model, [m for of in GROUPS.values() for m in of], args.task, dtype=args.dtype, progress=False
        ),
        **{
            one: lambda one=one: evaluate(args.model, one, args.task, dtype=args.dtype, progress=False) for one in PLAIN
        },
        "sweep": lambda: sweep(args.model, args.task, template="prompt_eol", dtype=args.dtype, progress=False),
        "encode": lambda: model.encode(texts, show_progress_bar=False),
    }
    for job in jobs.values():
        job()
    spent = [{name: seconds(job) for name, job in jobs.items()} for _ in range(args.rounds)]
    ratios = {
        f"{' + '.join(GROUPS['none'])} and {' + '.join(GROUPS['prompt_eol'])} in one command / {' + '.join(PLAIN)}, "
        "a command each": [one["six"] / sum(one[plain] for plain in PLAIN) for one in spent],
        "sweep of all layers and signals with PromptEOL / one full-depth encode with PromptEOL": [
            one["sweep"] / one["encode"] for one in spent
        ],
    }
    options = f"'{args.model}', dtype='{args.dtype}', template='prompt_eol'"
    setup = "import valuembed\nfrom valuembed.data.labelled import read_sts\n"
    setup += f"pairs = read_sts({pairs.paths[0].as_posix()!r})\n"
    memory = {
        "sweep of all layers and signals": "from valuembed.analysis import sweep\n"
        f"sweep({options}, task={args.task!r})",
        "full-depth encode of the same texts": f"{setup}model = valuembed.load({options}, method='prompt_eol')\n"
        "model.encode([*pairs.sentences1, *pairs.sentences2])",
    }
    lines = [
        "# What measuring costs",
        "",
        f"Made by `python benchmarks/measuring.py --task sts:FILE --model {args.model} --rounds {args.rounds} --dtype "
        f"{args.dtype}`,",
        f"on {os.cpu_count()} CPU cores, Python {platform.python_version()}, "
        f"{', '.join(map(' '.join, scoring_versions().items()))}.",
        f"{pairs.paths[0].name}: {len(pairs.scores):,} pairs, {len(texts):,} different texts. Everything but the",
        "encode loads its model too.",
        "",
        f"| ratio of seconds, {args.rounds} rounds in one process | min | median | max |",
        "|:--|--:|--:|--:|",
    ]
    for name, found in ratios.items():
        lines.append(f"| {name} | {min(found):.2f} | {statistics.median(found):.2f} | {max(found):.2f} |")
    lines += ["", "| peak memory of a process of its own | MB |", "|:--|--:|"]
    lines += [f"| {name} | {peak_megabytes(code):,.0f} |" for name, code in memory.items()]
    medians = {name: statistics.median(one[name] for one in spent) for name in jobs}
    lines += ["", "Median seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in medians.items()) + "."]
    (HERE / "measuring.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
