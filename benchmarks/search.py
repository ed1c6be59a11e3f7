"""Search: recall of the approximate index against exact search, and milliseconds a query for both.

    python benchmarks/search.py --corpus FILE [--rows 100000] [--queries 200] [--model bundled] [--method va]
                                [--layers SPEC] [--folder DIR]

The corpus is a file of sentences, as ``valuembed embed`` takes it. Some of its sentences are the queries and are not
searched. Written beside this script: search.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import valuembed
from valuembed.corpus.job import embed_file, read_rows
from valuembed.data.text_rows import Row
from valuembed.search.exact import nearest
from valuembed.search.index import APPROXIMATE_FROM, Index, build_index
from valuembed.search.results import embed_query
from valuembed.vectors.reader import EmbeddingFiles

HERE = Path(__file__).parent
K = 10
SEED = 0
WARM_UP = 5
ALL = 1_000_000

Ask = Callable[[int], Sequence[object]]
"""Ids of what is found for the query of a number, best first."""


@dataclass
class Measured:
    """One way to search: share of the exact hits found, and milliseconds of each query."""

    name: str
    recall: float | None
    milliseconds: list[float]

    def row(self) -> str:
        recall = "-" if self.recall is None else f"{self.recall:.3f}"
        median, slow = statistics.median(self.milliseconds), np.percentile(self.milliseconds, 95)
        return f"| {self.name} | {recall} | {median:.1f} | {slow:.1f} |"


def measure(name: str, ask: Ask, queries: int, exact: list[set[object]] | None) -> Measured:
    """Ask every query once, after some to warm up."""
    for number in range(min(WARM_UP, queries)):
        ask(number)
    spent, shares = [], []
    for number in range(queries):
        start = time.perf_counter()
        found = ask(number)
        spent.append((time.perf_counter() - start) * 1e3)
        if exact is not None and exact[number]:
            shares.append(len(exact[number] & set(found)) / len(exact[number]))
    done = Measured(name, statistics.mean(shares) if shares else None, spent)
    print(done.row(), file=sys.stderr)
    return done


def sentences(corpus: Path, count: int) -> list[str]:
    """Different sentences in random order."""
    texts = list(dict.fromkeys(row.text for row in read_rows(corpus) if isinstance(row, Row)))
    if len(texts) < count:
        raise SystemExit(f"{corpus} holds {len(texts):,} different sentences; {count:,} are needed")
    return random.Random(SEED).sample(texts, count)


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def peak_megabytes(code: str) -> float:
    """Peak memory of a process of its own that runs this code."""
    told = f"{code}\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    # What getrusage tells begins with the size of the process that started this one.
    return int(done.stdout.split()[-1]) / 1024


def best(scores: np.ndarray, allowed: np.ndarray | None = None) -> list[int]:
    """The rows with the highest scores, best first."""
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    found = np.argpartition(-scores, K)[:K]
    return [int(row) for row in found[np.argsort(-scores[found])] if np.isfinite(scores[row])]


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--method", default="va")
    parser.add_argument("--layers")
    parser.add_argument("--folder", type=Path, help="keep the embeddings here, and take them from here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lines = run(args, Path(temporary))
    (HERE / "search.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, work: Path) -> list[str]:
    """Measure everything; the lines of the report."""
    texts = sentences(args.corpus, args.rows + args.queries)
    stored, asked = texts[: args.rows], texts[args.rows :]
    model = valuembed.load(args.model, args.method, **({"layers": args.layers} if args.layers else {}))
    folder = args.folder or work
    source = folder / f"{args.rows}.parquet"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (work / "texts.txt").write_text("\n".join(stored), encoding="utf-8")
        embed_file(model, work / "texts.txt", source)
    files = EmbeddingFiles.open(source)
    queries = [embed_query(model, text, files.vector_spec) for text in asked]

    memory = np.concatenate([batch.vectors for _, batch in files.batches()])
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    exact: list[set[object]] = [set(best(memory @ query)) for query in queries]
    found: list[Measured] = []

    def add(name: str, ask: Ask, truth: list[set[object]] | None = exact) -> None:
        found.append(measure(name, ask, len(queries), truth))

    def indexed(**given: Any) -> Ask:
        return lambda number: [hit.id for hit in index.nearest(queries[number], K, **given)]

    add("exact, NumPy, all vectors in memory", lambda number: best(memory @ queries[number]))
    add("exact, `search --in FILE`", lambda number: [hit.id for hit in nearest(queries[number], files, K)])

    import lancedb  # noqa: F401  # Its import is not part of what is timed.

    target = work / "index"
    loading = timed(lambda: build_index(source, target, approximate_from=args.rows + 1, progress=False))
    plain = megabytes(target)
    index = Index.open(target)
    add("exact, index without an approximate one", indexed())
    training = timed(lambda: build_index(source, target, approximate_from=1, progress=False))
    size = megabytes(target)
    index = Index.open(target)
    for probes, looked in ((1, "probes 1"), (5, "probes 5"), (None, "default probes"), (ALL, "all partitions")):
        for refine in (1, 5, 20):
            default = ", **the default**" if (probes, refine) == (None, 5) else ""
            add(f"approximate, {looked}, refine {refine}{default}", indexed(probes=probes, refine=refine))
    half, number = args.rows // 2, np.arange(args.rows)
    allowed = (number % 10 == 7) & (number < half)
    filtered: list[set[object]] = [set(best(memory @ query, allowed)) for query in queries]
    add("approximate, a filter that 5% of the rows pass", indexed(where=f"id LIKE '%7' AND row < {half}"), filtered)
    add(
        "hybrid, by meaning and by the words of the query",
        lambda number: [hit.id for hit in index.nearest(queries[number], K, words=asked[number])],
        None,
    )

    imports = "import lancedb, tqdm.auto\nfrom valuembed.search.index import build_index\n"
    building = f"build_index({str(source)!r}, {str(work / 'again')!r}, approximate_from=1)"
    command = f"--rows {args.rows} --queries {args.queries} --model {args.model} --method {args.method}"
    command += f" --layers {args.layers}" if args.layers else ""
    return [
        "# Search",
        "",
        f"Made by `python benchmarks/search.py --corpus FILE {command}`,",
        f"on {os.cpu_count()} CPU cores, Python {platform.python_version()}, valuembed {valuembed.__version__}, "
        f"lancedb {version('lancedb')}, numpy {version('numpy')}.",
        f"{args.rows:,} different sentences, {files.vector_spec.width} float32 numbers each; {args.queries} more are "
        "queries.",
        f"Recall: share of the exact {K} that were found. A query's own embedding is not in its time.",
        "",
        f"| search | recall@{K} | ms a query, median | 95% |",
        "|:--|--:|--:|--:|",
        *(one.row() for one in found),
        "",
        f"| making the index (an approximate one is made from {APPROXIMATE_FROM:,} rows on) | |",
        "|:--|--:|",
        f"| rows, and the index of words | {loading:.1f} s |",
        f"| approximate index of the vectors | {training:.1f} s |",
        f"| peak memory of a process of its own that does both | {peak_megabytes(imports + building):,.0f} MB |",
        f"| and of one that only imports what it takes | {peak_megabytes(imports):,.0f} MB |",
        f"| on disk: file of embeddings | {megabytes(source):,.0f} MB |",
        f"| on disk: index before the approximate one | {plain:,.0f} MB |",
        f"| on disk: index with it | {size:,.0f} MB |",
    ]


if __name__ == "__main__":
    main()
