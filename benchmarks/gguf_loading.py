"""How long a GGUF file takes to load, and how much memory; beside transformers' own loader, to the same precision.

    python benchmarks/gguf_loading.py FILE [FILE ...] [--rounds 3] [--dtype float32]

Each load is a process of its own, and they take turns round by round. Modules are imported before the clock starts.
Memory is the most that the process held during the load, above what it held before. Needs the extra `gguf`. Written
beside this script: gguf_loading.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from startup import cell, cpu

from valuembed._utils.text import counted
from valuembed.evaluation.results import scoring_versions
from valuembed.reporting import markdown

HERE = Path(__file__).parent
WAYS = {
    "first 5 layers": "model = valuembed.load(file, layers=[4], dtype=dtype, device='cpu').reader.model",
    "default recipe": "model = valuembed.load(file, dtype=dtype, device='cpu').reader.model",
    "transformers": (
        "given = {'gguf_file': os.path.basename(file)}; folder = os.path.dirname(os.path.abspath(file)); "
        "words = transformers.AutoTokenizer.from_pretrained(folder, **given); "
        "model = transformers.AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), "
        "quantization_config=transformers.GgufConfig(dequantize=True), **given)"
    ),
}
"""What is run in a process, by its name on the page."""

PROGRAM = """
import json, os, sys, time
import torch, transformers, valuembed
import transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2
import transformers.models.gemma3.modeling_gemma3, transformers.integrations.gguf, gguf, valuembed.models.loading
valuembed.load("bundled")
file, dtype = sys.argv[1:]

def held(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

before = held("VmRSS")
with open("/proc/self/clear_refs", "w") as marks:
    marks.write("5")
start = time.perf_counter()
WAY
took = time.perf_counter() - start
kept = sum(weight.numel() * weight.element_size() for weight in model.parameters())
print(json.dumps({"seconds": took, "cpu": time.process_time(), "peak": held("VmHWM") - before, "kept": kept}))
"""


def load(file: str, way: str, dtype: str) -> dict[str, float]:
    """Seconds and bytes of one load."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", PROGRAM.replace("WAY", WAYS[way]), file, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{file}, {way}: exit code {done.returncode}\n{done.stderr}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for turn in range(given.rounds):
        for file in given.files:
            for way in WAYS:
                found.setdefault((Path(file).name, way), []).append(load(file, way, given.dtype))
        print(f"round {turn + 1} of {given.rounds}", file=sys.stderr)
    rows = [
        [
            f"`{name}`",
            way,
            cell([one["seconds"] for one in measured]),
            f"{statistics.median(one['kept'] for one in measured) / 1e6:,.0f}",
            f"{statistics.median(one['peak'] for one in measured) / 1e6:,.0f}",
            f"{statistics.median(one['peak'] / one['kept'] for one in measured):.2f}",
        ]
        for (name, way), measured in found.items()
    ]
    names = " ".join(Path(file).name for file in given.files)
    rounds = f" --rounds {given.rounds}" if given.rounds != 3 else ""
    dtype = f" --dtype {given.dtype}" if given.dtype != "float32" else ""
    versions = ", ".join(f"{package} {version}" for package, version in scoring_versions().items())
    lines = markdown.table(["file", "loaded", "seconds", "weights, MB", "peak, MB", "peak / weights"], rows, "llrrrr")
    table = "\n".join(lines)
    (HERE / "gguf_loading.md").write_text(
        f"# GGUF files\n\n`python benchmarks/gguf_loading.py {names}{rounds}{dtype}`\n\n"
        f"Seconds of a load, tokenizer included: median of {counted(given.rounds, 'round')} (lowest-highest). Peak: "
        f"memory held during the load above what was held before. Weights in {given.dtype}. {cpu()}, "
        f"{counted(os.cpu_count() or 1, 'core')}, {versions}.\n\n{table}\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
