"""A job on many short texts: its memory, what kill -9 does to it, and what it costs on top of a bare encode.

    python benchmarks/corpus.py [--corpus FILE] [--rows 200000] [--kills 5] [--overhead-rows 20000] [--rounds 5]
        [--ray-rows 0] [--model bundled] [--dtype float32] [--work DIR]

The texts are the sentences of FILE (any file of texts that valuembed reads), made different by a number where they
repeat; without FILE, random words. They go into four files, one of them gzip. Written beside this script: corpus.md.

1. One run that nothing disturbs, in a process of its own: its memory at the beginning, in the middle, at the end.
2. The same job, killed with SIGKILL at random moments and started again; then every row is looked for, and its vector
   compared with that of the undisturbed run.
3. The job against one bare ``encode_document`` call on the same texts, in one process, taking turns.
4. With ``--ray-rows``: the job on a Ray cluster of this machine, two workers, one killed with SIGKILL in the middle;
   then as in 2.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import gzip
import json
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count, cycle, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import valuembed
from valuembed.data.text_rows import Row, read_rows
from valuembed.execution.cpu_memory import tune_memory

HERE = Path(__file__).parent
FILES = 4
WORDS = "the of and to in a is that for it as was with be by on not he his but at are this have from or had they which"
JOB = """
import json, sys
import valuembed
from valuembed.execution.cpu_memory import tune_memory

inputs, output, model, dtype, rows = sys.argv[1:]

def memory():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS"))) / 1024

def tell(progress):
    print(json.dumps([progress.rows, progress.share, memory()]), flush=True)

tune_memory()
encoder = valuembed.load(model, dtype=dtype)
print("loaded", flush=True)
valuembed.embed_corpus(encoder, inputs, output, rows_per_shard=int(rows), progress=tell)
"""


def sentences(corpus: str | None, rows: int) -> Iterator[str]:
    """Short texts, each different from all others."""
    if corpus is None:
        draw = random.Random(1)
        for number in range(rows):
            yield f"{' '.join(draw.choices(WORDS.split(), k=draw.randint(5, 25)))} {number}"
        return
    texts = (row.text for row in read_rows(corpus) if isinstance(row, Row))
    found = (part for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text) if 20 <= len(part) <= 300)
    kept = list(dict.fromkeys(islice(found, 2 * rows)))[:rows]
    for number, text in enumerate(islice(cycle(kept), rows)):
        yield text if number < len(kept) else f"{text} ({number})"


def write_inputs(texts: list[str], folder: Path) -> None:
    folder.mkdir()
    share = -(-len(texts) // FILES)
    for number in range(FILES):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[number * share : (number + 1) * share])
        if number == FILES - 1:
            (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            (folder / f"{number}.jsonl").write_text(lines)


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The job in a process of its own, once its model is there."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", JOB, *arguments], stdout=out)
    while process.poll() is None and b"loaded" not in log.read_bytes():
        time.sleep(0.05)
    return process


def undisturbed(arguments: list[str], log: Path) -> tuple[float, list[tuple[float, float]]]:
    """Seconds of a run, and its memory in MB by the share of the input that is behind."""
    process = start(arguments, log)
    begun = time.perf_counter()
    if process.wait():
        sys.exit("the job failed")
    seconds = time.perf_counter() - begun
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("[")]
    return seconds, [(share, memory) for _, share, memory in lines]


def killed(arguments: list[str], log: Path, kills: int, seconds: float) -> list[int]:
    """Rows that each killed run had taken up when it was killed; then the job is done."""
    moments = random.Random(7)
    taken = []
    for _ in range(kills):
        process = start(arguments, log)
        # All of them together take less than a run does.
        time.sleep(moments.uniform(0, seconds / (kills + 1)))
        if process.poll() is not None:
            sys.exit("the job ended before it was killed: give more rows")
        process.kill()
        process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines() if re.fullmatch(r"\[.*\]", line)]
        taken.append(lines[-1][0] if lines else 0)
    if start(arguments, log).wait():
        sys.exit("the job failed")
    return taken


def compare(folder: Path, other: Path, rows: int) -> tuple[int, float]:
    """Rows that a folder holds exactly once, with the texts of another; the largest difference of a number."""
    seen: set[tuple[str, int]] = set()
    largest = 0.0
    for path in sorted(folder.glob("*.parquet")):
        one, two = pq.read_table(path), pq.read_table(other / path.name)
        keys = list(zip(one["file"].to_pylist(), one["row"].to_pylist(), strict=True))
        if seen & set(keys) or one.drop_columns("embedding") != two.drop_columns("embedding"):
            sys.exit(f"{path.name}: rows are there twice, or differ")
        seen.update(keys)
        if keys:
            vectors = [table["embedding"].combine_chunks().flatten().to_numpy() for table in (one, two)]
            largest = max(largest, float(np.abs(vectors[0] - vectors[1]).max()))
    if len(seen) != rows or {path.name for path in folder.glob("*.parquet")} != {
        path.name for path in other.glob("*.parquet")
    }:
        sys.exit(f"{len(seen)} of {rows} rows are there")
    return len(seen), largest


def overhead(texts: list[str], model: str, dtype: str, rounds: int, work: Path) -> list[tuple[float, float]]:
    """Seconds of a bare encode and of the job, round by round."""
    tune_memory()
    encoder = valuembed.load(model, dtype=dtype)
    source = work / "overhead.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = []
    for number in range(rounds + 1):
        begun = time.perf_counter()
        encoder.encode_document(texts, show_progress_bar=False)
        bare = time.perf_counter() - begun
        begun = time.perf_counter()
        valuembed.embed_corpus(encoder, source, work / f"overhead-{number}", progress=False)
        found.append((bare, time.perf_counter() - begun))
        shutil.rmtree(work / f"overhead-{number}")
    # The first round warms up.
    return found[1:]


@dataclass(frozen=True)
class Mortal:
    """Loads the model into a worker, and kills the first one that has embedded some shards while another is at work."""

    model: str
    dtype: str
    notes: Path

    def __call__(self) -> valuembed.ValueEncoder:
        encoder = valuembed.load(self.model, dtype=self.dtype)
        encode, calls = encoder.encode_document, count()
        (self.notes / f"{os.getpid()}.worker").touch()

        def encode_document(*arguments, **options):
            if next(calls) >= 4 and len(list(self.notes.glob("*.worker"))) > 1:
                with suppress(FileExistsError):
                    (self.notes / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
            return encode(*arguments, **options)

        encoder.encode_document = encode_document
        return encoder


def on_ray(texts: list[str], model: str, dtype: str, work: Path) -> tuple[int, float, int]:
    """Rows that are there exactly once, the largest difference of a number, and how many workers there were."""
    from valuembed.corpus.ray_job import embed_corpus_on_ray

    inputs, notes = work / "ray-in", work / "notes"
    notes.mkdir()
    write_inputs(texts, inputs)
    shards = {"rows_per_shard": max(1, len(texts) // 40), "progress": False}
    valuembed.embed_corpus(valuembed.load(model, dtype=dtype), inputs, work / "ray-whole", **shards)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        embed_corpus_on_ray(
            Mortal(model, dtype, notes),
            inputs,
            work / "ray",
            workers=2,
            cpus_per_worker=0.5,
            gpus_per_worker=0,
            **shards,
        )
    if not any("another takes its place" in str(warning.message) for warning in told):
        sys.exit("no worker was killed: give more rows")
    return *compare(work / "ray", work / "ray-whole", len(texts)), len(list(notes.glob("*.worker")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--overhead-rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows-per-shard", type=int, default=4096)
    parser.add_argument("--ray-rows", type=int, default=0)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", help="folder for texts and vectors; a temporary one if not given")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=args.work) as name:
        work = Path(name)
        texts = list(sentences(args.corpus, args.rows))
        write_inputs(texts, work / "in")
        settings = [args.model, args.dtype, str(args.rows_per_shard)]
        seconds, memory = undisturbed([str(work / "in"), str(work / "whole"), *settings], work / "log")
        taken = killed([str(work / "in"), str(work / "killed"), *settings], work / "log", args.kills, seconds)
        rows, largest = compare(work / "killed", work / "whole", len(texts))
        spent = overhead(texts[: args.overhead_rows], args.model, args.dtype, args.rounds, work)
        spread = on_ray(texts[: args.ray_rows], args.model, args.dtype, work) if args.ray_rows else None

    ratios = [job / bare for bare, job in spent]
    steps = {"beginning": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1]}
    packages = {"valuembed": valuembed.__version__, "torch": sys.modules["torch"].__version__, "numpy": np.__version__}
    lines = [
        "# A job on many short texts",
        "",
        f"Made by `python benchmarks/corpus.py {'--corpus FILE ' if args.corpus else ''}--rows {args.rows} --kills "
        f"{args.kills} --overhead-rows {args.overhead_rows}",
        f"--rounds {args.rounds} --rows-per-shard {args.rows_per_shard} --ray-rows {args.ray_rows} "
        f"--model {args.model} --dtype {args.dtype}`, on {os.cpu_count()} CPU cores,",
        f"Python {platform.python_version()}, {', '.join(map(' '.join, packages.items()))}.",
        f"{len(texts):,} texts in {FILES} files, {statistics.fmean(map(len, texts)):.0f} characters on average.",
        "",
        f"| memory of the undisturbed run ({seconds:.0f} s) | share of the input | MB |",
        "|:--|--:|--:|",
        *(f"| {name} | {share:.0%} | {megabytes:,.0f} |" for name, (share, megabytes) in steps.items()),
        f"| highest | | {max(megabytes for _, megabytes in memory):,.0f} |",
        "",
        f"Killed with SIGKILL {args.kills} times, when it had taken up {', '.join(f'{rows:,}' for rows in taken)}",
        f"rows since it was started, and started again: {rows:,} of {len(texts):,} rows are there, each once;",
        f"the largest difference of a number from the undisturbed run is {largest:g}.",
        "",
        f"| seconds of the job / of one bare encode, {len(texts[: args.overhead_rows]):,} texts, {args.rounds} rounds "
        "in turns | min | median | max |",
        "|:--|--:|--:|--:|",
        f"| | {min(ratios):.3f} | {statistics.median(ratios):.3f} | {max(ratios):.3f} |",
        "",
        f"Median seconds: encode {statistics.median(bare for bare, _ in spent):.2f}, job "
        f"{statistics.median(job for _, job in spent):.2f}.",
    ]
    if spread is not None:
        rows, largest, workers = spread
        lines += [
            "",
            f"On Ray {version('ray')}, two workers at a time, one killed with SIGKILL midway ({workers} in all):",
            f"{rows:,} of {args.ray_rows:,} rows are there, each once; the largest difference of a number from the run",
            f"without Ray is {largest:g}.",
        ]
    (HERE / "corpus.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
