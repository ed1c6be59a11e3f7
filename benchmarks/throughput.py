"""Throughput: this library against the ways in which decoders are used for embeddings, on one decoder.

    python benchmarks/throughput.py [--shape qwen3-0.6b] [--texts 400] [--rounds 5] [--dtype bfloat16] [--device cpu]
        [--only NAME ...] [--name throughput]
    python benchmarks/throughput.py --model DIR --sts FILE [--gguf FILE ...] --name throughput-NAME
    python benchmarks/throughput.py --model DIR --paragraphs FILE [--gguf FILE ...] --name throughput-NAME-paragraphs
    python benchmarks/throughput.py memory [--texts 100000]

Without --model the decoder is a random checkpoint in a known shape, and the texts are made. With it, they are the
sentences of --sts, whose pairs each contender's vectors are scored on, or the texts of --paragraphs, and --gguf lets
llama.cpp (package xllamacpp) take its turns with the same decoder.

Everyone runs in a process of its own and they take turns, round by round; ratios are formed within a round. MetaEOL
gets every eighth text and llama.cpp every fourth, as they take many times as long, and rates are texts a second. A
matrix product takes its turn like the others: the best of five shapes is what the machine can do. `memory` encodes many
short texts with the bundled model and looks at how the process grows. Written beside this script: NAME.md, and
memory.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: a dozen processes wait for their turn.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import json
import platform
import statistics
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, LLAMA_CPP, PRECISIONS, Work
from real import cpu_name
from shapes import SHAPES, Shape, make_checkpoint, shape_of, some_texts

from valuembed.data import StsFile, read_sts
from valuembed.evaluation import spearman

HERE = Path(__file__).parent
MACHINE = "matrix product"
RATIOS = [
    ("VA", "sentence-transformers mean pooling", "1.7", "2.5"),
    ("VA, compiled", "sentence-transformers mean pooling", "1.7", "2.5"),
    ("VA, int8", "sentence-transformers mean pooling", "1.7", "2.5"),
    ("VA, int8, compiled", "sentence-transformers mean pooling", "1.7", "2.5"),
    ("VA", "sentence-transformers mean pooling, batches of 8", "", ""),
    ("VA", "sentence-transformers mean pooling, batches of 128", "", ""),
    ("VA, compiled", "sentence-transformers mean pooling, batches of 128", "", ""),
    ("VA, int8", "sentence-transformers mean pooling, batches of 128", "", ""),
    ("VA, int8, compiled", "sentence-transformers mean pooling, batches of 128", "", ""),
    ("AlignedWVA + PromptEOL", "PromptEOL as published", "1.6", ""),
    ("AlignedWVA + PromptEOL, compiled", "PromptEOL as published", "2.2", "3.0"),
    ("AlignedWVA + PromptEOL", "PromptEOL, tuned", "2.0", "3.0"),
    ("AlignedWVA + PromptEOL, compiled", "PromptEOL, tuned", "2.0", "3.0"),
    ("AlignedWVA + PromptEOL, int8", "PromptEOL, tuned", "2.0", "3.0"),
    ("AlignedWVA + PromptEOL, int8, compiled", "PromptEOL, tuned", "2.0", "3.0"),
    ("AlignedWVA + PromptEOL", "MetaEOL as published", "10", "20"),
    ("AlignedWVA + PromptEOL, compiled", "MetaEOL as published", "10", "20"),
    ("MetaEOL, ours", "MetaEOL as published", "2.0", "3.0"),
    ("MetaEOL, ours, compiled", "MetaEOL as published", "2.0", "3.0"),
]
"""Ours, a peer, and how many times as fast we want to be at least and at best."""
BESIDE = tuple(
    f"{name}, int8{compiled}" for name in ("VA", "AlignedWVA + PromptEOL") for compiled in ("", ", compiled")
)
"""Of the precisions of weights, those that are looked at with a real decoder."""
EVERY = {name: 8 for name in CONTENDERS if name.startswith("MetaEOL")} | dict.fromkeys(LLAMA_CPP, 4)
"""Some get only every so many-th text; llama.cpp all of them once, for its score."""


def take_turns(
    told: Connection, name: str, path: str, device: str, dtype: str, shape: Shape, threads: int, gguf: str
) -> None:
    """One contender's process: encode the texts that are sent; seconds, and what was computed."""
    import torch

    torch.set_num_threads(threads)
    named, _, file = name.partition(": ")
    make, options = (CONTENDERS | PRECISIONS | LLAMA_CPP)[named]
    further = {} if name == MACHINE else {"path": path} | ({"gguf": str(Path(gguf) / file)} if file else {})
    run = make(device=device, dtype=dtype, shape=shape, **further, **options)
    told.send("ready")
    while (texts := told.recv()) is not None:
        begin = time.perf_counter()
        work = run(texts)
        told.send((time.perf_counter() - begin, work))


@contextmanager
def contenders(names: list[str], path: Path, args: argparse.Namespace) -> Iterator[dict[str, Connection]]:
    """A process for each, ready to run."""
    context = get_context("spawn")
    lines, processes = {}, []
    for name in names:
        lines[name], told = context.Pipe()
        shape = shape_of(path) if getattr(args, "model", None) else SHAPES[args.shape]
        given = (told, name, str(path), args.device, args.dtype, shape, args.threads, str(_folder(args)))
        processes.append(context.Process(target=take_turns, args=given, daemon=True))
        processes[-1].start()
        told.close()
        print(name, lines[name].recv(), flush=True)
    try:
        yield lines
    finally:
        for line in lines.values():
            line.send(None)
        for process in processes:
            process.join(10)


def _folder(args: argparse.Namespace) -> Path:
    """Where the GGUF files lie."""
    files = getattr(args, "gguf", None)
    return files[0].parent if files else Path()


def pairs_of(args: argparse.Namespace) -> StsFile | None:
    """The first pairs of a file of them, with as many sentences as texts are asked for."""
    if args.sts is None:
        return None
    whole = read_sts(args.sts)
    count = args.texts // 2
    return replace(
        whole,
        sentences1=whole.sentences1[:count],
        sentences2=whole.sentences2[:count],
        scores=whole.scores[:count],
    )


def measure(
    args: argparse.Namespace, path: Path, pairs: StsFile | None
) -> tuple[dict[str, list[tuple[int, float, Work]]], dict[str, float]]:
    """For each contender and round: texts, seconds, work; and the score of its vectors."""
    if args.paragraphs:
        records = map(json.loads, args.paragraphs.read_text(encoding="utf-8").splitlines())
        texts = [record["text"] for record in records if record["text"].strip()][: args.texts]
    else:
        texts = [*pairs.sentences1, *pairs.sentences2] if pairs else some_texts(args.texts)
    names = args.only or [*CONTENDERS, *(BESIDE if args.model else ()), *LLAMA_CPP]
    files = {name: [f"{name}: {file.name}" for file in args.gguf] for name in LLAMA_CPP}
    names = [each for name in names for each in files.get(name, [name])]
    scores: dict[str, float] = {}
    if MACHINE not in names:
        names.append(MACHINE)
    found: dict[str, list[tuple[int, float, Work]]] = {name: [] for name in names}
    with contenders(names, path, args) as lines:
        # The first turn warms up: compilers, caches, allocators.
        for number in range(args.rounds + 1):
            for name, line in lines.items():
                named, _, file = name.partition(": ")
                given = texts if file and not number else texts[:: EVERY.get(named, 1)]
                line.send(given)
                seconds, work = line.recv()
                if number:
                    found[name].append((len(given), seconds, replace(work, vectors=None)))
                elif pairs and work.vectors is not None and len(given) == len(texts):
                    scores[name] = score_of(work.vectors, pairs)
                print(f"round {number}: {name} {len(given) / seconds:.2f} texts/s", flush=True)
    return found, scores


def score_of(vectors: Any, pairs: StsFile) -> float:
    """Spearman's correlation of cosines with the labels, in percent."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (vectors[: len(pairs.scores)] * vectors[len(pairs.scores) :]).sum(axis=1)
    return 100 * float(spearman(cosines[None].astype(np.float64), np.array(pairs.scores))[0])


def wrap(prose: str) -> list[str]:
    return textwrap.wrap(prose, 120)


def three(values: list[float], form: str = ".2f") -> str:
    """Minimum, median, maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def fastest(found: dict[str, list[tuple[int, float, Work]]], file: str) -> str:
    """The fastest setting of llama.cpp on a file, by the median of the rounds."""
    settings = [name for name in found if name.endswith(f": {file}")]
    return min(settings, key=lambda name: statistics.median(seconds for _, seconds, _ in found[name]))


def report(args: argparse.Namespace, found: dict[str, list[tuple[int, float, Work]]], scores: dict[str, float]) -> str:
    import torch

    best = [work.flops for _, _, work in found[MACHINE]]
    source = f"--paragraphs {args.paragraphs.name}" if args.paragraphs else f"--sts {args.sts.name}" if args.sts else ""
    given = f"--model DIR/{args.model.name} {source}" if args.model else f"--shape {args.shape}"
    given += " --gguf " + " ".join(f"DIR/{file.name}" for file in args.gguf) if args.gguf else ""
    given += " --only " + " ".join(f"'{name}'" for name in args.only) if args.only else ""
    if args.model:
        of = f"texts of {args.paragraphs.name}" if args.paragraphs else f"sentences of {args.sts.name}"
        about = f"The decoder {args.model.name}, {args.texts} {of}"
    else:
        about = (
            f"A random checkpoint in the shape of {args.shape} (vocabulary of 8,192), {args.texts} texts of log-normal "
            "length (median 20 words)"
        )
    lines = [
        "# Throughput",
        "",
        f"`python benchmarks/throughput.py {given} --texts {args.texts} --rounds {args.rounds} --dtype {args.dtype} "
        f"--device {args.device}`",
        "",
        *wrap(
            f"{about}, {args.dtype}, {device_name(args.device)}, {args.threads} threads, torch {torch.__version__}, "
            f"Python {platform.python_version()}. Everyone in a process of its own, in turns; median (lowest-highest) "
            "of the rounds. Rates are those of the shared machine that ran them: only ratios say something elsewhere. "
            "Default layers in every row of ours, and the text alone for peers that know chat templates."
            + (" Scores: 100 times Spearman's correlation on the same pairs." if scores else "")
            + (
                f" llama.cpp is the package xllamacpp {version('xllamacpp')}, as it is built for every CPU of its "
                "kind: a build for this one may be faster. Its speed with several texts at once is told whatever its "
                "vectors are then: where their score is far below that of one at once, they are not the texts'."
                if args.gguf
                else ""
            )
        ),
        "",
        "## Ratios",
        "",
        "| ours | against | times as fast | wanted | aim |",
        "|:--|:--|--:|--:|--:|",
    ]
    of_files = [
        (ours, fastest(found, file.name), "3", "5")
        for file in args.gguf
        for ours in ("VA", "VA, compiled", *BESIDE[:2])
    ]
    for one, other, least, aim in [*RATIOS, *of_files]:
        if one in found and other in found:
            pace = [(a / s) / (b / u) for (a, s, _), (b, u, _) in zip(found[one], found[other], strict=True)]
            lines.append(f"| {one} | {other} | {three(pace)} | {least} | {aim} |")
    lines += [
        "",
        "## What each of them does",
        "",
        *wrap(
            "FLOPs are those of the matrices, for tokens that matter in layers that ran: padding does not count, nor "
            "does a beginning that is computed once for all. The share is that of the matrix product of the same "
            f"round, {three([flops / 1e12 for flops in best])} TFLOP/s."
        ),
        "",
        "| | texts/s | tokens/s | padded / real tokens | TFLOP/s | share of the matrix product | score |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for name, turns in found.items():
        if name == MACHINE:
            continue
        texts = [count / seconds for count, seconds, _ in turns]
        tokens = [work.tokens / seconds for _, seconds, work in turns]
        pace = [work.flops / seconds for _, seconds, work in turns]
        share = [flops / limit for flops, limit in zip(pace, best, strict=True)]
        padding = turns[0][2].padded / turns[0][2].tokens
        lines.append(
            f"| {name} | {three(texts)} | {statistics.median(tokens):,.0f} | {padding:.3f} | "
            f"{three([flops / 1e12 for flops in pace])} | {three(share)} | "
            f"{f'{scores[name]:.1f}' if name in scores else '-'} |"
        )
    return "\n".join(lines) + "\n"


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else cpu_name()


def memory(args: argparse.Namespace) -> None:
    """How a process grows while it encodes many short texts in one call."""
    import valuembed

    def resident() -> int:
        status = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) // 1024

    texts = some_texts(args.texts, median=8, spread=0.4)
    model = valuembed.load("bundled", "va", dtype=args.dtype)
    model.encode(texts[:1000])
    before, seen, done = resident(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            seen.append(resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    vectors = model.encode(texts)
    done.set()
    watcher.join()
    result = vectors.nbytes / 2**20
    thirds = [max(seen[i * len(seen) // 3 : (i + 1) * len(seen) // 3]) for i in range(3)]
    lines = [
        "# Memory of a long call",
        "",
        f"`python benchmarks/throughput.py memory --texts {args.texts} --dtype {args.dtype}`",
        "",
        *wrap(
            f"One `encode` of {args.texts:,} short texts with the bundled model (VA), on the CPU. Growth of the "
            "process after its first 1,000 texts, in MB, the result among it."
        ),
        "",
        "| result | most in the first third | in the second | in the last |",
        "|--:|--:|--:|--:|",
        f"| {result:.0f} | {thirds[0]} | {thirds[1]} | {thirds[2]} |",
    ]
    (HERE / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "memory"], default="speed")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--model", type=Path, help="folder of a decoder, in place of a random one")
    parser.add_argument("--sts", type=Path, help="with --model, file of pairs whose sentences are embedded")
    parser.add_argument("--paragraphs", type=Path, help="in place of --sts, a .jsonl with a text a line")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="with --model, files of it for llama.cpp")
    parser.add_argument("--texts", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS | PRECISIONS | LLAMA_CPP, help="not all of them", metavar="NAME"
    )
    parser.add_argument("--name", default="throughput", help="of the file that is written")
    args = parser.parse_args()
    args.texts = args.texts or {"speed": 400, "memory": 100_000}[args.what]
    if args.what == "memory":
        memory(args)
        return
    if bool(args.model) != bool(args.sts or args.paragraphs):
        parser.error("--model and one of --sts and --paragraphs belong together")
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or make_checkpoint(Path(folder), args.shape, args.dtype)
        found, scores = measure(args, path, pairs_of(args))
    text = report(args, found, scores)
    (HERE / f"{args.name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
