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
from pathlib import Path
from typing import Any

import torch
from contenders import Work, mean_pooling, needed_parameters, published, sentence_transformers_mean, tuned
from shapes import SHAPES, Shape, some_texts

import valuembed

LENGTHS = {"sentences": (9, 0.4, 40), "paragraphs": (200, 0.3, 400)}
"""Median of the words, spread of its logarithm, most words."""

Run = Callable[[list[str]], Work]


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

    def runs(self, layout: str, *, compiled: bool = False, steps: int | None = None) -> Run:
        def run(texts: list[str]) -> Work:
            self.executor.layout = self.packed if layout == "packed" else layout
            self.executor._tokens_per_step = steps
            for layer, call in zip(self.layers, self.compiled, strict=True):
                layer._compiled_call_impl = call if compiled else None
            self.fed = 0
            self.model.encode(texts, show_progress_bar=False)
            report = self.model.report
            tokens = report.tokens - report.reused
            return Work(tokens, self.fed, 2.0 * tokens * self.of_token)

        return run

    def vectors(self, texts: list[str], layout: str) -> torch.Tensor:
        self.runs(layout)(texts[:1])
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
    count = 4 if args.tiny else 24
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


def contenders(path: str, shape: Shape, args: Namespace, tell: Teller) -> dict[str, Run]:
    """Everyone who takes turns."""
    from transformers import AutoModelForCausalLM

    begin = time.perf_counter()
    ours = {"VA": Ours(path, "va", shape, args), "AlignedWVA": Ours(path, "aligned_wva", shape, args)}
    tell(loaded="ours", seconds=time.perf_counter() - begin)
    causal = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, args.dtype)).to(args.device).eval()
    try:
        correctness(ours, causal, args, tell)
    except Exception as error:
        # Figures are worth having without it.
        tell(failed="correctness", why=f"{type(error).__name__}: {error}"[:600])
    gc.collect()
    pooled = mean_pooling(path, args.device, args.dtype)
    tell(loaded="all", seconds=time.perf_counter() - begin)
    runs: dict[str, Run] = {}
    for name, one in ours.items():
        runs |= {f"{name}, packed": one.runs("packed"), f"{name}, padded": one.runs("padded")}
        begin = time.perf_counter()
        if one.compile(some_texts(64, median=9, spread=0.4, longest=40)):
            tell(compiled=name, seconds=time.perf_counter() - begin)
            runs[f"{name}, packed, compiled"] = one.runs("packed", compiled=True)
    large = shape.width > 2048
    if not large:
        for steps in (2048, 32768):
            runs[f"VA, packed, steps of {steps:,} tokens"] = ours["VA"].runs("packed", steps=steps)
    for size in (32, 128) if large else (32, 128, 512):
        runs[f"sentence-transformers mean pooling, batches of {size}"] = sentence_transformers_mean(
            path, args.device, args.dtype, shape, batch_size=size, model=pooled
        )
    for size in (16, 64):
        runs[f"PromptEOL as published, batches of {size}"] = published(
            path, args.device, args.dtype, shape, batch_size=size, model=causal
        )
    runs["PromptEOL, tuned"] = tuned(path, args.device, args.dtype, shape, model=causal.model)
    return runs


def speed(args: Namespace, tell: Teller) -> None:
    """Everyone's throughput, in turns, and the time of a single text."""
    shape = SHAPES["tiny" if args.tiny else args.shape]
    started = time.monotonic()
    runs = contenders(str(args.checkpoint), shape, args, tell)
    for length, (median, spread, longest) in LENGTHS.items():
        pool = some_texts(24 if args.tiny else 8192, median=median, spread=spread, longest=longest)
        texts = pool[: 8 if args.tiny else 256 if length == "sentences" else 64]
        first = runs["VA, packed"]
        first(texts)
        begin = time.perf_counter()
        first(texts)
        # As many as take VA about 0.4 seconds.
        pace = len(texts) / (time.perf_counter() - begin)
        texts = pool[: max(64, round(0.4 * pace))]
        tell(texts=length, count=len(texts))
        until = started + args.seconds * (0.6 if length == "sentences" else 0.95)
        out: set[str] = set()
        for number in range(args.rounds + 1):
            limit = product_rate(args)
            for name, run in runs.items():
                if name in out or (number > 1 and time.monotonic() > until):
                    continue
                before = peak = 0
                if args.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                try:
                    begin = time.perf_counter()
                    work = run(texts)
                    seconds = time.perf_counter() - begin
                except torch.OutOfMemoryError:
                    out.add(name)
                    tell(failed=name, length=length, why="out of memory")
                    continue
                if args.device == "cuda":
                    peak = torch.cuda.max_memory_allocated() - before
                # The first turn warms up.
                if number:
                    tell(
                        turn=name, length=length, round=number, texts=len(texts), seconds=seconds, tokens=work.tokens,
                        padded=work.padded, flops=work.flops, limit=limit, memory=peak,
                    )  # fmt: skip
    text = some_texts(1, median=12)
    for name, run in runs.items():
        if "steps of" in name or time.monotonic() > started + args.seconds:
            continue
        times = []
        for _ in range(3 if args.tiny else 20):
            begin = time.perf_counter()
            run(text)
            times.append(time.perf_counter() - begin)
        tell(single=name, seconds=statistics.median(times))


def profile(args: Namespace, tell: Teller) -> None:
    """Where the time of a call goes: kernels, gaps between them, and Python."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile as profiled

    shape = SHAPES["tiny" if args.tiny else args.shape]
    on_gpu = args.device == "cuda"
    for method in ("va", "aligned_wva"):
        one = Ours(str(args.checkpoint), method, shape, args)
        for length, (median, spread, longest) in LENGTHS.items():
            count = 16 if args.tiny else 2048 if length == "sentences" else 128
            texts = some_texts(count, median=median, spread=spread, longest=longest)
            run = one.runs("packed")
            for _ in range(2):
                run(texts)
            begin = time.perf_counter()
            run(texts)
            alone = time.perf_counter() - begin
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            with profiled(activities=activities) as seen:
                run(texts)
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
            cpu = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)[:15]
            tell(
                profile=method,
                length=length,
                texts=count,
                seconds=alone,
                busy=busy / 1e6,
                span=(reached - spans[0][0]) / 1e6 if spans else 0.0,
                kernels=len(spans),
                top=[[name, *total] for name, total in sorted(totals.items(), key=lambda item: -item[1][1])[:18]],
                cpu=[[event.key[:60], event.count, event.self_cpu_time_total] for event in cpu],
            )
            watch = cProfile.Profile()
            watch.runcall(run, texts)
            entries: dict[Any, Any] = pstats.Stats(watch).stats  # type: ignore[attr-defined]
            longest_own = sorted(entries.items(), key=lambda item: -item[1][2])[:20]
            tell(
                python=method,
                length=length,
                top=[[f"{Path(place[0]).name}:{place[1]} {place[2]}", of[0], of[2]] for place, of in longest_own],
            )
        del one
        gc.collect()


PARTS: dict[str, Callable[[Namespace, Teller], None]] = {"speed": speed, "profile": profile}
