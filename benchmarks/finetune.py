"""Finetune-VA against fine-tuned hidden states: the same pairs, trainer and settings, several seeds.

    python benchmarks/finetune.py --pairs FILE --dev FILE --test FILE [FILE ...] [--model bundled] [--seeds 0 1 2]
        [--epochs 1] [--dtype float32] [--device cpu] [--parallel 1] [--minutes M] [--work DIR] [--out FILE]

Each run is a process of its own, so that peak memory is that of the run; a run whose result lies in --work is not
repeated, after --minutes none is begun, and what is not done
a quarter of that later is stopped. Settings are the library's defaults, the same for every row. Scores are
Spearman's correlation of the cosines over all pairs of a file, as mteb computes them. Written: finetune.md beside this
script, or --out.
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
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Label: method, layers, scope; None is not trained.
ROWS = {
    "VA, untrained": ("va", None, None),
    "mean of hidden states, untrained": ("hidden_mean", None, None),
    "Finetune-VA, attention": ("va", None, "attention"),
    "mean of hidden states, fine-tuned, attention": ("hidden_mean", None, "attention"),
    "mean of hidden states, fine-tuned, all linear maps": ("hidden_mean", None, "all"),
}


def run(told: dict[str, Any]) -> dict[str, Any]:
    """One run: train if asked to, then score."""
    import numpy as np
    import torch

    import valuembed
    from valuembed.data import read_scored
    from valuembed.evaluation import spearman
    from valuembed.training import train

    begin = time.monotonic()
    options = {"layers": told["layers"], "device": told["device"], "dtype": told["dtype"]}
    found: dict[str, Any] = {"seconds": 0.0, "trained": 0, "steps": 0, "first_loss": None, "last_loss": None}
    if told["scope"]:
        made = train(
            told["model"], told["pairs"], told["method"], output=told["folder"], overwrite=True, scope=told["scope"],
            seed=told["seed"], epochs=told["epochs"], progress=False, **options,
        )  # fmt: skip
        model, record = made.model, made.record
        losses = [loss for _, loss in record["losses"]]
        found = {
            "seconds": record["seconds"], "trained": record["parameters"]["trained"], "steps": record["steps"],
            "first_loss": statistics.fmean(losses[:10]), "last_loss": statistics.fmean(losses[-10:]),
        }  # fmt: skip
    else:
        model = valuembed.load(told["model"], told["method"], **options)
    # What getrusage tells would begin with the size of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    found["peak"] = int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024
    on_gpu = model.device.type == "cuda"
    found["device_peak"] = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None
    found["device"] = torch.cuda.get_device_name() if on_gpu else f"CPU ({os.cpu_count()} cores)"
    found["layers"] = list(model.reader.plan.layers)
    scores = {}
    for path in told["tests"]:
        data = read_scored(path)
        one, other = model.encode(data.sentences1), model.encode(data.sentences2)
        cosines = (one * other).sum(axis=1)[None]
        scores[Path(path).name.partition(".jsonl")[0]] = 100 * float(spearman(cosines, np.array(data.scores))[0])
    return {**found, "scores": scores, "whole_seconds": time.monotonic() - begin}


def runs(args: argparse.Namespace) -> tuple[dict[tuple[str, float], list[dict[str, Any]]], list[str]]:
    """The results by row and epochs, without runs that there was no time for; and what failed."""
    jobs = []
    for epochs in args.epochs:
        for label in args.only or ROWS:
            method, layers, scope = ROWS[label]
            if not scope and epochs != args.epochs[0]:
                continue
            for seed in args.seeds if scope else args.seeds[:1]:
                name = f"{method}-{(layers or 'default').replace(':', '-')}-{scope or 'untrained'}-{epochs:g}-{seed}"
                told = {
                    "model": args.model, "pairs": args.pairs, "method": method, "layers": layers, "scope": scope,
                    "seed": seed, "epochs": epochs, "dtype": args.dtype, "device": args.device,
                    "folder": str(args.work / name), "tests": [args.dev, *args.test],
                }  # fmt: skip
                jobs.append(((label, epochs), args.work / f"{name}.json", told))
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.parallel))}
    until = time.monotonic() + 60 * args.minutes

    failed = []

    def work(kept: Path, told: dict[str, Any]) -> None:
        if kept.is_file() or (left := until - time.monotonic()) <= 0:
            return
        log = kept.with_suffix(".log")
        command = [sys.executable, __file__, "--run", json.dumps(told), "--into", str(kept)]
        try:
            with log.open("w") as said:
                # A run may end a little after the last one was begun, but not any time.
                done = subprocess.run(command, stdout=said, stderr=said, env=env, timeout=left + 15 * args.minutes)
            said_last = "" if done.returncode == 0 else log.read_text()[-600:]
        except subprocess.TimeoutExpired:
            said_last = "took too long"
        if said_last:
            failed.append(kept.stem)
        print(kept.stem, f"failed: {said_last}" if said_last else kept.read_text(), flush=True)

    with ThreadPoolExecutor(args.parallel) as pool:
        for future in [pool.submit(work, kept, told) for _, kept, told in jobs]:
            future.result()
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row, kept, _ in jobs:
        if kept.is_file():
            found.setdefault(row, []).append(json.loads(kept.read_text()))
    return found, failed


def spread(values: list[float], digits: int) -> str:
    """Mean, and over several runs the lowest and highest."""
    mean = f"{statistics.fmean(values):,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def report(found: dict[tuple[str, float], list[dict[str, Any]]], args: argparse.Namespace) -> str:
    from valuembed.data import read_scored
    from valuembed.training import TrainSettings

    settings = TrainSettings()
    every = [one for made in found.values() for one in made]
    names = list(every[0]["scores"])
    heads = [
        f"{name}, {len(read_scored(path).scores):,} pairs"
        for name, path in zip(names, [args.dev, *args.test], strict=True)
    ]
    on_gpu = every[0]["device_peak"] is not None
    beside = f", {args.parallel} runs at a time on the same device" if args.parallel > 1 else ""
    lines = [
        "# Fine-tuning",
        "",
        f"Made by `python benchmarks/finetune.py --pairs {Path(args.pairs).name} --dev {Path(args.dev).name} "
        f"--test {' '.join(Path(path).name for path in args.test)} --model {Path(args.model).name} "
        f"--seeds {' '.join(map(str, args.seeds))} --epochs {' '.join(f'{epochs:g}' for epochs in args.epochs)} "
        f"--dtype {args.dtype} --device {args.device} --parallel {args.parallel}`,",
        f"on {every[0]['device']}, Python {platform.python_version()}. Pairs: {Path(args.pairs).name}. For every "
        f"row: batches of {settings.batch_size}, rank {settings.rank},",
        f"learning rate {settings.learning_rate:g}, temperature {settings.temperature:g}. Mean of the seeds "
        "(lowest-highest); Spearman x 100 of the cosines.",
        "The scored pairs may be samples, as real_data.py writes them. "
        f"Memory is the peak {'allocated on the device' if on_gpu else 'of the whole process'}; minutes are those of "
        f"the training loop{beside}.",
        "",
        f"| | epochs | seeds | trained parameters | steps | minutes | peak MB | {' | '.join(heads)} |",
        f"|:--|{'--:|' * (6 + len(names))}",
    ]
    for (label, epochs), made in found.items():
        trained = made[0]["trained"]
        cells = [f"{epochs:g}" if trained else "0", str(len(made) if trained else 0)]
        cells += [f"{trained:,}", str(made[0]["steps"])]
        cells += [spread([one["seconds"] / 60 for one in made], 1)]
        cells += [spread([one["device_peak" if on_gpu else "peak"] for one in made], 0)]
        cells += [spread([one["scores"][name] for one in made], 2) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", help="to train on, see valuembed train --help")
    parser.add_argument("--dev", help="scored pairs")
    parser.add_argument("--test", nargs="+", help="scored pairs")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0])
    parser.add_argument("--dtype", default="float32", help="of the frozen weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=1000.0, help="after which no run is begun")
    parser.add_argument("--only", nargs="+", choices=ROWS, help="not all rows")
    parser.add_argument("--work", type=Path, default=Path("finetune-results"))
    parser.add_argument("--out", type=Path, default=HERE / "finetune.md")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        result = json.dumps(run(json.loads(args.run)))
        args.into.with_suffix(".part").write_text(result)
        args.into.with_suffix(".part").replace(args.into)
        return
    if not (args.pairs and args.dev and args.test):
        parser.error("--pairs, --dev and --test are needed")
    args.work.mkdir(parents=True, exist_ok=True)
    found, failed = runs(args)
    if not found:
        sys.exit(f"no run came to its end; their logs are in {args.work}")
    kept = {f"{label}, {epochs:g}": made for (label, epochs), made in found.items()}
    args.out.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    args.out.write_text(report(found, args), encoding="utf-8")
    if failed:
        sys.exit(f"failed or too slow: {', '.join(failed)}")


if __name__ == "__main__":
    main()
