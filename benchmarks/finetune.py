"""Finetune-VA against fine-tuned hidden states: the same pairs, trainer and settings, several seeds.

    python benchmarks/finetune.py --pairs FILE --dev sts:FILE --test sts:FILE [--model bundled] [--seeds 0 1 2]
        [--epochs 1] [--dtype float32] [--work DIR]

Each run is a process of its own, one after the other, so that peak memory is that of the run; a run whose result lies
in --work is not repeated. Settings are the library's defaults, the same for every row. Written beside this script:
finetune.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
# Label: method, layers, scope; None is not trained.
ROWS = {
    "VA, untrained": ("va", None, None),
    "mean of hidden states, untrained": ("hidden_mean", None, None),
    "Finetune-VA, attention": ("va", None, "attention"),
    "mean of hidden states, fine-tuned, attention": ("hidden_mean", None, "attention"),
    "mean of hidden states, fine-tuned, all linear maps": ("hidden_mean", None, "all"),
}
# Run in a process of its own: train if asked to, then score with mteb's metric.
CODE = """
import json, sys
from valuembed.evaluation.runner import evaluate
from valuembed.training.finetune import train
told = json.loads(sys.argv[1])
model, spent, trained, steps = told["model"], 0.0, 0, 0
if told["scope"]:
    made = train(model, told["pairs"], told["method"], layers=told["layers"], output=told["folder"], overwrite=True,
                 scope=told["scope"], seed=told["seed"], epochs=told["epochs"], dtype=told["dtype"], progress=False)
    spent, trained, steps = made.record["seconds"], made.record["parameters"]["trained"], made.record["steps"]
# What getrusage tells would begin with the size of the process that started this one.
peak = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024
folder = told["folder"] if told["scope"] else model
methods = None if told["scope"] else {"untrained": told["method"]}
found = evaluate(folder, methods, told["tasks"], dtype="float32", layers=None if told["scope"] else told["layers"])
scores = {score.task: score.score for score in found.scores}
print(json.dumps({"scores": scores, "seconds": spent, "trained": trained, "steps": steps, "peak": peak}))
"""


def runs(label: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    method, layers, scope = ROWS[label]
    for seed in args.seeds if scope else args.seeds[:1]:
        name = f"{method}-{layers or 'default'}-{scope or 'untrained'}-{seed}"
        kept = args.work / f"{name}.json"
        if not kept.is_file():
            told = {
                "model": args.model, "pairs": args.pairs, "method": method, "layers": layers, "scope": scope,
                "seed": seed, "epochs": args.epochs, "dtype": args.dtype, "folder": str(args.work / name),
                "tasks": [args.dev, args.test],
            }  # fmt: skip
            done = subprocess.run([sys.executable, "-c", CODE, json.dumps(told)], stdout=subprocess.PIPE, check=True)
            kept.write_text(done.stdout.decode().splitlines()[-1])
        yield json.loads(kept.read_text())


def spread(values: list[float], digits: int) -> str:
    """Mean, and over several runs the lowest and highest."""
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="to train on, see valuembed train --help")
    parser.add_argument("--dev", required=True, help="sts:FILE")
    parser.add_argument("--test", required=True, help="sts:FILE")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32", help="of the frozen weights")
    parser.add_argument("--work", type=Path, default=Path("finetune-results"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    from valuembed.training.settings import TrainSettings

    settings = TrainSettings(epochs=args.epochs)
    lines = [
        "# Fine-tuning",
        "",
        f"Made by `python benchmarks/finetune.py --pairs FILE --dev sts:FILE --test sts:FILE --model {args.model} "
        f"--seeds {' '.join(map(str, args.seeds))} --epochs {args.epochs:g} --dtype {args.dtype}`,",
        f"on {os.cpu_count()} CPU cores, Python {platform.python_version()}. Pairs: {Path(args.pairs).name}. For every "
        f"row: batches of {settings.batch_size}, rank {settings.rank},",
        f"learning rate {settings.learning_rate:g}, temperature {settings.temperature:g}. Mean of {len(args.seeds)} "
        "seeds (lowest-highest); Spearman x 100 of the cosines.",
        "Memory is the peak of the whole process; minutes are those of the training loop, on a shared machine.",
        "",
        "| | trained parameters | steps | minutes | peak MB | STSb dev | STSb test |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for label in ROWS:
        made = list(runs(label, args))
        cells = [f"{made[0]['trained']:,}", str(made[0]["steps"])]
        cells += [spread([one["seconds"] / 60 for one in made], 1), spread([one["peak"] for one in made], 0)]
        cells += [spread([list(one["scores"].values())[task] for one in made], 2) for task in (0, 1)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    (HERE / "finetune.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
