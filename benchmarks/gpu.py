"""Everything that needs a GPU, in one unattended run: tests, correctness, throughput, latency, memory, a profile.

    python benchmarks/gpu.py [--out DIR] [--minutes 9] [--parts NAME ...] [--tiny]
    python benchmarks/gpu.py --parts fine-tuning --decoder FOLDER --data DIR
    python benchmarks/gpu.py --report FILE ...

Each part is a process of its own with a limit of its own, and makes the checkpoint that it needs. What a part finds is
in a file of its name in --out at once, and gpu.json is rewritten as each part ends, so a part that fails or hangs costs
no other. Fine-tuning runs where it is named: it takes a real decoder's folder and a folder with Quora-duplicates.jsonl,
STSBenchmark.en.{dev,test}.jsonl and STS{12,13,14}.jsonl. ``--tiny`` runs every part on tiny models, on any device
(``--device cpu``); its figures mean nothing. ``--report`` writes gpu.md beside this script.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
# Name: what it does, the shape, seconds. In the order of what would be missed most.
PARTS = {
    "tests": ("tests", "", 75),
    "speed 0.6b": ("speed", "qwen3-0.6b", 170),
    "speed 8b": ("speed", "qwen3-8b", 200),
    "profile 0.6b": ("profile", "qwen3-0.6b", 75),
    "fine-tuning": ("finetune", "", 210),
}
DEFAULT_PARTS = [name for name in PARTS if name != "fine-tuning"]
TESTS = (
    "tests/readout/test_varlen.py::TestOnCuda",
    "tests/readout/test_varlen.py::TestEncoder",
    "tests/execution/test_fused_norms.py",
    "tests/execution/test_capabilities.py",
)
SETS = ("STSBenchmark.en.dev", "STSBenchmark.en.test", "STS12", "STS13", "STS14")
PAIRS = "Quora-duplicates.jsonl@eval"


def room(gigabytes: float) -> Path:
    """Where checkpoints go: memory if there is enough, as disks are slower."""
    shared = Path("/dev/shm")
    return (
        shared
        if shared.is_dir() and shutil.disk_usage(shared).free > gigabytes * 2**30
        else Path(tempfile.gettempdir())
    )


def command(name: str, args: argparse.Namespace, work: Path, seconds: float) -> list[str]:
    what, shape, _ = PARTS[name]
    if what == "tests":
        report = ["-q", "-x" if args.tiny else "--maxfail=20", "-W", "default", "-p", "no:cacheprovider"]
        files = TESTS[:1] if args.tiny else TESTS
        return [sys.executable, "-m", "pytest", *report, "-rfE", "--junitxml", str(work / "tests.xml"), *files]
    if what == "finetune":
        pairs, sets = (f"{args.data}/{PAIRS}", [f"{args.data}/{name}.jsonl" for name in SETS])
        settings = ["--seeds", "0", "1", "2", "--parallel", str(args.parallel), "--minutes", f"{seconds / 75:.2f}"]
        if args.tiny:
            pairs, sets = tiny_data(work), [str(work / "tiny-sts.jsonl")] * 2
            settings = ["--seeds", "0", "--only", "VA, untrained", "Finetune-VA, attention", "--parallel", "2"]
        return [
            sys.executable, str(HERE / "finetune.py"), "--pairs", pairs, "--dev", sets[0], "--test", *sets[1:],
            "--model", str(args.decoder or "bundled"), "--device", args.device, "--work", str(work / "finetune"),
            "--out", str(args.out / "finetune.md"), *settings,
        ]  # fmt: skip
    given = ["--part", what, "--shape", shape or "tiny", "--checkpoint", str(work / (shape or "none"))]
    # Imports count, so it is told when to end and not how long to run.
    given += ["--into", str(told_in(args, name)), "--until", str(time.time() + seconds - 8)]
    return [sys.executable, __file__, *given, "--device", args.device, *(["--tiny"] if args.tiny else [])]


def told_in(args: argparse.Namespace, name: str) -> Path:
    """The file of what a part finds."""
    return args.out / f"{name.replace(' ', '-')}.jsonl"


def tiny_data(work: Path) -> str:
    """Pairs and scored pairs that are made up."""
    words = (ROOT / "examples" / "sentences.txt").read_text(encoding="utf-8").split("\n")
    lines = [line for line in words if line.strip()][:40]
    forms = ("{}", "It is said: {}", "As far as we know, {}", "{} So it is.")
    pairs = [{"sentence1": form.format(line), "sentence2": f"That is: {line}"} for form in forms for line in lines]
    (work / "tiny-pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    scored = [{**pair, "score": number % 5} for number, pair in enumerate(pairs)]
    (work / "tiny-sts.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in scored))
    return str(work / "tiny-pairs.jsonl")


def run_part(name: str, args: argparse.Namespace, work: Path, seconds: float) -> dict[str, Any]:
    """One part's process: how it ended, the end of what it said, what it found."""
    told, log = told_in(args, name), work / f"{name}.log"
    told.unlink(missing_ok=True)
    begin = time.monotonic()
    with log.open("w") as said:
        process = subprocess.Popen(
            command(name, args, work, seconds), stdout=said, stderr=said, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = "took too long"
            # Its own processes with it.
            os.killpg(process.pid, 9)
            process.wait()
    found: dict[str, Any] = {"ended": code, "seconds": round(time.monotonic() - begin, 1)}
    text = log.read_text(errors="replace")
    if code != 0 or PARTS[name][0] == "tests":
        found["said"] = text[-6000:]
    if told.is_file():
        found["found"] = [json.loads(line) for line in told.read_text().splitlines() if line.endswith("}")]
    if (kept := args.out / "finetune.json").is_file() and PARTS[name][0] == "finetune":
        found["rows"] = json.loads(kept.read_text())
    return found


def run(args: argparse.Namespace) -> dict[str, Any]:
    until = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "gpu.json"
    results: dict[str, Any] = {
        "python": platform.python_version(), "cores": os.cpu_count(), "tiny": args.tiny, "parts": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=room(24)) as folder:
        work = Path(folder)
        for name in args.parts:
            left = until - time.monotonic()
            if left < 15 or (PARTS[name][0] == "finetune" and not args.tiny and not (args.decoder and args.data)):
                results["parts"][name] = {"ended": "not run"}
            else:
                results["parts"][name] = run_part(
                    name, args, work, min(PARTS[name][2] * (5 if args.tiny and args.device == "cpu" else 1), left)
                )
            shown = results["parts"][name]
            print(f"{name}: {shown['ended']}, {shown.get('seconds', 0)} s", flush=True)
            if shown["ended"] != 0:
                print(shown.get("said", "")[-1500:], flush=True)
            kept.with_suffix(".part").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            kept.with_suffix(".part").replace(kept)
    return results


def in_part(args: argparse.Namespace) -> None:
    """What runs in a part's own process."""
    from gpu_parts import PARTS as INSIDE, Teller, product_rate

    tell = Teller(args.into)
    import sentence_transformers
    import torch
    import transformers
    from shapes import make_checkpoint

    cuda = args.device == "cuda"
    tell(
        device=torch.cuda.get_device_name() if cuda else f"CPU ({platform.machine()})",
        memory=torch.cuda.get_device_properties(0).total_memory if cuda else 0,
        torch=torch.__version__,
        transformers=transformers.__version__,
        sentence_transformers=sentence_transformers.__version__,
        product=product_rate(args, 30),
    )
    if not (args.checkpoint / "config.json").is_file():
        make_checkpoint(args.checkpoint, "tiny" if args.tiny else args.shape, args.dtype, args.device)
    INSIDE[args.part](args, tell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT_PARTS)
    parser.add_argument("--decoder", type=Path, help="to fine-tune: a checkpoint's folder")
    parser.add_argument("--data", type=Path, help="to fine-tune and score on")
    parser.add_argument("--parallel", type=int, default=6, help="fine-tuning runs at a time")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="try it out")
    parser.add_argument("--report", type=Path, nargs="+", help="gpu.json of one or several runs")
    parser.add_argument("--rounds", type=int, default=3, help=argparse.SUPPRESS)
    for hidden in ("--part", "--shape"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--checkpoint", "--into"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.absolute()
    if args.report:
        from gpu_report import report

        (HERE / "gpu.md").write_text(report([json.loads(file.read_text()) for file in args.report]), encoding="utf-8")
        return
    if args.part:
        in_part(args)
        return
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU, and torch finds none here; --device cpu --tiny tries it out")
    if args.device == "cpu" and not args.tiny:
        sys.exit("on a CPU this benchmark can only be tried out: add --tiny, or see benchmarks/throughput.py")
    results = run(args)
    if tested := re.findall(r"\d+ (?:passed|failed|skipped|errors?)", json.dumps(results["parts"].get("tests", {}))):
        print("tests:", ", ".join(tested))
    from gpu_report import report

    print(report([results])[-6000:])


if __name__ == "__main__":
    main()
