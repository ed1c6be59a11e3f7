"""Late chunking against chunks that are embedded one by one: what both cost, and what is found with them.

    python benchmarks/late_chunking.py --model DIR --corpus FILE --cranfield DIR --keep DIR
        [--questions 40] [--documents 150] [--long 40] [--chunk 64]

Two tasks. Sentences: from each long document of a corpus (JSON Lines with a text, also as .gz or .zst) one sentence is
taken out, and has to find the chunk that it was taken out of, among the chunks of all documents: no labels are needed,
and the query itself is in no chunk. Cranfield: questions find abstracts, each cut into chunks, by their best chunk.
Numbers are kept in a folder as they come, so that a run goes on where the last one ended. Written beside this script:
late_chunking.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real import cpu_name

import valuembed
from valuembed.data import read_rows
from valuembed.reporting import markdown
from valuembed.tokenization import Cutter
from valuembed.vectors import maxsim

HERE = Path(__file__).parent
METHODS = ("va", "aligned_va", "hidden_mean")
PORTION = 10
"""Documents that one way runs before the other has its turn."""
SEED = 0
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]+")


@dataclass(frozen=True)
class Cloze:
    """A document without one of its sentences.

    Attributes:
        text: of the document.
        query: the sentence.
        place: where it stood, in characters.
    """

    text: str
    query: str
    place: int


def clozes(texts: Iterable[str], count: int, least: int, most: int) -> list[Cloze]:
    """So many documents of a length in characters, drawn with a fixed seed, each without a sentence of its second half.

    The sentence has at least 40 characters, and is not the last; texts that have no such sentence are passed over.
    """
    generator = random.Random(SEED)
    long = [text for text in texts if least <= len(text) <= most]
    generator.shuffle(long)
    found: list[Cloze] = []
    for text in long:
        sentences = [match.span() for match in _SENTENCE.finditer(text) if match.start() > len(text) // 2]
        sentences = [span for span in sentences[:-1] if span[1] - span[0] >= 40]
        if sentences:
            start, end = generator.choice(sentences)
            found.append(Cloze(text[:start] + text[end:], text[start:end].strip(), start))
        if len(found) == count:
            break
    return found


def chunk_at(spans: Sequence[tuple[int, int]], place: int) -> int:
    """The chunk that holds a place, or the first that ends behind it."""
    return next((number for number, (_, end) in enumerate(spans) if end > place), len(spans) - 1)


def ranks(scores: Any, targets: Sequence[int]) -> Any:
    """Of each row of scores ``[a, b]`` the rank of its target, from 1; equal scores stand in front of it."""
    own = scores[np.arange(len(targets)), list(targets)]
    return (scores >= own[:, None]).sum(axis=1)


def reciprocal(ranks: Any) -> float:
    """Mean of 1/rank, 0 beyond rank 10, in percent."""
    return float(np.where(ranks <= 10, 1 / ranks, 0).mean() * 100)


def ndcg(scores: Any, relevant: Sequence[set[int]]) -> float:
    """Mean nDCG@10 of scores ``[a, b]`` in percent, a document relevant or not."""
    discounts = 1 / np.log2(np.arange(2, 12))
    found = []
    for row, wanted in zip(scores, relevant, strict=True):
        first = np.argsort(-row, kind="stable")[:10]
        gain = sum(discounts[at] for at, document in enumerate(first) if int(document) in wanted)
        found.append(gain / discounts[: len(wanted)].sum())
    return float(np.mean(found) * 100)


def cosines(queries: Any, documents: Any, centred: bool) -> Any:
    """Cosines ``[a, b]``, centred by the mean of the documents' vectors of length 1 where that is asked for."""

    def unit(vectors: Any) -> Any:
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    queries, documents = unit(queries), unit(documents)
    if centred:
        mean = documents.mean(axis=0)
        queries, documents = unit(queries - mean), unit(documents - mean)
    return queries @ documents.T


def best_of(scores: Any, counts: Sequence[int]) -> Any:
    """Scores of documents ``[a, d]`` from those of their chunks ``[a, b]``: the best."""
    return np.maximum.reduceat(scores, np.cumsum([0, *counts[:-1]]), axis=1)


def both_ways(model: Any, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]) -> dict[str, Any]:
    """Vectors of chunks by both ways, which take turns, with seconds and tokens; and of texts that are not too long.

    A text's own vector is that of a part that is all of it, which costs nothing beside the others.
    """
    cost = {"chunks": [0.0, 0], "late": [0.0, 0]}
    chunks, late, whole = [], [], []
    for turn, first in enumerate(range(0, len(texts), PORTION)):
        of_texts, of_spans = texts[first : first + PORTION], spans[first : first + PORTION]
        for way in ("chunks", "late") if turn % 2 else ("late", "chunks"):
            start = time.perf_counter()
            if way == "chunks":
                pieces = [t[a:b] for t, parts in zip(of_texts, of_spans, strict=True) for a, b in parts]
                chunks.append(model.encode_document(pieces))
            else:
                fit = [len(text) < 2 * model.max_seq_length for text in of_texts]
                placed = zip(of_texts, of_spans, fit, strict=True)
                parts = [[*parts, *[(0, len(text))] * fits] for text, parts, fits in placed]
                found = model.encode_parts(of_texts, parts, task="document")
                late += [one.vectors[: len(parts)] for one, parts in zip(found, of_spans, strict=True)]
                whole += [one.vectors[len(parts) :] for one, parts in zip(found, of_spans, strict=True)]
            cost[way][0] += time.perf_counter() - start
            cost[way][1] += model.report.tokens
    vectors = {"chunks": chunks, "late": late, "whole": whole}
    return {**{name: np.concatenate(parts) for name, parts in vectors.items()}, "cost": cost}


def read_cranfield(folder: Path, questions: int, documents: int) -> tuple[list[str], list[str], list[set[int]]]:
    """The first questions, abstracts with all that are relevant to them, and which these are by their numbers."""

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / f"Cranfield.{name}.jsonl").read_text().splitlines()]

    asked = lines("queries")[:questions]
    judged: dict[str, set[str]] = {query["id"]: set() for query in asked}
    for row in lines("qrels"):
        if row["relevant"] and row["query_id"] in judged:
            judged[row["query_id"]].add(row["doc_id"])
    texts = {row["id"]: row["text"] for row in lines("docs") if row["text"].strip()}
    wanted = sorted(set().union(*judged.values()) & set(texts), key=int)
    kept = [*wanted, *(name for name in texts if name not in set(wanted))][: max(documents, len(wanted))]
    place = {name: at for at, name in enumerate(kept)}
    asked = [query for query in asked if judged[query["id"]] & set(place)]
    relevant = [{place[name] for name in judged[query["id"]] if name in place} for query in asked]
    return [query["text"] for query in asked], [texts[name] for name in kept], relevant


def sentences_task(model: Any, found: Sequence[Cloze], spans: Sequence[list[tuple[int, int]]]) -> dict[str, Any]:
    """Rows of the first task for one method: way -> scores, and the cost of both."""
    counts = list(map(len, spans))
    before = np.cumsum([0, *counts[:-1]])
    placed = zip(before, spans, found, strict=True)
    targets = [int(start) + chunk_at(of_text, one.place) for start, of_text, one in placed]
    read = both_ways(model, [one.text for one in found], spans)
    queries = model.encode_query([one.query for one in found])
    rows = {}
    for way in ("chunks", "late"):
        for centred in (False, True):
            scores = cosines(queries, read[way], centred)
            own = ranks(best_of(scores, counts), range(len(found)))
            rows[f"{way}, {'centred' if centred else 'cosine'}"] = [
                reciprocal(ranks(scores, targets)),
                reciprocal(own),
            ]
    return {"rows": rows, "cost": read["cost"]}


def cranfield_task(
    model: Any,
    data: tuple[list[str], list[str], list[set[int]]],
    spans: Sequence[list[tuple[int, int]]],
    tokens: bool,
) -> dict[str, Any]:
    """Rows of the second task for one method; with MaxSim over the vectors of tokens if that is asked for."""
    questions, texts, relevant = data
    counts = list(map(len, spans))
    read = both_ways(model, texts, spans)
    queries = model.encode_query(questions)
    rows = {}
    for centred in (False, True):
        how = "centred" if centred else "cosine"
        if len(read["whole"]) == len(texts):
            rows[f"whole, {how}"] = [ndcg(cosines(queries, read["whole"], centred), relevant)]
        for way in ("chunks", "late"):
            rows[f"{way}, {how}"] = [ndcg(best_of(cosines(queries, read[way], centred), counts), relevant)]
    if tokens:
        asked, held = (
            [one.numpy() for one in encode(given, output_value="token_embeddings")]
            for encode, given in ((model.encode_query, questions), (model.encode_document, texts))
        )
        rows["tokens, cosine"] = [ndcg(maxsim(asked, held), relevant)]
        every = np.concatenate(held)
        mean = (every / np.linalg.norm(every, axis=1, keepdims=True)).mean(axis=0)

        def centre(given: list[Any]) -> list[Any]:
            return [one / np.linalg.norm(one, axis=1, keepdims=True) - mean for one in given]

        rows["tokens, centred"] = [ndcg(maxsim(centre(asked), centre(held)), relevant)]
    return {"rows": rows, "cost": read["cost"]}


def page(results: dict[str, Any], about: str) -> str:
    """The page with the results of both tasks."""
    lines = ["# Late chunking", "", *about.splitlines(), ""]
    for task, columns in (("sentences", ["MRR@10 of the chunk", "MRR@10 of the document"]), ("cranfield", ["nDCG@10"])):
        body = [
            [method, *way.split(", "), *(f"{score:.1f}" for score in scores)]
            for method in METHODS
            for way, scores in results[f"{task}-{method}"]["rows"].items()
        ]
        lines += [
            f"## {task.capitalize()}",
            "",
            *markdown.table(["method", "vectors", "compared by", *columns], body, "lllr"),
            "",
        ]
    body = []
    for name, result in results.items():
        (seconds, tokens), (late_seconds, late_tokens) = result["cost"]["chunks"], result["cost"]["late"]
        body.append([name, f"{tokens:,}", f"{late_tokens:,}", f"{late_seconds / seconds:.2f}"])
    lines += [
        "## Cost",
        "",
        *markdown.table(["task and method", "tokens, chunks", "tokens, late", "time, late : chunks"], body, "lr"),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", required=True, help="JSON Lines with a text")
    parser.add_argument("--cranfield", required=True, type=Path, help="a folder with Cranfield.docs.jsonl and so on")
    parser.add_argument("--keep", required=True, type=Path, help="a folder for numbers as they come")
    parser.add_argument("--questions", type=int, default=40, help="of Cranfield")
    parser.add_argument("--documents", type=int, default=150, help="of Cranfield")
    parser.add_argument("--long", type=int, default=40, help="documents of the corpus")
    parser.add_argument("--chunk", type=int, default=64, help="tokens")
    parser.add_argument("--out", type=Path, default=HERE / "late_chunking.md")
    args = parser.parse_args()
    args.keep.mkdir(parents=True, exist_ok=True)
    found = clozes(texts_of(args.corpus), args.long, 2000, 5000)
    data = read_cranfield(args.cranfield, args.questions, args.documents)
    results: dict[str, Any] = {}
    for method in METHODS:
        sizes = {"sentences": f"{args.long}", "cranfield": f"{args.questions}-{args.documents}"}
        name = f"{Path(args.model).name}-{method}-{args.chunk}"
        kept = {task: args.keep / f"{task}-{name}-{size}.json" for task, size in sizes.items()}
        if not all(path.exists() for path in kept.values()):
            model = valuembed.load(args.model, method, dtype="float32", device="cpu", normalize=False)
            cutter = Cutter(model.tokenizer, args.chunk)

            def spans(texts: Sequence[str], cutter: Cutter = cutter) -> list[list[tuple[int, int]]]:
                return [[(chunk.start, chunk.end) for chunk in cutter.cut(text)] for text in texts]

            model.encode(["warm up"])
            if not kept["sentences"].exists():
                done = sentences_task(model, found, spans([one.text for one in found]))
                kept["sentences"].write_text(json.dumps(done))
            if not kept["cranfield"].exists():
                done = cranfield_task(model, data, spans(data[1]), tokens=method == "va")
                kept["cranfield"].write_text(json.dumps(done))
        for task, path in kept.items():
            results[f"{task}-{method}"] = json.loads(path.read_text())
            print(task, method, json.dumps(results[f"{task}-{method}"]), flush=True)
    about = (
        f"{Path(args.model).name}, float32, {cpu_name()}, {torch.get_num_threads()} thread(s); chunks of {args.chunk} "
        f"tokens that do not\noverlap. Sentences: {len(found)} documents of 2,000 to 5,000 characters. Cranfield: "
        f"{len(data[0])} questions,\n{len(data[1])} abstracts. Made by:\n\n    python benchmarks/late_chunking.py "
        f"--model DIR --corpus FILE --cranfield DIR --keep DIR\n        --questions {args.questions} --documents "
        f"{args.documents} --long {args.long} --chunk {args.chunk}"
    )
    about += (
        "\n\nThe abstracts are those that are relevant to the questions and as many others as make up the number, so "
        "that scores are\nabove those of the whole set. At this size a few points are chance. centred: without the "
        "mean of what is searched.\ntokens: MaxSim over the vectors of tokens."
    )
    args.out.write_text(page(results, about), encoding="utf-8")


def texts_of(path: str) -> Iterator[str]:
    """The texts of a file that are texts."""
    for row in read_rows(path):
        if text := getattr(row, "text", None):
            yield text


if __name__ == "__main__":
    sys.exit(main())
