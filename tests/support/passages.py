"""What tests of stores of passages share: documents, both stores, what they hold, and a process that fills one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fakes import FakeEncoder

from valuembed.corpus.documents import PassageFolder, update_documents
from valuembed.search import PassageIndex
from valuembed.search.vector_store import Table

TESTS = Path(__file__).parent
STORES = {"folder": PassageFolder, "index": PassageIndex}


def words(model: object, tokens: int, in_front: int = 0) -> Any:
    """Counts words as tokens, in place of :func:`valuembed.corpus.token_counter` for models that are no models."""
    return lambda text: len(text.split())


def write_documents(folder: Path, count: int = 6) -> Path:
    """So many Markdown files of three sections each, of which each is a passage at a chunk of 12."""
    for number in range(count):
        write_document(folder / f"{'ab'[number % 2]}" / f"{number}.md", f"doc{number}")
    return folder


def write_document(path: Path, word: str, sections: int = 3) -> Path:
    """One such file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = [f"## Part {n} of {word}\n\n" + " ".join([f"{word}{n}"] * 7) + "\n" for n in range(sections)]
    path.write_text("\n".join(parts))
    return path


def update(folder: Path, store: Any, model: Any = None, **options: Any) -> Any:
    """One update without progress."""
    return update_documents(model or FakeEncoder(), folder, store, **{"chunk": 12, "progress": False, **options})


def rows_of(address: Path) -> Any:
    """All rows of a store, as an Arrow table."""
    if (address / "rows.lance").is_dir():
        table = Table.open(address, "rows")
        return pa.Table.from_batches(list(table.scan(table.schema.names)))
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in sorted(address.glob("*.parquet")))


def held(address: Path) -> dict[str, list[str]]:
    """Texts of each document that a store holds, in order; a passage twice, or a gap, is an error."""
    rows = rows_of(address).select(["file", "chunk", "text"]).to_pylist()
    assert max(Counter((row["file"], row["chunk"]) for row in rows).values(), default=1) == 1, (
        "a passage is there twice"
    )
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row["file"], row["chunk"])):
        assert row["chunk"] == len(found.setdefault(row["file"], [])), "a passage is missing"
        found[row["file"]].append(row["text"])
    return found


def vectors(address: Path) -> dict[tuple[str, int], list[float]]:
    """The vector of each passage."""
    rows = rows_of(address).select(["file", "chunk", "embedding"]).to_pylist()
    return {(row["file"], row["chunk"]): np.asarray(row["embedding"], np.float32).tolist() for row in rows}


def start(kind: str, folder: Path, address: Path, pause: float) -> subprocess.Popen[str]:
    """A process that brings a store up to date with a slow fake model, some passages a call; it prints each call."""
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import passages
        from fakes import FakeEncoder
        from valuembed.corpus.documents import update as module
        from valuembed.errors import ValuembedError

        kind, folder, address, pause = sys.argv[1:]
        module.token_counter = passages.words
        module.FIRST_CALL = module.LARGEST_CALL = 4

        class Slow(FakeEncoder):
            def encode_document(self, inputs, **options):
                print("call", flush=True)
                time.sleep(float(pause) if self.calls else 0)
                return super().encode_document(inputs, **options)

        try:
            done = passages.update(Path(folder), passages.STORES[kind](address), Slow())
            print(done.embedded)
        except ValuembedError as error:
            print("error:", error)
        """
    )
    return subprocess.Popen(
        [sys.executable, "-c", script, kind, str(folder), str(address), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
