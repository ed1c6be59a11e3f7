"""A million passages: making an index, its size, what it finds and how fast, by how the vectors are stored.

    python benchmarks/search_scale.py [--rows 1000000] [--width 256] [--queries 200] [--folder DIR]

Vectors are made: each passage is near one of many topics that lie in a space of few dimensions, so that neighbours are
to be found, as with embeddings; a passage has 30 words, drawn as Zipf's law has them. Written beside this script:
search_scale.md. Takes 10 GB on the disk and 6 GB of memory.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from real import cpu_name
from real_page import wrapped
from search import SEED, Ask, K, Measured, measure, megabytes

import valuembed
from valuembed._utils.atomic import NewFile
from valuembed.recipes import resolve_recipe
from valuembed.reporting import markdown
from valuembed.search import Index, build_index
from valuembed.search.centre import Centre, Centring
from valuembed.vectors import ID, TEXT, VectorSpec, VectorWriter

HERE = Path(__file__).parent
AT_ONCE = 50_000
DIMENSIONS = 48
"""Of the space in which topics and passages differ."""
PASSAGES_A_TOPIC = 40
NOISE = 0.05
WORDS, VOCABULARY = 30, 60_000
PRECISIONS = ("float32", "int8", "binary")
UPDATED = 0.01
NAME = "passages"
CENTRED, COMMON = 100_000, 2.0


class Made:
    """Passages and their vectors, the same ones each time.

    Args:
        rows: how many.
        width: numbers of a vector.
        common: how long the part is that all vectors share, where what tells them apart is about 1 long.
    """

    def __init__(self, rows: int, width: int, common: float = 0.0) -> None:
        self.rows, self.width, self.common = rows, width, common
        drawn = np.random.default_rng(SEED)
        self.topics = drawn.standard_normal((max(1, rows // PASSAGES_A_TOPIC), DIMENSIONS), np.float32)
        self.directions = drawn.standard_normal((DIMENSIONS, width), np.float32)

    def batches(self, rows: range, seed: int = 1) -> Iterator[tuple[range, np.random.Generator, np.ndarray]]:
        """Rows with what draws their texts and vectors ``[b, width]`` of length 1, some at a time."""
        for first in range(rows.start, rows.stop, AT_ONCE):
            some = range(first, min(rows.stop, first + AT_ONCE))
            drawn = np.random.default_rng((SEED, seed, first))
            yield some, drawn, self._vectors(drawn, len(some))

    def texts(self, drawn: np.random.Generator, count: int) -> list[str]:
        """The words of as many passages."""
        numbers = drawn.zipf(1.2, (count, WORDS)) % VOCABULARY
        return [" ".join(f"w{number}" for number in row) for row in numbers.tolist()]

    def _vectors(self, drawn: np.random.Generator, count: int) -> np.ndarray:
        of_topic = self.topics[drawn.integers(0, len(self.topics), count)]
        inner = of_topic + 0.5 * drawn.standard_normal(of_topic.shape, np.float32)
        vectors = inner @ self.directions / DIMENSIONS**0.5
        vectors += NOISE * drawn.standard_normal(vectors.shape, np.float32) + self.common
        found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return found

    def write(self, paths: Mapping[str, Path], rows: range, seed: int = 1) -> None:
        """Files of them as ``embed`` writes them, one for each precision."""
        probe = np.ones(self.width, np.float32) / self.width**0.5
        recipe = resolve_recipe("va", [0]).to_dict()
        specs = {precision: VectorSpec("made", recipe, probe, precision) for precision in paths}
        columns = {ID: "string", TEXT: "string"}
        with ExitStack() as files:
            outs = {precision: files.enter_context(NewFile(path)) for precision, path in paths.items()}
            with ExitStack() as open_writers:
                writers = {
                    precision: open_writers.enter_context(VectorWriter(outs[precision], spec, columns))
                    for precision, spec in specs.items()
                }
                for some, drawn, vectors in self.batches(rows, seed):
                    texts = {ID: [f"p{row}" for row in some], TEXT: self.texts(drawn, len(some))}
                    for precision, writer in writers.items():
                        writer.write(texts, specs[precision].pack(vectors))
            for out in outs.values():
                out.seal()
                out.commit()


def building(source: Path, index: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a process of its own that brings an index up to date."""
    code = (
        "import time\nfrom valuembed.search import build_index\nimport lancedb\nstart = time.perf_counter()\n"
        f"build_index({str(source)!r}, {str(index)!r}, name={NAME!r}, progress=False)\n"
        "print(time.perf_counter() - start)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = done.stdout.split()
    return float(seconds), int(kilobytes) / 1024


def refused(source: Path, index: Path) -> tuple[str, float]:
    """What a second writer is told while a first one writes, and how long a search takes meanwhile, in ms."""
    code = (
        "from valuembed.search import build_index\nimport lancedb\nprint('begun', flush=True)\n"
        f"build_index({str(source)!r}, {str(index)!r}, name={NAME!r}, progress=False)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    reader = Index.open(index)
    vector = np.ones(reader.vector_spec.width, np.float32) / reader.vector_spec.width**0.5
    told, spent = "", []
    first.stdout.readline()
    time.sleep(0.3)
    while first.poll() is None:
        start = time.perf_counter()
        reader.nearest(vector, K)
        spent.append(1e3 * (time.perf_counter() - start))
        if not told:
            try:
                build_index(source, index, name=NAME, progress=False)
            except valuembed.ValuembedError as error:
                told = str(error).replace(str(index), "INDEX")
    return told, float(np.median(spent))


def asking(index: Index, asked: np.ndarray, texts: Sequence[str | None], given: Mapping[str, str]) -> Ask:
    """Ids of what an index finds for the query of a number."""
    return lambda number: [hit.id for hit in index.nearest(asked[number], K, words=texts[number], **given)]


def centred(made: Made, queries: int, folder: Path) -> list[list[str]]:
    """Recall and milliseconds of searches that take the mean away, against exact ones, as rows of a table."""
    memory = np.concatenate([vectors for _, _, vectors in made.batches(range(made.rows))])
    asked = np.concatenate([vectors for _, _, vectors in made.batches(range(queries), seed=2)])
    source, target = folder / "centred.parquet", folder / "centred.index"
    made.write({"float32": source}, range(made.rows))
    building(source, target)
    index = Index.open(target)
    whole = Centre.of([memory], whiten=True)
    assert whole is not None
    rows = []
    ways: dict[Centring, Centre] = {True: replace(whole, spread=None), "whiten": whole}
    for way, centre in ways.items():
        exact: list[set[object]] = []
        for query in asked:
            scores = centre.cosines(memory, centre.of_query(query))
            exact.append({f"p{row}" for row in np.argpartition(-scores, K)[:K]})
        found = measure(
            f"centre={way}", lambda at, w=way: [hit.id for hit in index.nearest(asked[at], K, centre=w)], queries, exact
        )
        rows.append([f"`centre={way!r}`", f"{found.recall:.3f}", f"{np.median(found.milliseconds):.0f}"])
    return rows


def run(made: Made, queries: int, folder: Path) -> list[str]:
    """Measure everything; the lines of the report."""
    everything = range(made.rows)
    memory = np.concatenate([vectors for _, _, vectors in made.batches(everything)])
    asked = np.concatenate([vectors for _, _, vectors in made.batches(range(queries), seed=2)])
    words = [text for some, drawn, _ in made.batches(range(queries), seed=2) for text in made.texts(drawn, len(some))]
    exact: list[set[object]] = []
    for query in asked:
        scores = memory @ query
        exact.append({f"p{row}" for row in np.argpartition(-scores, K)[:K]})
    del memory
    changed = range(int(UPDATED * made.rows))
    rows = []
    made.write({precision: folder / f"{precision}.parquet" for precision in PRECISIONS}, everything)
    made.write({precision: folder / f"{precision}.update.parquet" for precision in PRECISIONS}, changed, seed=3)
    made.write({"float32": folder / "again.parquet"}, changed, seed=4)
    for precision in PRECISIONS:
        source, update, target = (folder / f"{precision}.{end}" for end in ("parquet", "update.parquet", "index"))
        seconds, peak = building(source, target)
        index = Index.open(target)
        found: list[Measured] = []
        for name, given in (("", {}), (" filtered", {"where": "id LIKE '%7'"}), (" hybrid", {})):
            truth = exact if not name else None

            texts = [" ".join(text.split()[:5]) for text in words] if name == " hybrid" else [None] * queries
            ask = asking(index, asked, texts, given)
            found.append(measure(precision + name, ask, queries, truth))
        size = megabytes(target)
        again, _ = building(update, target)
        recall = f"{found[0].recall:.3f}"
        times = [f"{np.median(one.milliseconds):.0f} ({np.percentile(one.milliseconds, 95):.0f})" for one in found]
        rows.append([precision, f"{megabytes(source):,.0f}", f"{seconds:,.0f}", f"{peak:,.0f}", f"{size:,.0f}", recall,
                     *times, f"{again:,.0f}"])  # fmt: skip
        print(rows[-1], file=sys.stderr)
    head = ["stored as", "file, MB", "making it, s", "peak memory, MB", "index, MB", f"recall@{K}",
            "ms a query", "with a filter", "hybrid", "1 % replaced, s"]  # fmt: skip
    message, meanwhile = refused(folder / "again.parquet", folder / "float32.index")
    around = centred(Made(min(CENTRED, made.rows), made.width, COMMON), queries, folder)
    versions = f"Python {platform.python_version()}, valuembed {valuembed.__version__}, lancedb {version('lancedb')}"
    return [
        "# A million passages",
        "",
        *wrapped(
            f"Made by `python benchmarks/search_scale.py --rows {made.rows} --width {made.width} --queries {queries}`, "
            f"on {cpu_name()}, {versions}. {made.rows:,} made passages of {WORDS} words and {made.width} numbers "
            f"([how](search_scale.py)), {queries} queries. Milliseconds: median (95 %), without embedding the query. "
            f"Recall: share of the exact {K} by the whole vectors. The filter passes a tenth of the rows; hybrid asks "
            "for five words too. Real sentences, and other settings: [search.md](search.md)."
        ),
        "",
        *markdown.table(head, rows, "lr"),
        "",
        *wrapped(
            f"{min(CENTRED, made.rows):,} passages whose vectors share a large part (mean cosine about 0.8), searched "
            "without their mean and whitened; recall against an exact search of that kind:"
        ),
        "",
        *markdown.table(["search", f"recall@{K}", "ms a query"], around, "lr"),
        "",
        *wrapped(
            f"A second writer meanwhile: `{message}`. A search of the state before, while the first one wrote, took "
            f"{meanwhile:.0f} ms in the median."
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where files and indexes lie meanwhile; by default a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        lines = run(Made(args.rows, args.width), args.queries, Path(folder))
    (HERE / "search_scale.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
