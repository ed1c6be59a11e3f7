"""Samples of the evaluation sets for real.py: drawn once with a fixed seed, a smaller one the beginning of a larger.

    python benchmarks/real_data.py --data DIR --out DIR [--size small] [--corpus FILE]

writes a folder of them for ``valuembed reproduce --local``, and documents for ``valuembed probe``.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from valuembed.data import StsFile, read_sts

Row = dict[str, Any]
SEED = 0
DEV, MORE_DEV = "STSb dev", "STS12 train"
STS = {
    DEV: "STSBenchmark.en.dev.jsonl",
    "STSb test": "STSBenchmark.en.test.jsonl",
    "STS13": "STS13.jsonl",
    "STS14": "STS14.jsonl",
    "STS12": "STS12.jsonl",
    MORE_DEV: "STS12.jsonl",
}
SPLITS = {"STS12": "test", MORE_DEV: "train"}
"""Splits of files that mix them."""
HEADLINE = ("STSb test", "STS13", "STS14")


@dataclass(frozen=True)
class Size:
    """How much of each set is taken; None is everything.

    Attributes:
        dev: pairs of STSb dev, and half as many of the training split of STS12.
        pairs: of each of the other STS sets.
        meta: pairs of STSb test for MetaEOL, whose eight passes cost most; 0 leaves it out.
        long: texts of BBC-news.
        train, test: of each set of classes: training texts a class, and texts to classify.
        questions: of Cranfield and of TREC-QA.
        documents: of Cranfield.
        templates: of the rows that are scored on sets other than STS, those with these templates alone.
    """

    dev: int | None = None
    pairs: int | None = None
    meta: int = 300
    long: int | None = None
    train: int | None = None
    test: int | None = None
    questions: int | None = None
    documents: int | None = None
    templates: tuple[str, ...] = ("none", "prompt_eol", "future_eol", "echo")


SIZES = {
    "tiny": Size(24, 24, 8, 30, 8, 30, 5, 40, ("none", "prompt_eol")),
    "brief": Size(150, 100, 20, 60, 8, 100, 15, 100, ("none", "prompt_eol")),
    "small": Size(300, 200, 50, 100, 8, 200, 25, 200, ("none", "prompt_eol")),
    "medium": Size(500, 500, 100, 300, 16, 700, 60, 600, ("none", "prompt_eol")),
    "whole": Size(train=16),
}


def read_rows(path: Path, split: str | None = None) -> list[Row]:
    """Rows of a file; of one split, where the file has several."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if split is None or row.get("split") == split]


def shuffled(rows: Iterable[Row]) -> list[Row]:
    """The rows in the order in which they are drawn."""
    made = list(rows)
    random.Random(SEED).shuffle(made)
    return made


def sts(data: Path, name: str, count: int | None, work: Path) -> StsFile:
    """Pairs of one STS set."""
    rows = shuffled(read_rows(data / STS[name], SPLITS.get(name)))[:count]
    return read_sts(written(work, name, rows, ("sentence1", "sentence2", "score")))


def written(work: Path, name: str, rows: Sequence[Row], fields: Sequence[str]) -> Path:
    """A file of rows with these fields alone, under a name that says how many there are."""
    folder = work / "data"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}, {len(rows)}.jsonl".replace(" ", "_").replace(",", "")
    lines = [json.dumps({field: row[field] for field in fields if field in row}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class OtherTask:
    """A task that is no STS set.

    Attributes:
        name: as it stands in the tables.
        metric: mteb's, as a person says it.
        about: how much of the set it is.
        spec: as ``evaluate`` takes it.
        max_tokens: where longer texts are cut.
    """

    name: str
    metric: str
    about: str
    spec: str
    max_tokens: int | None = None


DOCUMENTS, DOCUMENT_WORDS = 1500, 300
"""Documents for the paper's analyses, and how long each is at least."""

LONGEST = 96
"""Tokens of a document, its template included, that are fed of sets of long texts."""


def others(data: Path, size: Size, work: Path) -> list[OtherTask]:
    """Every set that is no STS set and has its files."""
    made = []
    for make, files in _OTHERS.items():
        if all((data / file).is_file() for file in files):
            made.append(make(data, size, work))
    return made


def _bbc(data: Path, size: Size, work: Path) -> OtherTask:
    rows = shuffled(read_rows(data / "BBC-news.jsonl"))[: size.long]
    path = written(work, "BBC-news", rows, ("text", "label"))
    about = f"{len(rows):,} of 1,440 articles, the first {LONGEST} tokens"
    return OtherTask("BBC-news", "V-measure", about, f"clustering:{path}", LONGEST)


def _classes(name: str, train: list[Row], test: list[Row], size: Size, work: Path) -> OtherTask:
    kept: list[Row] = []
    of_class: dict[Any, int] = {}
    for row in shuffled(train):
        of_class[row["label"]] = of_class.get(row["label"], 0) + 1
        if size.train is None or of_class[row["label"]] <= size.train:
            kept.append(row)
    scored = shuffled(test)[: size.test]
    paths = [
        written(work, f"{name}.{part}", rows, ("text", "label")) for part, rows in (("train", kept), ("test", scored))
    ]
    about = f"{len(scored):,} of {len(test):,} texts to classify, 8 a class to train on"
    return OtherTask(name, "accuracy", about, f"classification:{paths[0]},{paths[1]}")


def _banking(data: Path, size: Size, work: Path) -> OtherTask:
    train, test = (read_rows(data / f"banking77.{part}.jsonl") for part in ("train", "test"))
    return _classes("banking77", train, test, size, work)


def _trec(data: Path, size: Size, work: Path) -> OtherTask:
    train, test = (read_rows(data / f"TREC-QC.{part}.jsonl") for part in ("train", "test"))
    return _classes("TREC-QC", train, test, size, work)


def _subj(data: Path, size: Size, work: Path) -> OtherTask:
    # The set has no split of its own; more than 2,000 texts to classify would add cost and no certainty.
    rows = shuffled(read_rows(data / "SUBJ.jsonl"))
    return _classes("SUBJ", rows[2000:2400], rows[:2000], size, work)


def _cranfield(data: Path, size: Size, work: Path) -> OtherTask:
    documents, queries, judged = (read_rows(data / f"Cranfield.{part}.jsonl") for part in ("docs", "queries", "qrels"))
    chosen = shuffled(queries)[: size.questions]
    asked = {row["id"] for row in chosen}
    judged = [row for row in judged if row["query_id"] in asked]
    needed = {row["doc_id"] for row in judged}
    rest = [row for row in shuffled(documents) if row["id"] not in needed]
    found = [row for row in documents if row["id"] in needed]
    found += rest[: None if size.documents is None else max(0, size.documents - len(found))]
    paths = [
        written(work, "Cranfield.docs", found, ("id", "text")),
        written(work, "Cranfield.queries", chosen, ("id", "text")),
        written(work, "Cranfield.qrels", judged, ("query_id", "doc_id", "relevant")),
    ]
    about = f"{len(chosen)} of 225 queries, {len(found):,} of 1,400 documents, the first {LONGEST} tokens"
    return OtherTask("Cranfield", "nDCG@10", about, f"retrieval:{','.join(map(str, paths))}", LONGEST)


def _trec_qa(data: Path, size: Size, work: Path) -> OtherTask:
    rows = read_rows(data / "TREC-QA.test.jsonl")
    asked = [row["qid"] for row in shuffled({row["qid"]: row for row in rows}.values())]
    chosen = set(asked[: size.questions])
    kept = [row for row in rows if row["qid"] in chosen]
    path = written(work, "TREC-QA", kept, ("qid", "question", "answer", "label"))
    about = f"{len(chosen)} of {len(asked)} questions, {len(kept):,} answers"
    return OtherTask("TREC-QA", "MAP", about, f"reranking:{path}")


_OTHERS: dict[Callable[[Path, Size, Path], OtherTask], tuple[str, ...]] = {
    _bbc: ("BBC-news.jsonl",),
    _banking: ("banking77.train.jsonl", "banking77.test.jsonl"),
    _trec: ("TREC-QC.train.jsonl", "TREC-QC.test.jsonl"),
    _subj: ("SUBJ.jsonl",),
    _cranfield: ("Cranfield.docs.jsonl", "Cranfield.queries.jsonl", "Cranfield.qrels.jsonl"),
    _trec_qa: ("TREC-QA.test.jsonl",),
}


def write_folder(data: Path, size: Size, out: Path) -> None:
    """A folder of smaller sets under the names of the whole ones, for commands that take such a folder."""
    for name, file in STS.items():
        if name != MORE_DEV:
            pairs = sts(data, name, size.dev if name == DEV else size.pairs, out)
            pairs.paths[0].replace(out / file)
    for task in others(data, size, out):
        for path in map(Path, task.spec.partition(":")[2].split(",")):
            name = path.stem.rpartition("_")[0]
            path.replace(out / f"{'TREC-QA.test' if name == 'TREC-QA' else name}.jsonl")
    (out / "data").rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write smaller evaluation sets under the names of the whole ones.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the whole sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the smaller ones")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--corpus", type=Path, help="documents to draw documents.jsonl from, .jsonl or .jsonl.zst")
    args = parser.parse_args()
    write_folder(args.data, SIZES[args.size], args.out)
    if args.corpus:
        write_documents(args.corpus, args.out / "documents.jsonl")


def write_documents(corpus: Path, out: Path) -> None:
    """Long documents of a corpus, drawn from all of it: its beginning is of one kind."""
    packed = "zstd" if corpus.suffix == ".zst" else None
    with pyarrow.input_stream(str(corpus), compression=packed) as file:
        texts = (json.loads(line)["text"] for line in io.TextIOWrapper(file, encoding="utf-8"))
        long = [{"text": text} for text in texts if len(text.split()) >= DOCUMENT_WORDS]
    written(out.parent, out.stem, shuffled(long)[:DOCUMENTS], ("text",)).replace(out)
    (out.parent / "data").rmdir()


if __name__ == "__main__":
    main()
