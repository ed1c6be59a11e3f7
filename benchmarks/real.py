"""Every method on real decoders: similarity, clustering, classification, retrieval, reranking; layers; what it costs.

    python benchmarks/real.py --models DIR --data DIR [--decoders smollm2 gemma3 qwen2.5] [--size small] [--pairs N]
        [--work DIR] [--parts dev headline sts meta others] [--dtype float32] [--device cpu] [--page]

DIR of --models holds a folder for each decoder, DIR of --data the evaluation sets as JSON Lines. A size is a share of
the sets, drawn with a fixed seed: brief, small, medium or whole (SIZES of real_data.py); decoders may be run at
different ones, and the page says which. The part headline is the paper's methods alone, on --pairs of three test sets.
Results are kept in --work: what lies there is not computed again, and --page only writes the page of it. Written beside
this script: real.md, real.png and real-layers-*.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from real_data import DEV, HEADLINE, MORE_DEV, SIZES, STS, Size, others, sts
from real_page import write_page
from real_sts import (
    CURVES,
    HEADLINE_ROWS,
    RANGES,
    Decoder,
    Read,
    calibrations,
    correlations,
    fitted,
    range_layers,
    read_set,
    template_name,
)

from valuembed.data import StsFile
from valuembed.evaluation import evaluate, scoring_versions
from valuembed.models import Projection

HERE = Path(__file__).parent
DECODERS = ("smollm2", "gemma3", "qwen2.5")
PARTS = ("dev", "headline", "sts", "meta", "others")
META = "meta_eol"
OTHER_WAYS = ("raw", "centred")
Fits = dict[str, dict[str, Projection]]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the decoders' folders")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--decoders", nargs="+", default=DECODERS)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="which to run; all but headline need dev"
    )
    parser.add_argument("--pairs", type=int, help="of each set of the headline; default: all")
    parser.add_argument("--work", type=Path, default=Path("real-results"), help="folder for results that are kept")
    parser.add_argument("--dtype", default="float32", help="precision of the decoders")
    parser.add_argument("--device", help="where to compute; default: a GPU if there is one")
    parser.add_argument("--page", action="store_true", help="only write the page of what lies in --work")
    args = parser.parse_args(given)
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        if not args.page:
            for name in args.decoders:
                run(args, name, SIZES[args.size])
    finally:
        write_page(HERE, args.work, [name for name in DECODERS if (args.work / name / "scores.json").exists()])


def run(args: argparse.Namespace, name: str, size: Size) -> None:
    """Everything of one decoder, and ``scores.json`` after each part."""
    work = args.work / name
    work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    decoder = Decoder.load(args.models / name, dtype=args.dtype, device=args.device)
    made = Made(decoder, args, size, work)
    for part in PARTS:
        # The mean and the directions of the other parts are those of dev; without it the headline is raw.
        if part in args.parts or (part == "dev" and {*args.parts} - {"headline"}):
            getattr(made, part)()
            made.write()
            print(f"{name}, {part}: {time.perf_counter() - began:,.0f} s since the start", flush=True)


class Made:
    """Scores of one decoder."""

    def __init__(self, decoder: Decoder, args: argparse.Namespace, size: Size, work: Path) -> None:
        self.decoder, self.size, self.work = decoder, size, work
        self.pairs: int | None = args.pairs
        self.data: Path = args.data
        self.folder = args.models / decoder.name
        self.options = {"dtype": args.dtype, "device": args.device}
        self.made_with = {"dtype": args.dtype, "versions": scoring_versions()}
        self.fits: Fits = {}
        self.fitted_on: list[str] = []
        spec = decoder.readouts.reader.plan.decoder_spec
        legal = spec.value_layers
        path = work / "scores.json"
        # A part that is not asked for keeps what an earlier run has found.
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.scores: dict[str, Any] = {
            **{
                key: before[key]
                for key in ("pairs", "fitted_on", "dev", "more dev", "headline", "sts", "meta", "others")
                if key in before
            },
            "decoder": decoder.name,
            "num_layers": decoder.num_layers,
            "width": spec.model_width,
            "size": {"name": args.size, **asdict(size)},
            "dtype": args.dtype,
            "device": str(decoder.readouts.reader.model.device),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **scoring_versions()},
            "ranges": {name: list(range_layers(name, legal, decoder.num_layers)) for name in RANGES},
            "curves": list(CURVES),
            "rows": {
                label: {
                    "layers": recipe.describe().layers,
                    "run": (plan.layers[-1] + 1 if plan.layers else decoder.num_layers) / decoder.num_layers,
                    "template": template_name(recipe),
                    "alignment": recipe.alignment,
                    "width": plan.width,
                }
                for label, plan in decoder.readouts.plans.items()
                if "@" not in label and (recipe := plan.recipe)
            },
        }

    def write(self) -> None:
        """Keep what there is."""
        (self.work / "scores.json").write_text(json.dumps(self.scores, indent=1) + "\n", encoding="utf-8")

    def read(
        self, name: str, data: StsFile, groups: Mapping[str, list[str]], *, keep_vectors: Any = None
    ) -> dict[str, Any]:
        """Scores of one set by way and label, and what each pass took."""
        found: dict[str, Any] = {"pairs": len(data.scores), "scores": {}, "passes": {}}
        for group, labels in groups.items():
            kept = self.work / "sts" / f"{name.replace(' ', '_')}-{len(data.scores)}-{group}.npz"
            read = read_set(self.decoder, group, labels, data, self.fits, kept, self.made_with, keep_vectors)
            self.note(found, group, read, data.scores)
        return found

    @staticmethod
    def note(found: dict[str, Any], group: str, read: Read, scores: list[float]) -> None:
        """Put a pass's scores and cost beside those of others."""
        for way, label, score in correlations(read, scores):
            found["scores"].setdefault(way, {})[label] = score
        found["passes"][group] = {"texts": read.texts, "tokens": read.tokens, "seconds": read.seconds}

    def dev(self) -> None:
        """STSb dev: every layer and range, and what calibrations are fitted on."""
        data = sts(self.data, DEV, self.size.dev, self.work)
        self.fitted_on = sorted({*data.sentences1, *data.sentences2})
        self.scores["fitted_on"] = len(self.fitted_on)
        kept = self.work / f"fits-{len(data.scores)}.pt"
        groups = {group: labels for group, labels in self.decoder.groups(layers=True).items() if group != META}
        recipes = {
            label: plan.recipe.choices() for label, plan in self.decoder.readouts.plans.items() if "@" not in label
        }
        about = json.dumps({"data": data.digest, "recipes": recipes, **self.made_with}, sort_keys=True)
        there = torch.load(kept, weights_only=True) if kept.exists() else {}
        vectors: dict[str, list[torch.Tensor]] | None = None if there.get("about") == about else {}
        self.scores["dev"] = self.read(DEV, data, groups, keep_vectors=vectors)
        # More data for the choice of layers, where no row is looked at.
        count = None if self.size.dev is None else max(20, self.size.dev // 2)
        more = sts(self.data, MORE_DEV, count, self.work)
        ranges = {
            group: ranges
            for group, labels in self.decoder.groups(layers=False).items()
            if (ranges := [label for label in labels if "@" in label])
        }
        self.scores["more dev"] = self.read(MORE_DEV, more, ranges)
        if vectors is None:
            self.fits = {
                way: {label: Projection(*parts) for label, parts in of_way.items()}
                for way, of_way in there["fits"].items()
            }
            return
        self.fits = fitted(vectors)
        plain = {way: {label: tuple(fit) for label, fit in of_way.items()} for way, of_way in self.fits.items()}
        torch.save({"about": about, "fits": plain}, kept)

    def headline(self) -> None:
        """The paper's methods on three test sets."""
        groups = self.decoder.groups(layers=False)
        rows = {
            group: kept for group, labels in groups.items() if (kept := [row for row in labels if row in HEADLINE_ROWS])
        }
        found: dict[str, Any] = {}
        self.scores["pairs"] = self.pairs
        for name in HEADLINE:
            found[name] = self.read(f"headline {name}", sts(self.data, name, self.pairs, self.work), rows)
            self.scores["headline"] = found
            self.write()

    def sts(self) -> None:
        """The other STS sets: rows and ranges, in every way."""
        groups = {group: labels for group, labels in self.decoder.groups(layers=False).items() if group != META}
        found: dict[str, Any] = {}
        for name in STS:
            if name not in (DEV, MORE_DEV):
                found[name] = self.read(name, sts(self.data, name, self.size.pairs, self.work), groups)
                self.scores["sts"] = found
                self.write()

    def meta(self) -> None:
        """MetaEOL on the first pairs of STSb test, and all other rows on the same pairs."""
        whole = sts(self.data, "STSb test", self.size.pairs, self.work)
        first = sts(self.data, "STSb test", self.size.meta, self.work)
        groups = self.decoder.groups(layers=False)
        # Its vectors were fitted on nothing, so it is compared as it is.
        self.fits, fits = {}, self.fits
        found = self.read("STSb test", first, {META: groups[META]})
        self.fits = fits
        for group, labels in groups.items():
            if group != META:
                kept = self.work / "sts" / f"STSb_test-{len(whole.scores)}-{group}.npz"
                read = read_set(self.decoder, group, labels, whole, self.fits, kept, self.made_with)
                for way, label, score in correlations(read, whole.scores, len(first.scores)):
                    found["scores"].setdefault(way, {})[label] = score
        self.scores["meta"] = found

    def others(self) -> None:
        """Sets that are no STS sets, by the library's ``evaluate``."""
        groups = self.decoder.groups(layers=False)
        labels = [label for group in self.size.templates for label in groups[group] if "@" not in label]
        recipes = {label: self.decoder.readouts.recipes[label] for label in labels}
        methods, behind = dict(recipes), {}
        for way in OTHER_WAYS:
            if way != "raw":
                of_way = calibrations(self.decoder, self.fits[way], way, self.fitted_on)
                methods |= {f"{label} | {way}": recipes[label] for label in labels}
                behind |= {f"{label} | {way}": of_way[label] for label in labels}
        tasks = others(self.data, self.size, self.work)
        found: dict[str, Any] = {}
        for longest in dict.fromkeys(task.max_tokens for task in tasks):
            now = {task.spec: task for task in tasks if task.max_tokens == longest}
            made = evaluate(
                self.folder,
                methods,
                list(now),
                calibrations=behind,
                output=self.work / "others",
                progress=False,
                max_tokens=longest,
                **self.options,
            )
            for task, title in zip(now.values(), made.tasks, strict=True):
                of_task = [score for score in made.scores if score.task == title]
                scores: dict[str, dict[str, float]] = {}
                for score in of_task:
                    label, _, way = score.method.partition(" | ")
                    scores.setdefault(way or "raw", {})[label] = score.score
                found[task.name] = {
                    "metric": task.metric,
                    "about": task.about,
                    "scores": scores,
                    "passes": self._passes(groups, of_task),
                }
        self.scores["others"] = {task.name: found[task.name] for task in tasks}

    def _passes(self, groups: Mapping[str, list[str]], of_task: list[Any]) -> dict[str, Any]:
        """What each pass took: methods that share one all show it whole."""
        spent = {score.method: score for score in of_task if score.texts}
        return {
            group: {"texts": spent[label].texts, "tokens": spent[label].tokens, "seconds": spent[label].seconds}
            for group, labels in groups.items()
            for label in labels[:1]
            if label in spent
        }


def cpu_name() -> str:
    """What the CPU calls itself, where the system says."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{named}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
