"""The parts of the GPU benchmark; ``benchmarks/gpu.py`` runs each in a process of its own.

A part tells what it finds as it goes, a line of JSON each, so that nothing is lost when its time is up.
"""

from __future__ import annotations

import cProfile
import gc
import json
import logging
import pstats
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import Work, mean_pooling, needed_parameters, published, sentence_transformers_mean, tuned
from shapes import SHAPES, Shape, some_texts

import valuembed

LENGTHS = {"sentences": (9, 0.4, 40), "paragraphs": (200, 0.3, 400)}
"""Median of the words, spread of its logarithm, most words."""

Run = Callable[[list[str]], Work]

PEERS = ("sentence-transformers", "PromptEOL")
"""What their names begin with; after the first round the fastest of each goes on alone."""


@dataclass(frozen=True)
class Turn:
    """Who takes a turn: what is timed, and what gets ready for it before."""

    run: Run
    ready: Callable[[], None] = lambda: None


class Teller:
    """Writes what a part finds, and what the library warns of meanwhile."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("valuembed").addHandler(handler)

    def __call__(self, **found: Any) -> None:
        if self.warnings:
            found["warnings"], self.warnings = list(dict.fromkeys(self.warnings)), []
        with self.file.open("a") as lines:
            lines.write(json.dumps(found) + "\n")


def wait(args: Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def product_rate(args: Namespace, times: int = 10) -> float:
    """FLOP/s of a square matrix product in the benchmark's precision, median."""
    size = 256 if args.tiny else 8192
    one, other = (torch.randn(size, size, device=args.device, dtype=getattr(torch, args.dtype)) for _ in range(2))
    rates = []
    for _ in range(times + 3):
        wait(args)
        begin = time.perf_counter()
        one @ other
        wait(args)
        rates.append(2.0 * size**3 / (time.perf_counter() - begin))
    return statistics.median(rates[3:])


class Ours:
    """An encoder of ours whose layout, steps and compiled layers can be set from call to call."""

    def __init__(self, path: str, method: str, shape: Shape, args: Namespace) -> None:
        self.model = valuembed.load(path, method, dtype=args.dtype, device=args.device)
        self.executor = self.model.reader.executor
        # On a CPU the packed layout is taken only where it is asked for, with a slow kernel.
        self.packed = "auto" if args.device == "cuda" else "packed"
        decoder = self.model.reader.model
        self.layers = list(decoder.get_submodule(self.model.reader.plan.decoder_spec.layers_path).children())
        self.compiled: list[Any] = [None] * len(self.layers)
        self.of_token = needed_parameters(self.model, shape)
        self.prefixes = self.executor.prefixes
        self.fed = 0
        decoder.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, given: dict[str, Any]) -> None:
        self.fed += given["input_ids"].numel()

    def compile(self, texts: list[str]) -> bool:
        self.executor.layout, self.executor.compile = self.packed, True
        self.model.encode(texts, show_progress_bar=False)
        self.executor.compile = False
        self.compiled = [layer._compiled_call_impl for layer in self.layers]
        return all(self.compiled)

    def turn(
        self,
        layout: str = "packed",
        *,
        compiled: bool = False,
        steps: int | None = None,
        fuse: bool | None = None,
        share: bool = True,
    ) -> Turn:
        """Encode with such a layout, layers, tokens in a step, fused norms and shared prefixes."""

        def ready() -> None:
            self.executor.layout = self.packed if layout == "packed" else layout
            self.executor._tokens_per_step = steps
            for layer, call in zip(self.layers, self.compiled, strict=True):
                layer._compiled_call_impl = call if compiled else None
            # A compiler fuses norms by itself.
            self.executor.fuse = False if compiled else fuse
            self.executor.prefixes = self.prefixes if share else lambda *given: None
            with torch.inference_mode():
                self.executor._set_norms()

        def run(texts: list[str]) -> Work:
            self.fed = 0
            self.model.encode(texts, show_progress_bar=False)
            report = self.model.report
            tokens = report.tokens - report.reused
            return Work(tokens, self.fed, 2.0 * tokens * self.of_token)

        return Turn(run, ready)

    def vectors(self, texts: list[str], layout: str) -> torch.Tensor:
        self.turn(layout).ready()
        return torch.from_numpy(self.model.encode(texts, show_progress_bar=False)).double()


@torch.inference_mode()
def by_hand(decoder: Any, encoder: Ours, texts: list[str]) -> torch.Tensor:
    """Vectors of a stock decoder, a text at a time, with the formulas spelled out: ``[b, width]``, of length 1."""
    plan, recipe = encoder.model.reader.plan, encoder.model.recipe
    (sequences,) = encoder.model.reader.tokenize_texts(texts, None, None)
    seen: dict[int, torch.Tensor] = {}
    hooks = []
    for layer in plan.layers:
        attention = decoder.layers[layer].self_attn
        # Values for a mean; for the last token what leaves the block, its values weighted, joined and projected.
        module = attention.v_proj if recipe.weights == "mean" else attention.o_proj
        hooks.append(module.register_forward_hook(lambda _, args, output, layer=layer: seen.update({layer: output[0]})))
    rows = []
    for sequence in sequences:
        decoder(input_ids=torch.tensor([sequence.ids], device=decoder.device), use_cache=False)
        chosen = slice(*sequence.span) if recipe.weights == "mean" else slice(-1, None)
        rows.append(torch.stack([seen[layer][chosen].double().mean(0) for layer in plan.layers]).mean(0).cpu())
    for hook in hooks:
        hook.remove()
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def apart(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """How far vectors of length 1 are from others."""
    errors = (one - other).norm(dim=1)
    return {
        "least_cosine": float((one * other).sum(1).min()),
        "median_error": float(errors.median()),
        "largest_error": float(errors.max()),
    }


def correctness(ours: dict[str, Ours], causal: Any, args: Namespace, tell: Teller) -> None:
    """The layouts against each other and against the stock decoder, in the same precision and in float32."""
    count = 3 if args.tiny else 12
    texts = some_texts(count, median=9, spread=0.4, longest=40) + some_texts(count // 3, median=200, seed=1)
    found = {
        name: {layout: one.vectors(texts, layout) for layout in ("packed", "padded")} for name, one in ours.items()
    }
    packs = {}
    for name, one in ours.items():
        one.executor.layout = one.packed
        with torch.inference_mode():
            packs[name] = one.executor.packed_up_to() > 0
        found[name]["stock"] = by_hand(causal.model, one, texts)
    try:
        cast(causal.model, torch.float32)
        for name, one in ours.items():
            reference = by_hand(causal.model, one, texts)
            layouts = found[name]
            tell(
                correctness=name,
                texts=len(texts),
                packs=packs[name],
                pairs={
                    "packed, padded": apart(layouts["packed"], layouts["padded"]),
                    "packed, stock": apart(layouts["packed"], layouts["stock"]),
                    **{f"{layout}, float32": apart(vectors, reference) for layout, vectors in layouts.items()},
                },
            )
    finally:
        # The weights came from this precision, so going back loses nothing.
        cast(causal.model, getattr(torch, args.dtype))


def cast(model: Any, dtype: torch.dtype) -> None:
    """Weights alone: rotary frequencies stay in float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def contenders(path: str, shape: Shape, args: Namespace, tell: Teller) -> dict[str, Turn]:
    """Everyone who takes turns."""
    from transformers import AutoModelForCausalLM

    begin = time.perf_counter()
    ours = {"VA": Ours(path, "va", shape, args), "AlignedWVA": Ours(path, "aligned_wva", shape, args)}
    causal = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    pooled = mean_pooling(path, args.device, args.dtype)
    tell(loaded="all", seconds=time.perf_counter() - begin)
    try:
        correctness(ours, causal, args, tell)
    except Exception as error:
        # Figures are worth having without it.
        tell(failed="correctness", why=f"{type(error).__name__}: {error}"[:600])
    gc.collect()
    turns: dict[str, Turn] = {}
    for name, one in ours.items():
        turns |= {f"{name}, packed": one.turn(), f"{name}, padded": one.turn("padded")}
    large = shape.width > 2048
    turns["VA, packed, norms as they are"] = ours["VA"].turn(fuse=False)
    turns["AlignedWVA, packed, every text whole"] = ours["AlignedWVA"].turn(share=False)
    for steps in () if large else (16384, 32768):
        turns[f"VA, packed, steps of {steps:,} tokens"] = ours["VA"].turn(steps=steps)
    for name, one in ours.items():
        # A compiler may take longer than all that is timed.
        if time.time() > args.until - 60:
            continue
        begin = time.perf_counter()
        if one.compile(some_texts(64, median=9, spread=0.4, longest=40)):
            tell(compiled=name, seconds=time.perf_counter() - begin)
            turns[f"{name}, packed, compiled"] = one.turn(compiled=True)
    given = (path, args.device, args.dtype, shape)
    for size in (32, 128) if large else (32, 128, 512):
        turns[f"sentence-transformers mean pooling, batches of {size}"] = Turn(
            sentence_transformers_mean(*given, batch_size=size, model=pooled)
        )
    turns["PromptEOL as published, batches of 64"] = Turn(published(*given, batch_size=64, model=causal))
    turns["PromptEOL, tuned"] = Turn(tuned(*given, model=causal.model))
    return turns


def speed(args: Namespace, tell: Teller) -> None:
    """Everyone's throughput, in turns, and the time of a single text."""
    shape = SHAPES["tiny" if args.tiny else args.shape]
    turns = contenders(str(args.checkpoint), shape, args, tell)
    for at, length in enumerate(LENGTHS):
        texts = enough(turns["VA, packed"], length, args)
        # Half of what is left, then nearly all of it.
        left = args.until - time.time()
        in_turns(turns, length, texts, args, tell, time.time() + left * (0.5, 0.9)[at])
    text = some_texts(1, median=12)
    for name, turn in turns.items():
        if "steps of" in name or "published" in name or time.time() > args.until:
            continue
        turn.ready()
        times = []
        for _ in range(3 if args.tiny else 12):
            begin = time.perf_counter()
            turn.run(text)
            times.append(time.perf_counter() - begin)
        tell(single=name, seconds=statistics.median(times[2:]))


def enough(turn: Turn, length: str, args: Namespace) -> list[str]:
    """As many texts as take somebody about 0.4 seconds."""
    median, spread, longest = LENGTHS[length]
    pool = some_texts(24 if args.tiny else 8192, median=median, spread=spread, longest=longest)
    texts = pool[: 8 if args.tiny else 512 if length == "sentences" else 64]
    turn.ready()
    turn.run(texts)
    begin = time.perf_counter()
    turn.run(texts)
    pace = len(texts) / (time.perf_counter() - begin)
    return pool[: max(64, round(0.4 * pace))]


def in_turns(
    turns: dict[str, Turn], length: str, texts: list[str], args: Namespace, tell: Teller, until: float
) -> None:
    """Rounds of everyone, the first to warm up; from the third on without the peers that are not at their best."""
    staying = dict(turns)
    first: dict[str, float] = {}
    for number in range(args.rounds + 1):
        limit = product_rate(args)
        for name, turn in list(staying.items()):
            if number > 1 and time.time() > until:
                return
            before = peak = 0
            try:
                turn.ready()
                if args.device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                begin = time.perf_counter()
                work = turn.run(texts)
                seconds = time.perf_counter() - begin
            except torch.OutOfMemoryError:
                del staying[name]
                tell(failed=name, length=length, why="out of memory")
                continue
            if args.device == "cuda":
                peak = torch.cuda.max_memory_allocated() - before
            if number:
                first.setdefault(name, seconds)
                tell(
                    turn=name, length=length, round=number, texts=len(texts), seconds=seconds, tokens=work.tokens,
                    padded=work.padded, flops=work.flops, limit=limit, memory=peak,
                )  # fmt: skip
        if number == 1:
            for peers in PEERS:
                for slower in sorted((name for name in first if name.startswith(peers)), key=first.__getitem__)[1:]:
                    staying.pop(slower, None)


def profile(args: Namespace, tell: Teller) -> None:
    """Where the time of a call goes: kernels, gaps between them, tokenizing, and Python."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile as profiled

    shape = SHAPES["tiny" if args.tiny else args.shape]
    on_gpu = args.device == "cuda"
    made = {method: Ours(str(args.checkpoint), method, shape, args) for method in ("va", "aligned_wva")}
    for length, method in ((length, method) for length in LENGTHS for method in made):
        if time.time() > args.until:
            return
        one, (median, spread, longest) = made[method], LENGTHS[length]
        count = 16 if args.tiny else 2048 if length == "sentences" else 128
        texts = some_texts(count, median=median, spread=spread, longest=longest)
        turn = one.turn()
        turn.ready()
        turn.run(texts)
        turn.run(texts)
        begin = time.perf_counter()
        one.model.reader.tokenize_texts(texts, None, None)
        tokenizing = time.perf_counter() - begin
        begin = time.perf_counter()
        turn.run(texts)
        alone = time.perf_counter() - begin
        # Of the CPU nothing is recorded where kernels can be: each operation there would cost more than it does.
        with profiled(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
            turn.run(texts)
            wait(args)
        kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
        spans = sorted(
            (event.time_range.start, event.time_range.end, event.name)
            for event in seen.events() or []
            if event.device_type == kind
        )
        busy, reached = 0.0, 0.0
        totals: dict[str, list[float]] = {}
        for start, end, name in spans:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
            total = totals.setdefault(name[:90], [0, 0.0])
            total[0] += 1
            total[1] += end - start
        tell(
            profile=method,
            length=length,
            texts=count,
            seconds=alone,
            tokenizing=tokenizing,
            busy=busy / 1e6,
            span=(reached - spans[0][0]) / 1e6 if spans else 0.0,
            kernels=len(spans),
            top=[[name, *total] for name, total in sorted(totals.items(), key=lambda item: -item[1][1])[:18]],
        )
        watch = cProfile.Profile()
        watch.runcall(turn.run, texts)
        entries: dict[Any, Any] = pstats.Stats(watch).stats  # type: ignore[attr-defined]
        longest_own = sorted(entries.items(), key=lambda item: -item[1][2])[:20]
        tell(
            python=method,
            length=length,
            top=[[f"{Path(place[0]).name}:{place[1]} {place[2]}", of[0], of[2]] for place, of in longest_own],
        )


PARTS: dict[str, Callable[[Namespace, Teller], None]] = {"speed": speed, "profile": profile}
