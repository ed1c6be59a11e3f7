"""Long texts: seconds and memory of one text of so many tokens, against the same decoder's stock forward pass.

    python benchmarks/long_texts.py --model DIR [DIR ...] [--tokens 512 2048 8192 32768] [--text FILE] [--rounds 3]
        [--dtype float32] [--limit 900] [--name long_texts]

Real decoders on the CPU, one text alone, template included where there is one; lengths beyond a decoder's limit are
left out. The text is the beginning of --text, repeated where it is short, or drawn words. At each length everyone is in
a process of its own and they take turns, round by round; ratios are formed within a round. Memory is what a process
grows by at most while it computes, its weights read before. Who takes longer than --limit seconds for one text is
stopped, and left out of greater lengths. Written beside this script: NAME.md.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: a handful of processes wait for their turn.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from contenders import mean_pooling
from real import cpu_name
from shapes import some_texts
from throughput import three, wrap
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging

from valuembed.errors import TruncationWarning
from valuembed.evaluation import scoring_versions
from valuembed.reporting import markdown

HERE = Path(__file__).parent
LENGTHS = (512, 2048, 8192, 32768)
STOCK = "transformers, mean pooling"
STOCK_CUT = "transformers, the layers that VA runs"
PAGE = 4096
"""Bytes of a page of memory."""
LONG_TURN = 20.0
"""Seconds from which on the first turn of a process counts too: what it warms up is nothing beside them."""

Call = Callable[[str], object]


@dataclass
class Cell:
    """What one text of one length takes.

    Attributes:
        seconds: of each round; None in a round for who was not there.
        megabytes: that the process grew by at most, in any round.
        stopped: it took longer than the limit.
    """

    seconds: list[float | None] = field(default_factory=list)
    megabytes: float = 0.0
    stopped: bool = False


def ours(path: str, dtype: str, tokens: int, method: str) -> tuple[Call, torch.nn.Module]:
    """One call of ``encode``, its text cut to so many tokens, those of a template among them."""
    import valuembed
    from valuembed.execution import tune_memory

    # As the command line and the server do.
    tune_memory()
    model = valuembed.load(path, method, dtype=dtype, device="cpu", max_tokens=tokens)
    return lambda text: model.encode([text], show_progress_bar=False), model


def stock(path: str, dtype: str, tokens: int, cut: bool = False) -> tuple[Call, torch.nn.Module]:
    """Transformers' forward pass with the kernel sdpa and no cache, and the mean of what comes out.

    Args:
        path, dtype: of the decoder.
        tokens: of the text.
        cut: with as many layers as VA holds, the last one whole.
    """
    import valuembed

    options = {"num_hidden_layers": valuembed.info(path, method="va").chosen_layers[-1] + 1} if cut else {}
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa", **options).eval()

    @torch.inference_mode()
    def run(text: str) -> object:
        ids = torch.tensor([tokenizer(text)["input_ids"][:tokens]])
        return model(input_ids=ids, use_cache=False).last_hidden_state.float().mean(dim=1).numpy()

    return run, model


def sentence_transformers_mean(path: str, dtype: str, tokens: int) -> tuple[Call, torch.nn.Module]:
    """Sentence-transformers' mean pooling of any checkpoint."""
    model = mean_pooling(path, "cpu", dtype)
    model.max_seq_length = tokens
    return lambda text: model.encode([text], show_progress_bar=False), model


CONTENDERS: dict[str, tuple[Callable[..., tuple[Call, torch.nn.Module]], dict[str, Any]]] = {
    "VA": (ours, {"method": "va"}),
    "AlignedWVA, its template": (ours, {"method": "aligned_wva"}),
    STOCK: (stock, {}),
    STOCK_CUT: (stock, {"cut": True}),
    "sentence-transformers, mean pooling": (sentence_transformers_mean, {}),
}


def resident(name: str) -> float:
    """What the system says about this process's memory, in MB: ``VmRSS``, or ``VmHWM`` for the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:"))) / 1024


def touch(model: torch.nn.Module) -> None:
    """Read every page of a model's weights: those that are mapped from a file come into memory when they are read."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.detach().reshape(-1)[:: PAGE // tensor.element_size()].sum()


def take_turns(told: Connection, name: str, path: str, dtype: str, tokens: int, threads: int) -> None:
    """One contender's process: the text that is sent; seconds, and by how many MB the process grew at most."""
    torch.set_num_threads(threads)
    # The text is longer than wanted, and everyone cuts it.
    warnings.simplefilter("ignore", TruncationWarning)
    logging.disable_progress_bar()
    make, options = CONTENDERS[name]
    run, model = make(path, dtype, tokens, **options)
    touch(model)
    run("A few words.")
    told.send("ready")
    while (text := told.recv()) is not None:
        # The peak is forgotten, as that of loading is higher.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = resident("VmRSS")
        begin = time.perf_counter()
        run(text)
        told.send((time.perf_counter() - begin, resident("VmHWM") - before))


@contextmanager
def contenders(names: Sequence[str], path: str, tokens: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A process for each, ready to run: its connection and itself."""
    context = get_context("spawn")
    found: dict[str, Any] = {}
    try:
        for name in names:
            line, told = context.Pipe()
            given = (told, name, path, args.dtype, tokens, args.threads)
            process = context.Process(target=take_turns, args=given, daemon=True)
            process.start()
            told.close()
            found[name] = line, process
            line.recv()
        yield found
    finally:
        for line, process in found.values():
            if process.is_alive():
                line.send(None)
                process.join(10)


def measure(path: str, tokens: int, names: Sequence[str], text: str, args: argparse.Namespace) -> dict[str, Cell]:
    """What each contender takes for one text of a length."""
    cells = {name: Cell() for name in names}
    with contenders(names, path, tokens, args) as processes:
        for number in range(args.rounds + 1):
            of_round: dict[str, float | None] = {}
            for name, (line, process) in processes.items():
                cell = cells[name]
                of_round[name] = None
                if cell.stopped:
                    continue
                line.send(text)
                if not line.poll(args.limit):
                    cell.stopped = True
                    process.kill()
                    process.join()
                    print(f"{tokens} tokens, {name}: stopped", flush=True)
                    continue
                of_round[name], grown = line.recv()
                cell.megabytes = max(cell.megabytes, grown)
                print(f"{tokens} tokens, round {number}, {name}: {of_round[name]:.2f} s, {grown:.0f} MB", flush=True)
            slowest = max((took for took in of_round.values() if took is not None), default=0.0)
            if number or slowest > LONG_TURN:
                for name, took in of_round.items():
                    cells[name].seconds.append(took)
            # One round of a text that takes minutes says enough.
            if slowest > 3 * LONG_TURN:
                break
    return cells


def ratios(one: Cell, other: Cell) -> list[float]:
    """How many times as long the other takes, in each round that both were there."""
    pairs = zip(one.seconds, other.seconds, strict=True)
    return [theirs / mine for mine, theirs in pairs if mine is not None and theirs is not None]


def rows_of(tokens: int, cells: dict[str, Cell], limit: float) -> list[list[str]]:
    """The rows of a table for one length."""
    rows = []
    for name, cell in cells.items():
        seconds = [took for took in cell.seconds if took is not None]
        if not seconds:
            rows.append([f"{tokens:,}", name, f"more than {limit:,.0f}", *["-"] * 4])
            continue
        against = [
            three(pace) if other in cells and other != name and (pace := ratios(cell, cells[other])) else "-"
            for other in (STOCK, STOCK_CUT)
        ]
        rate = tokens / statistics.median(seconds)
        rows.append([f"{tokens:,}", name, three(seconds), f"{rate:,.0f}", f"{cell.megabytes:,.0f}", *against])
    return rows


def lengths_of(path: Path, wanted: Sequence[int]) -> list[int]:
    """Of the lengths that are wanted, those that a decoder can take."""
    config = AutoConfig.from_pretrained(path).get_text_config()
    return [tokens for tokens in wanted if tokens <= config.max_position_embeddings]


def text_of(path: Path, tokens: int, file: Path | None) -> str:
    """A text of at least so many tokens of a decoder's: that of a file, repeated, or drawn words."""
    text = file.read_text(encoding="utf-8") if file else " ".join(some_texts(200))
    count = len(AutoTokenizer.from_pretrained(path)(text)["input_ids"])
    times = 1 + tokens // max(count, 1)
    # A little more than is needed, so that what is cut off takes no time to tokenize.
    return " ".join([text] * times)[: 4 + 2 * tokens * len(text) // max(count, 1)]


def report(args: argparse.Namespace, found: dict[Path, dict[int, dict[str, Cell]]]) -> str:
    """The page that is written."""
    given = " ".join(f"DIR/{path.name}" for path in args.model)
    given += f" --tokens {' '.join(map(str, args.tokens))}" + (f" --text {args.text.name}" if args.text else "")
    made_of = f"the beginning of {args.text.name}" if args.text else "drawn words"
    versions = ", ".join(f"{name} {version}" for name, version in scoring_versions().items())
    lines = [
        "# Long texts",
        "",
        f"`python benchmarks/long_texts.py --model {given} --rounds {args.rounds} --dtype {args.dtype}`",
        "",
        *wrap(
            f"One text alone, of so many tokens with its template, made of {made_of}; {args.dtype}, {cpu_name()}, "
            f"{args.threads} threads, {versions}, Python {platform.python_version()}. Everyone in a process of its own "
            "at each length, in turns; median (lowest-highest) of the rounds, one where a text takes more than "
            f"{3 * LONG_TURN:.0f} seconds. MB: by how much a process grows at most while it computes, its weights in "
            "memory before. Ratios: how many times as long the stock pass takes, with all layers and with those that "
            "VA runs. Ours at their default layers."
        ),
    ]
    head = ["tokens", "", "seconds", "tokens/s", "MB beyond weights", "against stock", "against stock, same layers"]
    for path, lengths in found.items():
        rows = [row for tokens, cells in lengths.items() for row in rows_of(tokens, cells, args.limit)]
        lines += ["", f"## {path.name}", "", *markdown.table(head, rows, "rlr")]
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="folders of decoders")
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--text", type=Path, help="file that the text is made of; default: drawn words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds that one text may take")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"of {'; '.join(CONTENDERS)}")
    parser.add_argument("--name", default="long_texts", help="of the page")
    args = parser.parse_args(given)
    found: dict[Path, dict[int, dict[str, Cell]]] = {}
    for path in args.model:
        found[path], names = {}, list(args.only or CONTENDERS)
        for tokens in lengths_of(path, sorted(args.tokens)):
            text = text_of(path, tokens, args.text)
            cells = found[path][tokens] = measure(str(path), tokens, names, text, args)
            names = [name for name in names if not cells[name].stopped]
            # What is there is written, in case a later length does not come to its end.
            (HERE / f"{args.name}.md").write_text(report(args, found), encoding="utf-8")
    print(report(args, found))


if __name__ == "__main__":
    main()
