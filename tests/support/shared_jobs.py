"""What the tests of jobs on a corpus share: inputs, what a folder holds, and processes that run a job beside us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

TESTS = Path(__file__).parent


def write_texts(path: Path, count: int, word: str = "text") -> Path:
    """A file of so many different texts, of the kind that its name says."""
    texts = [f"{word} number {n} {'abcdefghij'[n % 10] * (n % 7)}" for n in range(count)]
    lines = [json.dumps({"text": text, "id": f"{word}-{n}"}) for n, text in enumerate(texts)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in (lines if path.suffix == ".jsonl" else texts)))
    return path


def held(folder: Path) -> dict[tuple[str, int], tuple[str, list[float]]]:
    """Text and vector of every row in a folder, by file and row; a row that is there twice is an error."""
    found: dict[tuple[str, int], tuple[str, list[float]]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = (row["file"], row["row"])
            assert key not in found, f"{key} is there twice"
            found[key] = (row["text"], row["embedding"])
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same rows with the same vectors, to the bit."""
    a, b = held(one), held(other)
    assert a.keys() == b.keys()
    return all(a[key][0] == b[key][0] and np.array_equal(a[key][1], b[key][1]) for key in a)


def start(
    inputs: Path, output: Path, *, pause: float = 0.0, rows_per_shard: int = 7, limit: int = 0, hold: bool = False
) -> subprocess.Popen[str]:
    """A process that runs a job with a fake model, once everything is imported.

    Args:
        inputs, output, rows_per_shard: of the job.
        pause: seconds a call of the model.
        limit: bytes that a file may have at most; 0 is no limit.
        hold: begin only at :func:`go`, so that several begin at once.
    """
    script = textwrap.dedent(
        """
        import resource, sys, time
        import numpy, pyarrow.parquet
        from fakes import FakeEncoder
        from valuembed.corpus import job
        from valuembed.errors import ValuembedError

        inputs, output, pause, rows, limit = sys.argv[1:]

        job.POLL_SECONDS = 0.02

        class Slow(FakeEncoder):
            def encode_document(self, inputs, **options):
                # The first call is the probe.
                time.sleep(float(pause) if self.calls else 0)
                return super().encode_document(inputs, **options)

        if int(limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        model = Slow(width=256)
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            done = job.embed_corpus(model, inputs, output, rows_per_shard=int(rows), progress=False)
            print(done.run.rows, done.rows, done.embedded, done.rejected)
        except ValuembedError as error:
            print("error:", error)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(inputs), str(output), str(pause), str(rows_per_shard), str(limit)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if not hold:
        go(process)
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Let a process begin."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def end(process: subprocess.Popen[str]) -> str:
    """What the process said when it had ended by itself."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return said
