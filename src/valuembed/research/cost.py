"""What each method costs on one decoder: tokens, layers, arithmetic and time, measured side by side."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from valuembed._utils.atomic import replace_text
from valuembed._utils.autosave import autosave, incomplete
from valuembed._utils.progress import track
from valuembed._utils.text import counted
from valuembed._utils.torch_settings import default_device_and_precision
from valuembed.analysis import Documents
from valuembed.backbone import LoadKwargs, LoadOptions
from valuembed.backbone.checkpoints import locate
from valuembed.data import as_texts
from valuembed.errors import InputError
from valuembed.models import MultiReadout, choose_recipes, described
from valuembed.recipes import MethodSpec, parse_methods
from valuembed.reporting import markdown, plots, results_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

REFERENCE = "aligned_wva"
"""What the others are compared with, where it is among them: the paper claims that it is cheaper than MetaEOL."""

SAMPLE = 200
"""Texts that are enough for a stable time on a small model, and made where none are given."""

_WORDS = """
    the a this that one every no some of in on at with without from to by after before near under over old new small
    large early late quiet busy green open long short man woman child teacher driver dog bird river street house
    garden market train letter window song story answer price morning winter runs waits reads opens carries finds
    asks sells builds watches writes turns keeps and but while because slowly again often never
"""


@dataclass(frozen=True)
class MethodCost:
    """What one method costs.

    Attributes:
        method: its label.
        templates: sequences that are fed for one text.
        tokens: tokens that are computed for one text, mean over the texts: those of its sequences, less a template's
            constant beginning where that is computed once for all of them.
        layers: decoder layers that are run. Of the highest one, a method that reads values runs only the part up to
            them.
        flops: floating-point operations for one text, as counted by ``torch.utils.flop_counter`` in a real pass: matrix
            products and attention, padding included, causality not deducted.
        seconds: for 1,000 texts, tokenizing included, in each round.
    """

    method: str
    templates: int
    tokens: float
    layers: int
    flops: float
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class CostReport:
    """The costs of several methods on one decoder.

    Attributes:
        model: its public name.
        num_layers: L of the whole decoder.
        device, dtype: where and in what it ran.
        threads: of torch on a CPU.
        texts: how many texts were embedded in each round.
        texts_are: where they come from.
        reference: the method that the others are compared with.
        costs: in the order given.
        details: origin with its commit, precision, token limit, versions.
        unfinished: how much of the work this is, where it ended early; else empty.
    """

    model: str
    num_layers: int
    device: str
    dtype: str
    threads: int
    texts: int
    texts_are: str
    reference: str
    costs: tuple[MethodCost, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    unfinished: str = ""

    def ratios(self) -> dict[str, dict[str, float]]:
        """By method, its ``tokens``, ``flops`` and ``seconds`` as multiples of the reference's.

        That of the seconds is the median of the rounds' ratios, in each of which both ran under the same load.
        """
        base = next(cost for cost in self.costs if cost.method == self.reference)
        return {
            cost.method: {
                "tokens": cost.tokens / base.tokens,
                "flops": cost.flops / base.flops,
                "seconds": median(a / b for a, b in zip(cost.seconds, base.seconds, strict=True)),
            }
            for cost in self.costs
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "ratios": self.ratios()}

    def to_markdown(self) -> str:
        """A table, and how it was measured."""
        threads = f", {counted(self.threads, 'thread')}" if self.device.startswith("cpu") else ""
        lines = [
            f"# What each method costs on {self.model}",
            "",
            *([f"{self.unfinished}.", ""] if self.unfinished else []),
            f"{counted(self.texts, 'text')} ({self.texts_are}), {counted(len(self.costs[0].seconds), 'round')} in "
            f"which the methods take turns, on {self.device}, {self.dtype}{threads}. Seconds include tokenizing: "
            "median (fastest to slowest round). The last column is the median of the rounds' ratios to "
            f"{self.reference}.",
            "",
        ]
        rows, ratios = [], self.ratios()
        for cost in self.costs:
            tokens = f"{cost.tokens:.1f}" + (f" in {cost.templates} passes" if cost.templates > 1 else "")
            low, high = min(cost.seconds), max(cost.seconds)
            seconds = f"{median(cost.seconds):.3g} ({low:.3g} to {high:.3g})"
            times = f"{ratios[cost.method]['seconds']:.2f}"
            rows.append([cost.method, tokens, str(cost.layers), f"{cost.flops / 1e9:.3g}", seconds, times])
        head = ["method", "tokens computed a text", f"layers run, of {self.num_layers}", "GFLOP a text"]
        lines += [
            *markdown.table([*head, "seconds for 1,000 texts", f"times {self.reference}"], rows, "-"),
            "",
            "Of the highest layer that is run, methods that read values run only the part up to them. GFLOP: matrix "
            "products and attention as torch counts them in a real pass.",
        ]
        return "\n".join(lines) + "\n"

    def figure(self) -> Figure:
        """A chart of everything as multiples of the reference."""
        names = {"tokens": "tokens", "flops": "floating-point operations", "seconds": "seconds"}
        groups = {
            method: {names[key]: value for key, value in of_method.items()}
            for method, of_method in self.ratios().items()
        }
        title = "\n".join(filter(None, (f"Cost of embedding a text, {self.model}", self.unfinished)))
        return plots.bars(groups, title=title, ylabel=f"multiple of {self.reference}")

    def save(self, folder: str | Path) -> None:
        """Write ``cost.md``, ``cost.json`` and ``cost.png``.

        Raises:
            OutputError, MissingExtraError: as :func:`valuembed.reporting.results_folder`.
        """
        folder = results_folder(folder)
        replace_text(folder / "cost.md", self.to_markdown())
        replace_text(folder / "cost.json", json.dumps(self.to_dict(), ensure_ascii=False, indent=2) + "\n")
        plots.save(self.figure(), folder / "cost.png")


@default_device_and_precision()
def measure_cost(
    model: str = "bundled",
    methods: str | Sequence[str] | Mapping[str, MethodSpec] | None = "all",
    texts: Sequence[str] | None = None,
    *,
    corpus: str | Path | None = None,
    text_column: str | None = None,
    count: int = SAMPLE,
    rounds: int = 3,
    output: str | Path | None = None,
    progress: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    **options: Unpack[LoadKwargs],
) -> CostReport:
    """Embed the same texts with each method alone, in turns, and note what it took.

    The decoder is loaded once, as deep as the deepest method needs; every pass ends where its own method has what it
    reads, as in a decoder that :func:`valuembed.load` cuts for it.

    Args:
        model: as in :func:`valuembed.load`.
        methods: see :func:`valuembed.recipes.parse_methods`.
        texts: b texts; None is those of the corpus, or without one :func:`random_texts`.
        corpus: a file of texts, one a row: .txt, .jsonl, .csv or .parquet.
        text_column: of the corpus; None is ``"text"``.
        count: how many texts are taken from the beginning of the corpus, or made where there is none.
        rounds: how often each method runs, after one pass that warms it up and counts its arithmetic.
        output: a folder for table, chart and JSON. Where the work ends early, it takes the rounds that are finished,
            marked as incomplete.
        progress: show a bar on stderr if that is a terminal, else a line a minute.
        clock: seconds from any start.
        options: ``dtype``, ``device``, ``max_tokens``, ``revision``, ``token``, ``cache_folder``,
            ``local_files_only``, ``trust_remote_code``, ``model_kwargs``: as in :func:`valuembed.load`.

    Raises:
        InputError: no texts, or fewer than one round; a corpus that cannot be read, or texts and a corpus.
        RecipeError, CheckpointError, UnsupportedModelError: as :func:`valuembed.load`.
        OutputError, MissingExtraError: results cannot be written, or the chart not drawn; known before the work.
    """
    loaded_with = LoadOptions.of(options, measure_cost)
    if rounds < 1:
        raise InputError(f"rounds={rounds} has to be at least 1")
    texts, texts_are = _texts(texts, corpus, text_column, count)
    if output is not None:
        results_folder(output)
    recipes = choose_recipes(locate(model, options=loaded_with), parse_methods(methods), None, "auto", None)
    readouts = MultiReadout.load(model, recipes, options=loaded_with)
    reader, names = readouts.reader, list(readouts.plans)
    tokens: dict[str, float] = {}
    flops: dict[str, float] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def made(rounds: int, unfinished: str = "") -> CostReport:
        return CostReport(
            model=reader.origin.name,
            num_layers=reader.origin.num_layers,
            device=str(reader.model.device),
            dtype=str(reader.model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            texts=len(texts),
            texts_are=texts_are,
            reference=REFERENCE if REFERENCE in names else names[0],
            costs=tuple(
                MethodCost(
                    method=name,
                    templates=len(plan.recipe.templates_for(None)),
                    tokens=tokens[name],
                    layers=plan.kept_layers,
                    flops=flops[name],
                    seconds=tuple(seconds[name][:rounds]),
                )
                for name, plan in readouts.plans.items()
            ),
            details=described(reader),
            unfinished=unfinished,
        )

    done = 0

    def keep() -> None:
        if output is not None and done:
            made(done, incomplete(done, rounds, "round")).save(output)

    bar = track(progress, total=len(names) * (rounds + 1), desc="Passes", unit="pass")
    with bar, autosave(keep) as finished:
        for name in names:
            with FlopCounterMode(display=False, custom_mapping=_MORE_KERNELS) as counter:
                readouts.encode(texts, names=[name])
            assert readouts.report is not None
            tokens[name] = (readouts.report.tokens - readouts.report.reused) / len(texts)
            flops[name] = counter.get_total_flops() / len(texts)
            bar.update()
        for number in range(rounds):
            # Another one goes first in each round, so that none always runs after the same neighbour.
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = clock()
                readouts.encode(texts, names=[name])
                seconds[name].append((clock() - start) * 1000 / len(texts))
                bar.update()
            done += 1
            finished()
    report = made(rounds)
    if output is not None:
        report.save(output)
    return report


def _texts(
    texts: Sequence[str] | None, corpus: str | Path | None, column: str | None, count: int
) -> tuple[Sequence[str], str]:
    """The texts to embed, and where they come from."""
    if texts is not None and corpus is not None:
        raise InputError("give one of texts and corpus, of which the texts would be taken")
    if texts is not None:
        texts = as_texts(texts)
        if not texts:
            raise InputError("no texts to embed; the cost of a method is measured on at least one")
        return texts, "given"
    if count < 1:
        raise InputError(f"count={count} has to be at least 1")
    if corpus is None:
        return random_texts(count), "random words in the lengths of sentences"
    documents = Documents(corpus, column)
    found = list(islice(documents, count))
    if not found:
        raise InputError(f"corpus {corpus} holds no usable text")
    return found, f"the first of {documents.path.name}"


def random_texts(count: int = SAMPLE) -> list[str]:
    """Random English words in the lengths of sentences, always the same: for a cost it matters how long texts are.

    Args:
        count: how many texts; 4 to 60 words each, their median 11.
    """
    draw = random.Random(0)
    texts = []
    for _ in range(count):
        words = min(60, max(4, round(draw.lognormvariate(2.4, 0.45))))
        texts.append(" ".join(draw.choices(_WORDS.split(), k=words)).capitalize() + ".")
    return texts


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Operations of an attention kernel, from the shapes ``[b, h, t, d]`` of what it takes."""
    b, h, t, d = query
    return 2 * b * h * t * key[2] * (d + value[3])


_MORE_KERNELS: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""Kernels that torch's counter does not know."""
