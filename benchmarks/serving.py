"""Serving: a text a request against offline ``encode``, what a request costs beside its text, and too many requests.

    python benchmarks/serving.py [--texts 256] [--rounds 3] [--concurrency 64] [--shape qwen3-0.6b]
        [--dtype bfloat16] [--requests 4000] [--seconds 20]

Server, clients and offline encoding are processes of their own. Throughput: a random checkpoint of the
shape, the same texts offline and served in turn, ratios formed within a round. Costs and overload: the bundled model.
Written beside this script: serving.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import argparse
import asyncio
import base64
import json
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from real import cpu_name
from shapes import SHAPES, VOCABULARY, make_checkpoint, some_texts

HERE = Path(__file__).parent
OVERLOAD = 10


def offline(told: Connection, model: str, texts: list[str], dtype: str) -> None:
    """Encode all texts whenever told to; seconds, seconds of CPU, and the vectors."""
    import valuembed
    from valuembed.execution.cpu_memory import tune_memory

    tune_memory()
    encoder = valuembed.load(model, dtype=dtype)
    while told.recv():
        begin, cpu = time.perf_counter(), time.process_time()
        vectors = encoder.encode(texts, show_progress_bar=False)
        told.send((time.perf_counter() - begin, time.process_time() - cpu, vectors))


@dataclass
class Served:
    """What clients saw: seconds of all, of each request, statuses, and vectors by the text's number."""

    seconds: float = 0.0
    each: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    vectors: dict[int, str] = field(default_factory=dict)


async def _request(reader: Any, writer: Any, body: bytes) -> tuple[int, bytes]:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    headers = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", headers)
    return int(headers.split()[1]), await reader.readexactly(int(length[1])) if length else b""


async def _clients(port: int, texts: list[str], concurrency: int, seconds: float | None) -> Served:
    served, numbers, begin = Served(), iter(range(len(texts))), time.perf_counter()

    def next_number() -> int | None:
        if seconds is None:
            return next(numbers, None)
        return random.randrange(len(texts)) if time.perf_counter() < begin + seconds else None

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (number := next_number()) is not None:
            start = time.perf_counter()
            body = json.dumps({"input": texts[number], "encoding_format": "base64"}).encode()
            status, answer = await _request(reader, writer, body)
            served.statuses[status] += 1
            if status == 200:
                served.each.append(time.perf_counter() - start)
                if seconds is None:
                    served.vectors[number] = json.loads(answer)["data"][0]["embedding"]
            else:
                # Far sooner than Retry-After asks for, so that the server stays full.
                await asyncio.sleep(0.05)
        writer.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    served.seconds = time.perf_counter() - begin
    return served


def clients(told: Connection, port: int, texts: list[str]) -> None:
    """Whenever told a number of clients: every text in a request of its own, or any texts for some seconds."""
    while order := told.recv():
        concurrency, seconds = order
        told.send(asyncio.run(_clients(port, texts, concurrency, seconds)))


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A process that is told over a pipe what to do."""
    spawn = get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=target, args=(there, *arguments), daemon=True)
    child.start()
    there.close()
    try:
        yield here
    finally:
        try:
            here.send(None)
        except BrokenPipeError:
            child.terminate()
        child.join(60)


@contextmanager
def server(model: str, *options: str) -> Iterator[int]:
    """A running server; its port."""
    command = [sys.executable, "-m", "valuembed", "serve", "--model", model, "--port", "0", "--drain-seconds", "0"]
    child = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    try:
        said = ""
        for line in child.stderr:
            said += line
            if found := re.search(r"serving .* at http://127\.0\.0\.1:(\d+)/v1", line):
                break
        else:
            raise SystemExit(f"the server did not start:\n{said}")
        port = int(found[1])
        while "valuembed_ready" not in (seen := metrics(port)) or not seen["valuembed_ready"]:
            time.sleep(0.1)
        yield port
    finally:
        child.terminate()
        child.communicate(timeout=120)


def metrics(port: int) -> dict[str, float]:
    """What the server tells of itself, without what has labels."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
    except OSError:
        return {}
    return {
        name: float(value) for name, value in (line.split() for line in lines if line[0] != "#" and "{" not in line)
    }


def ask(told: Connection, order: Any) -> Any:
    told.send(order)
    return told.recv()


def largest_difference(served: Served, vectors: Any) -> float:
    import numpy as np

    found = [np.frombuffer(base64.b64decode(served.vectors[number]), "<f4") for number in range(len(vectors))]
    return float(np.abs(np.stack(found) - vectors).max())


# What is measured.


def throughput(args: argparse.Namespace, folder: Path) -> list[str]:
    texts, model = some_texts(args.texts), str(make_checkpoint(folder, args.shape, args.dtype))
    with (
        process(offline, model, texts, args.dtype) as encoder,
        server(model, "--dtype", args.dtype, "--answer-seconds", "3600", "--stuck-seconds", "3600") as port,
        process(clients, port, texts) as crowd,
    ):
        ask(encoder, True)
        ask(crowd, (args.concurrency, None))
        rounds, before = [], metrics(port)
        for number in range(args.rounds):
            # Each goes first in turn.
            if number % 2:
                served = ask(crowd, (args.concurrency, None))
            seconds, _, vectors = ask(encoder, True)
            if not number % 2:
                served = ask(crowd, (args.concurrency, None))
            assert served.statuses == {200: len(texts)}, served.statuses
            rounds.append((seconds, served, largest_difference(served, vectors)))
        after = metrics(port)
    ratios = sorted(seconds / served.seconds for seconds, served, _ in rounds)
    steps = after["valuembed_step_seconds_count"] - before["valuembed_step_seconds_count"]
    tokens = (after["valuembed_step_tokens_sum"] - before["valuembed_step_tokens_sum"]) / args.rounds
    return [
        "## One text a request against offline encode",
        "",
        *wrap(
            f"A random checkpoint in the shape of {args.shape} (vocabulary of {VOCABULARY:,}), {args.dtype}; "
            f"{len(texts)} texts of {tokens / len(texts):.0f} tokens on average, "
            f"template included; {args.concurrency} clients with a text a request each, in a process of their own."
        ),
        "",
        f"| {args.rounds} rounds, offline and served in turn | min | median | max |",
        "|:--|--:|--:|--:|",
        row("served / offline, texts a second", ratios, ".2f"),
        row("offline, texts a second", [len(texts) / seconds for seconds, _, _ in rounds], ".1f"),
        row("served, texts a second", [len(texts) / served.seconds for _, served, _ in rounds], ".1f"),
        "",
        f"Texts a step: {args.rounds * len(texts) / steps:.1f}. Largest difference of a number in a vector: "
        f"{max(difference for _, _, difference in rounds):.1e}.",
        "",
    ]


def costs(args: argparse.Namespace) -> list[str]:
    texts = some_texts(args.requests)
    with (
        process(offline, "bundled", texts, "float32") as encoder,
        server("bundled") as port,
        process(clients, port, texts) as crowd,
    ):
        ask(encoder, True)
        ask(crowd, (args.concurrency, None))
        found = []
        for _ in range(args.rounds):
            seconds, cpu, _ = ask(encoder, True)
            before = metrics(port)
            served = ask(crowd, (args.concurrency, None))
            used = metrics(port)["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
            assert served.statuses == {200: len(texts)}, served.statuses
            found.append((seconds, cpu, served, used))
    thousandth = 1000 / len(texts)
    middle = statistics.median(latency for _, _, served, _ in found for latency in served.each)
    return [
        "## What a request costs, with the bundled model",
        "",
        *wrap(
            f"{len(texts):,} texts, one a request, {args.concurrency} clients; milliseconds of CPU are those of the "
            "server's or the offline process, all threads."
        ),
        "",
        f"| {args.rounds} rounds | min | median | max |",
        "|:--|--:|--:|--:|",
        row("CPU of the server a request, ms", [used * thousandth for _, _, _, used in found], ".2f"),
        row("CPU of offline encode a text, ms", [cpu * thousandth for _, cpu, _, _ in found], ".2f"),
        row("the difference, ms", [(used - cpu) * thousandth for _, cpu, _, used in found], ".2f"),
        row("served, requests a second", [len(texts) / served.seconds for _, _, served, _ in found], ".0f"),
        row("offline, texts a second", [len(texts) / seconds for seconds, _, _, _ in found], ".0f"),
        "",
        f"Median latency: {1000 * middle:.0f} ms.",
        "",
    ]


def overload(args: argparse.Namespace) -> list[str]:
    texts, most = some_texts(1000), args.concurrency
    with server("bundled", "--max-requests", str(most)) as port, process(clients, port, texts) as crowd:
        ask(crowd, (most, None))
        before, rest = ask(crowd, (most, None)), metrics(port)["process_resident_memory_bytes"]
        crowd.send((OVERLOAD * most, args.seconds))
        memory = [rest]
        while not crowd.poll(0.5):
            memory.append(metrics(port).get("process_resident_memory_bytes", 0.0))
        during = crowd.recv()
        after = ask(crowd, (most, None))
        left = metrics(port)
    waits = sorted(during.each)
    median, most_wait = statistics.median(waits), waits[int(0.99 * len(waits))]
    others = during.statuses.total() - during.statuses[200] - during.statuses[429]
    waiting = {name: left[f"valuembed_{name}"] for name in ("serving_requests", "serving_bytes", "waiting_texts")}
    return [
        f"## {OVERLOAD} times as many clients as the server takes",
        "",
        *wrap(
            f"The bundled model, `--max-requests {most}`, {OVERLOAD * most} clients for {args.seconds:.0f} s, each of "
            "which tries again after 50 ms."
        ),
        "",
        "| | |",
        "|:--|--:|",
        f"| answered | {during.statuses[200]:,} |",
        f"| refused with 429 | {during.statuses[429]:,} |",
        f"| anything else | {others:,} |",
        f"| seconds until an answer: median, 99% | {median:.2f}, {most_wait:.2f} |",
        f"| resident memory before, peak, MB | {memory[0] / 1e6:,.0f}, {max(memory) / 1e6:,.0f} |",
        f"| left in the server afterwards: {', '.join(waiting)} | {', '.join(f'{v:.0f}' for v in waiting.values())} |",
        f"| {most} clients, requests a second: before, afterwards | {len(texts) / before.seconds:.0f}, "
        f"{len(texts) / after.seconds:.0f} |",
        f"| of these afterwards refused | {len(texts) - after.statuses[200]} |",
        "",
    ]


def wrap(prose: str) -> list[str]:
    return textwrap.wrap(prose, 120)


def row(name: str, values: list[float], form: str) -> str:
    figures = (min(values), statistics.median(values), max(values))
    return f"| {name} | {' | '.join(format(value, form) for value in figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256, help="of the large model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--dtype", default="bfloat16", help="of the checkpoint of that shape")
    parser.add_argument("--requests", type=int, default=4000, help="to the bundled model")
    parser.add_argument("--seconds", type=float, default=20.0, help="of too many requests")
    parser.add_argument("--output", type=Path, default=HERE / "serving.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [*throughput(args, Path(folder) / "model"), *costs(args), *overload(args)]
    packages = ("torch", "transformers", "fastapi", "uvicorn")
    given = " ".join(sys.argv[1:])
    lines = [
        "# Serving",
        "",
        f"Made by `python benchmarks/serving.py{' ' + given if given else ''}`,",
        f"on {os.cpu_count()} cores of {cpu_name()} that server, clients and offline encoding share,",
        f"Python {platform.python_version()},",
        f"{', '.join(f'{name} {version(name)}' for name in packages)}.",
        "",
        *measured,
    ]
    args.output.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
