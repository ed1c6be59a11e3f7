"""A guard of speed: what calls take against a yardstick of plain torch, beside what was recorded on the same CPU.

    python benchmarks/guard.py [--record] [--only ROW ...] [--rounds 5]

A random float32 checkpoint, SmolLM2's shape with 12 layers. Each row is a call of ours and a yardstick, which take
turns in one process: the bare matrix products of the same tokens in the same layers, the stock forward pass of the
same tokens, the bare tokenizer, or `import torch`. What is compared is the median ratio of their seconds; lower is
better. A row that is more than a tenth above its record is measured again, twice if need be, and its lowest median
counts: noise comes and goes, and what a change costs stays. Rows that are still above it are named, and the exit code
is 1.

Ratios differ between CPUs and versions of torch, so guard.json, written beside this script by --record, has a record
for each. Without one of this CPU the ratios are printed, and nothing is compared.
"""

from __future__ import annotations

import os

# Idle OpenMP threads must sleep: beside another busy process, spinning ones slow torch down many times over.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real import cpu_name
from shapes import make_checkpoint, some_texts
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

import valuembed
from valuembed.errors import ValuembedError
from valuembed.execution import tune_memory
from valuembed.reporting import markdown

RECORDS = Path(__file__).parent / "guard.json"
SHAPE = "small"
ALLOWED = 0.10
"""How much more than recorded a ratio may be."""
TRIES = 3
"""How often a row that lost is measured before it is named."""
TOKENS_AT_ONCE = 2048
"""Of a matrix product of the yardstick, as a step has on a CPU."""
SHORT = some_texts(24, median=12, spread=0.5)
LONG = " ".join(some_texts(24, median=25, spread=0.5, seed=1))
SENTENCE = SHORT[0]


@dataclass(frozen=True)
class Measured:
    """A row's ratios of seconds, ours over the yardstick's.

    Attributes:
        ratio: the median over the rounds.
        spread: half of the range between the quartiles, as a share of the median.
    """

    ratio: float
    spread: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Measured:
        """The median and spread of a ratio for each round."""
        middle = statistics.median(ratios)
        if len(ratios) < 2:
            return cls(middle, 0.0)
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(middle, (high - low) / 2 / middle)


@dataclass(frozen=True)
class Turns:
    """Two calls that take turns.

    Attributes:
        ours, yardstick: the calls.
        times: how many times the usual number of rounds.
    """

    ours: Callable[[], object]
    yardstick: Callable[[], object]
    times: float = 1

    def measure(self, rounds: int) -> Measured:
        """Let both take turns; the first, which warms up, does not count."""
        ratios = []
        for turn in range(1 + max(1, round(rounds * self.times))):
            # Whoever comes second finds caches as the other left them, so they change places.
            pair = [self.ours, self.yardstick][:: -1 if turn % 2 else 1]
            took = {call: _seconds(call) for call in pair}
            if turn:
                ratios.append(took[self.ours] / took[self.yardstick])
        return Measured.of(ratios)


class NotMeasuredError(Exception):
    """A row cannot be measured here; the message says why."""


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class Bench:
    """Makes the two calls of each row on one checkpoint.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _load(self, method: str, **options: Any) -> valuembed.ValueEncoder:
        options = {"dtype": "float32", "max_tokens": 4096, **options}
        return valuembed.load(str(self.path), method, device="cpu", **options)

    def _stock(self, model: valuembed.ValueEncoder) -> PreTrainedModel:
        """Transformers' own decoder with as many layers as a model of ours holds."""
        held = model.reader.model.config.num_hidden_layers
        stock = AutoModel.from_pretrained(self.path, dtype=torch.float32, num_hidden_layers=held).eval()
        assert len(stock.layers) == held
        return stock

    def _against_products(self, model: valuembed.ValueEncoder, call: Callable[[], object], times: float = 1) -> Turns:
        """A call of a model, and the bare matrix products of the tokens that it feeds."""
        call()
        assert model.report is not None
        return Turns(call, products(self._stock(model), model.report.tokens - model.report.reused), times)

    def _against_stock(self, model: valuembed.ValueEncoder, text: str, times: float) -> Turns:
        """One text, and the stock forward pass of its tokens."""
        ids = torch.tensor([model.reader.texts.tokenizer(text)["input_ids"]])
        stock = self._stock(model)

        @torch.inference_mode()
        def forward() -> Tensor:
            return stock(input_ids=ids, use_cache=False).last_hidden_state

        return Turns(lambda: model.encode([text]), forward, times)

    def va(self) -> Turns:
        """Many short texts."""
        model = self._load("va")
        return self._against_products(model, lambda: model.encode(SHORT))

    def aligned_wva(self) -> Turns:
        """The same in a template."""
        model = self._load("aligned_wva")
        return self._against_products(model, lambda: model.encode(SHORT))

    def meta_eol(self) -> Turns:
        """A few of them in eight templates, through a few layers, as there are many tokens."""
        model = self._load("meta_eol", layers=[3])
        return self._against_products(model, lambda: model.encode(SHORT[:8]))

    def one_text(self) -> Turns:
        """A call with a single short text."""
        return self._against_stock(self._load("va"), SENTENCE, times=8)

    def long_text(self) -> Turns:
        """A call with a single long text."""
        return self._against_stock(self._load("va"), LONG, times=0.6)

    def compiled(self) -> Turns:
        """Compiled layers."""
        model = self._load("va", compile=True)
        turns = self._against_products(model, lambda: model.encode(SHORT))
        if not model.reader.executor.compile:
            raise NotMeasuredError("layers cannot be compiled here")
        return turns

    def int8(self) -> Turns:
        """In int8, against products in float32."""
        try:
            model = self._load("va", dtype="int8")
        except ValuembedError as error:
            raise NotMeasuredError(str(error)) from error
        return self._against_products(model, lambda: model.encode(SHORT))

    def parts(self) -> Turns:
        """Vectors of chunks."""
        model = self._load("va")
        return self._against_products(model, lambda: model.encode_parts([LONG[:1000]] * 4, chunk_tokens=32))

    def token_vectors(self) -> Turns:
        """Vectors of tokens."""
        model = self._load("va")
        return self._against_products(model, lambda: model.encode(SHORT, output_value="token_embeddings"))

    def tokenizing(self) -> Turns:
        """Tokenized in a template."""
        model = self._load("aligned_wva", layers=[0])
        texts, recipe = SHORT * 40, model.recipe
        tokenizer = model.reader.texts.tokenizer
        return Turns(
            lambda: model.reader.texts.sequences(texts, recipe, max_tokens=4096), lambda: tokenizer(texts)["input_ids"]
        )

    def startup(self) -> Turns:
        """A process that embeds one text with the bundled model."""
        code = f"import valuembed; valuembed.load().encode({SENTENCE!r})"
        return Turns(lambda: _process(code), lambda: _process("import torch"), times=0.6)


def _process(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


ROWS: dict[str, Callable[[Bench], Turns]] = {
    "VA, short texts / products": Bench.va,
    "AlignedWVA with its template / products": Bench.aligned_wva,
    "MetaEOL / products": Bench.meta_eol,
    "VA, compiled / products": Bench.compiled,
    "VA, int8 / products": Bench.int8,
    "parts of texts / products": Bench.parts,
    "token vectors / products": Bench.token_vectors,
    "one text / stock forward": Bench.one_text,
    "one long text / stock forward": Bench.long_text,
    "tokenizing / tokenizer": Bench.tokenizing,
    "load and encode, bundled / import torch": Bench.startup,
}


def products(stock: PreTrainedModel, tokens: int) -> Callable[[], None]:
    """The matrix products of all layers for so many tokens, at most :data:`TOKENS_AT_ONCE` at a time, and nothing else.

    Args:
        stock: a decoder, whose weights are multiplied with.
        tokens: of random numbers.
    """
    weights = [module.weight for module in stock.layers.modules() if isinstance(module, nn.Linear)]
    portions = [min(TOKENS_AT_ONCE, tokens - start) for start in range(0, tokens, TOKENS_AT_ONCE)]
    widths = {weight.shape[1] for weight in weights}
    given = {(rows, width): torch.randn(rows, width) for rows in {*portions} for width in widths}

    @torch.inference_mode()
    def run() -> None:
        for rows in portions:
            for weight in weights:
                nn.functional.linear(given[rows, weight.shape[1]], weight)

    return run


def lost(now: Mapping[str, Measured], recorded: Mapping[str, float]) -> list[str]:
    """Rows whose ratio is more than :data:`ALLOWED` above what was recorded."""
    return [row for row, one in now.items() if row in recorded and one.ratio > recorded[row] * (1 + ALLOWED)]


def settled(
    now: Mapping[str, Measured], recorded: Mapping[str, float], again: Callable[[str], Measured]
) -> dict[str, Measured]:
    """Measure rows that lost again, and keep the lowest ratio of each.

    Args:
        now: of each row.
        recorded: ratios.
        again: measures a row.
    """
    best = dict(now)
    for _ in range(TRIES - 1):
        for row in lost(best, recorded):
            best[row] = min(best[row], again(row), key=lambda one: one.ratio)
    return best


def table(now: Mapping[str, Measured], recorded: Mapping[str, float]) -> list[str]:
    """The ratios beside their records, as lines of Markdown."""
    rows = []
    for row, one in now.items():
        before = recorded.get(row)
        beside = ["-", "-"] if before is None else [f"{before:.3f}", f"{one.ratio / before - 1:+.1%}"]
        rows.append([row, f"{one.ratio:.3f}", f"{one.spread:.1%}", *beside])
    return markdown.table(["seconds, ours / the yardstick", "now", "spread", "recorded", "change"], rows, "lr")


def read_records(path: Path) -> dict[str, dict[str, float]]:
    """The recorded ratios of each kind of machine; none where nothing was recorded."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_record(path: Path, machine: str, now: Mapping[str, Measured]) -> None:
    """Put ratios beside those of other machines, and in place of earlier ones of the same rows of this one."""
    records = read_records(path)
    ratios = {row: round(one.ratio, 4) for row, one in now.items()}
    records[machine] = {**records.get(machine, {}), **ratios}
    path.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def machine_name() -> str:
    """What a record holds for: this kind of CPU and this torch."""
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the ratios, in place of comparing them")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"not all of: {'; '.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(given)
    tune_memory()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    began = time.perf_counter()
    machine = machine_name()
    recorded = {} if args.record else read_records(RECORDS).get(machine, {})
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(make_checkpoint(Path(folder), SHAPE, "float32"))

        def measure(row: str) -> Measured:
            gc.collect()
            found = ROWS[row](bench).measure(args.rounds)
            print(f"{time.perf_counter() - began:4.0f} s  {row}: {found.ratio:.3f}", flush=True)
            return found

        now = {}
        for row in args.only or ROWS:
            try:
                now[row] = measure(row)
            except NotMeasuredError as error:
                print(f"{row}: not measured, {error}", flush=True)
        now = settled(now, recorded, measure)
    print("", machine, "", *table(now, recorded), "", sep="\n")
    if args.record:
        write_record(RECORDS, machine, now)
        print(f"Recorded in {RECORDS.name}.")
    elif not recorded:
        print(f"{RECORDS.name} has no record of this CPU with this torch: nothing is compared. --record makes one.")
    elif slower := lost(now, recorded):
        print(f"More than {ALLOWED:.0%} above the record: {'; '.join(slower)}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
