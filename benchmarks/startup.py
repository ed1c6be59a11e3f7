"""How long a command takes until it answers, for wrong names, `info`, and one text; beside another checkout if named.

    python benchmarks/startup.py [--before FOLDER] [--rounds 5]

Each command is a process of its own. Commands and checkouts take turns round by round; ratios are formed within a
round. FOLDER is another checkout of this repository, whose `src` is run with the same Python. A decoder that `info` has
not seen is one without facts on disk. Written beside this script: startup.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from valuembed.evaluation.results import scoring_versions
from valuembed.reporting import markdown
from valuembed.testing import tiny_checkpoint

HERE = Path(__file__).parent
TEXT = "A doctor sees a patient."

COMMANDS = {
    "a method that is none": ["similarity", TEXT, TEXT, "--method", "vaa"],
    "a folder that is not there": ["similarity", TEXT, TEXT, "--model", "./nowhere"],
    "a device that is not there": ["similarity", TEXT, TEXT, "--device", "cuda"],
    "a layer that the model has not": ["info", "--layers", "40"],
    "`--help`": ["--help"],
    "`info`, bundled model": ["info"],
    "`info`, a decoder seen before": ["info", "{model}"],
    "`info`, a decoder never seen": ["info", "{model}"],
    "`similarity` of two texts, bundled model": ["similarity", TEXT, "They scored a late goal."],
    "one text through a library call": [],
}
NEVER_SEEN, LIBRARY = "`info`, a decoder never seen", "one text through a library call"


def seconds(name: str, arguments: list[str], source: Path, folder: Path) -> float:
    """Time of one process, from its start to its end."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment["VALUEMBED_CACHE"] = "" if name == NEVER_SEEN else str(folder / "cache")
    code = f"import valuembed; print(valuembed.load().encode({TEXT!r}).shape)"
    given = ["-c", code] if name == LIBRARY else ["-m", "valuembed", *arguments]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *given], env=environment, cwd=folder, capture_output=True, check=False)
    took = time.perf_counter() - start
    # A wrong name ends with 1, whether the checkout explains it or not.
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr.decode()}")
    return took


def measure(sources: dict[str, Path], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds by command and checkout, a list of one for each round."""
    found: dict[str, dict[str, list[float]]] = {name: {label: [] for label in sources} for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_checkpoint(Path(folder) / "model")
        # The first round, which fills caches of files and of facts, does not count.
        for turn in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                for label, source in sources.items():
                    took = seconds(name, [part.format(model=model) for part in arguments], source, Path(folder))
                    if turn:
                        found[name][label].append(took)
            print(f"round {turn} of {rounds}", file=sys.stderr)
    return found


def cell(values: list[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def cpu() -> str:
    """The name of this machine's CPU."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def report(found: dict[str, dict[str, list[float]]], rounds: int, command: str) -> str:
    """The page that is written."""
    labels = list(next(iter(found.values())))
    ratio = ["now / before"] if len(labels) == 2 else []
    lines = [
        "# Startup",
        "",
        f"`{command}`",
        "",
        f"Seconds from the start of a process to its end: median of {rounds} rounds (lowest-highest). {cpu()}, "
        f"{os.cpu_count()} cores, {json.dumps(scoring_versions(), separators=(', ', ' '))[1:-1].replace(chr(34), '')}.",
        "",
    ]
    rows = []
    for name, times in found.items():
        cells = [cell(times[label]) for label in labels]
        if ratio:
            now, before = (times[label] for label in labels)
            cells.append(cell([a / b for a, b in zip(now, before, strict=True)]))
        rows.append([name, *cells])
    lines += markdown.table(["what is asked for", *labels, *ratio], rows, "-r")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sources = {"now": HERE.parent / "src"}
    if options.before:
        sources["before"] = options.before / "src"
    command = f"python benchmarks/startup.py{' --before FOLDER' if options.before else ''} --rounds {options.rounds}"
    page = report(measure(sources, options.rounds), options.rounds, command)
    (HERE / "startup.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
