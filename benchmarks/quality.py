"""Every method on local sets, as it is and whitened; layer by layer; and the layers that selection finds.

    python benchmarks/quality.py --data DIR --corpus FILE [--model bundled] [--results DIR] [--max-tokens N]
        [--dtype bfloat16] [--whole]

DIR holds evaluation sets as JSON Lines under the names of SETS; those that are not there are left out. FILE is an open
corpus of documents (.jsonl or .jsonl.zst with a key "text"), for whitening and for selection without labels. Results
are kept in --results, so that an interrupted run goes on. MetaEOL takes eight passes a text, and is measured on SHORT
only unless --whole is given. Written beside this script: quality.md and quality-*.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import io
import json
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow

from valuembed.analysis.calibration_fit import fit_calibrations, sample_texts
from valuembed.analysis.calibration_report import report_calibration
from valuembed.analysis.layer_selection import select_layers
from valuembed.analysis.layer_sweep import sweep
from valuembed.evaluation.results import Evaluation, scoring_versions
from valuembed.evaluation.runner import evaluate
from valuembed.models import MultiReadout
from valuembed.recipes.layers import describe
from valuembed.recipes.methods import resolve_recipe
from valuembed.recipes.recipe import Recipe
from valuembed.reporting import markdown, plots

HERE = Path(__file__).parent
DEV = "STSBenchmark.en.dev.jsonl"
SETS = {
    "STSb dev": f"sts:{DEV}",
    "STSb test": "sts:STSBenchmark.en.test.jsonl",
    "STS12": "sts:STS12.jsonl",
    "STS13": "sts:STS13.jsonl",
    "STS14": "sts:STS14.jsonl",
    "TREC-QC": "classification:TREC-QC.train.jsonl,TREC-QC.test.jsonl",
    "banking77": "classification:banking77.train.jsonl,banking77.test.jsonl",
    "TREC-QA": "reranking:TREC-QA.test.jsonl",
    "TREC-QA pairs": "pairs:TREC-QA.test.jsonl",
    "Cranfield": "retrieval:Cranfield.docs.jsonl,Cranfield.queries.jsonl,Cranfield.qrels.jsonl",
    "BBC": "clustering:BBC-news.jsonl",
}
SHORT = ("STSb dev", "STSb test", "TREC-QC")
# Label: method, template, layers (None: the method's own).
ROWS = {
    "layer 0, mean (about a bag of embeddings)": ("hidden_mean", "auto", [0]),
    "mean of hidden states": ("hidden_mean", "auto", None),
    "last token's hidden state": ("hidden_last", "auto", None),
    "Echo": ("echo", "auto", None),
    "PromptEOL": ("prompt_eol", "auto", None),
    "Pretended CoT": ("prompt_eol", "pretended_cot", None),
    "Knowledge": ("prompt_eol", "knowledge", None),
    "MetaEOL (task texts ours)": ("meta_eol", "auto", None),
    "VA": ("va", "auto", None),
    "VA, all layers": ("va", "auto", "all"),
    "VA, second half": ("va", "auto", "half"),
    "AlignedVA": ("aligned_va", "auto", None),
    "WVA, last token (LT)": ("wva", "none", None),
    "WVA, PromptEOL": ("wva", "auto", None),
    "WVA, FutureEOL (wording ours)": ("wva", "future_eol", None),
    "AlignedWVA, LT": ("aligned_wva", "none", None),
    "AlignedWVA, PromptEOL": ("aligned_wva", "auto", None),
    "AlignedWVA, PromptEOL, all layers": ("aligned_wva", "auto", "all"),
    "AlignedWVA, FutureEOL (wording ours)": ("aligned_wva", "future_eol", None),
}
WHITENED = ", whitened"
FITTED_ON = 2000
DOCUMENT_WORDS = 300
DOCUMENTS = 1000
BUNDLED_NOTE = """The bundled model was taught the templates of PromptEOL and FutureEOL (see its card), so the rows
with a template profit from that and are no evidence for a training-free method. Its training texts are from the corpus
that whitening and selection without labels use here. Nothing was tuned on the sets of the tables."""


def read_corpus(path: Path) -> Iterator[str]:
    with pyarrow.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as file:
        yield from (json.loads(line)["text"] for line in io.TextIOWrapper(file, encoding="utf-8"))


def sentences(path: Path) -> Iterator[str]:
    for document in read_corpus(path):
        for sentence in re.split(r"(?<=[.!?])\s+", document):
            if 4 <= len(sentence.split()) <= 40:
                yield sentence.strip()


def recipes() -> dict[str, Recipe]:
    return {label: resolve_recipe(method, layers, template) for label, (method, template, layers) in ROWS.items()}


def specs(data: Path, names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        kind, _, listed = SETS[name].partition(":")
        files = [data / file for file in listed.split(",")]
        if all(file.is_file() for file in files):
            found.append(f"{kind}:{','.join(map(str, files))}")
    return found


def run(args: argparse.Namespace, chosen: dict[str, Recipe], fitted_on: list[str]) -> Evaluation:
    long = {} if args.whole else {label: recipe for label, recipe in chosen.items() if len(recipe.template) > 1}
    made = []
    for part, names in (({label: chosen[label] for label in chosen if label not in long}, SETS), (long, SHORT)):
        if not part:
            continue
        panel = MultiReadout.load(args.model, part, dtype=args.dtype, max_tokens=args.max_tokens)
        fitted = fit_calibrations(panel, fitted_on, max_texts=FITTED_ON)
        made.append(
            evaluate(
                args.model,
                {**part, **{label + WHITENED: part[label] for label in part}},
                specs(args.data, names),
                calibrations={label + WHITENED: calibration for label, calibration in fitted.items()},
                output=args.results,
                dtype=args.dtype,
                max_tokens=args.max_tokens,
            )
        )
    return replace(
        made[0],
        recipes={label: recipe for one in made for label, recipe in one.recipes.items()},
        scores=tuple(score for one in made for score in one.scores),
        failures=tuple(lost for one in made for lost in one.failures),
    )


def table(made: Evaluation, chosen: dict[str, Recipe]) -> Iterator[str]:
    """Two figures a cell: as the vectors are, and whitened."""
    columns: dict[str, dict[str, float]] = {}
    for score in made.scores:
        columns.setdefault(score.method, {})[score.task] = score.score
    metrics = {score.task: score.metric for score in made.scores}
    best = {task: max((row[task] for row in columns.values() if task in row), default=None) for task in made.tasks}
    heads = (f"{task} ({metrics[task]})" if task in metrics else task for task in made.tasks)
    rows = []
    for label in chosen:
        figures = [(task, [columns[name].get(task) for name in (label, label + WHITENED)]) for task in made.tasks]
        cells = [" / ".join("-" if x is None else f"{x:.2f}" for x in pair) for task, pair in figures]
        cells = [
            f"**{cell}**" if best[task] is not None and best[task] in pair else cell
            for cell, (task, pair) in zip(cells, figures, strict=True)
        ]
        rows.append([label, *made.about(label), *cells])
    yield from markdown.table(["method", "layers", "width", *heads], rows, "llr")


def side_by_side(args: argparse.Namespace, selected: dict[tuple[str, str], Recipe]) -> Iterator[str]:
    """What the selected layers are worth on a set that neither selection has seen, next to the default ones."""
    ways = ("default", "with labels", "without labels")
    methods = {
        f"{method}, {way}": selected.get((method, way), resolve_recipe(method, None, "auto"))
        for method, _ in selected
        for way in ways
    }
    made = evaluate(args.model, methods, specs(args.data, ["STSb test"]), output=args.results, dtype=args.dtype)
    scores = {score.method: score.score for score in made.scores}
    yield "Spearman x100 on STSb test, in brackets the layers. Labels: STSb dev. Without: segments of the open corpus."
    yield ""
    rows = []
    for method in dict.fromkeys(method for method, _ in selected):
        labels = [f"{method}, {way}" for way in ways]
        rows.append([method, *(f"{scores[label]:.2f} ({made.about(label)[0]})" for label in labels)])
    yield from markdown.table(["method", *ways], rows, "lr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--corpus", type=Path, required=True, help="documents without labels, .jsonl or .jsonl.zst")
    parser.add_argument("--model", default="bundled")
    parser.add_argument(
        "--results", type=Path, default=Path("quality-results"), help="folder for results that are kept"
    )
    parser.add_argument("--max-tokens", type=int, help="cut longer texts of the table's sets")
    parser.add_argument("--dtype", default="float32", help="precision of the decoder")
    parser.add_argument("--whole", action="store_true", help="MetaEOL on every set")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)

    chosen = recipes()
    fitted_on = sample_texts(sentences(args.corpus), FITTED_ON).texts
    made = run(args, chosen, fitted_on)
    as_they_are = tuple(one for one in made.scores if not one.method.endswith(WHITENED))
    given = "".join(
        f" {option}"
        for option in (args.max_tokens and f"--max-tokens {args.max_tokens}", args.whole and "--whole")
        if option
    )
    lines = [
        f"# Quality of every method on {args.model}",
        "",
        f"Made by `python benchmarks/quality.py --data DIR --corpus FILE --model {args.model}{given} --dtype "
        f"{args.dtype}`,",
        f"on Python {platform.python_version()}, {', '.join(map(' '.join, scoring_versions().items()))}.",
        "",
        *([BUNDLED_NOTE, ""] if args.model == "bundled" else []),
        "## All methods on all local sets",
        "",
        "In percent, mteb's metrics. Each cell: as the vectors are / whitened (shrinkage 0.01, fitted on "
        f"{FITTED_ON:,} sentences of the open corpus, no labels). The best of a column is bold.",
        *([] if args.whole else [f"MetaEOL, with eight passes a text, was run on {', '.join(SHORT)} only."]),
        "",
        *table(made, chosen),
        "",
        *(f"- {line}" for line in replace(made, scores=as_they_are).cut()),
        *(f"- failed: {lost.task}, {lost.method}: {lost.reason}" for lost in made.failures),
    ]

    lines += ["", "## Layer by layer", ""]
    for name in ("none", "prompt_eol"):
        swept = sweep(args.model, f"sts:{args.data / DEV}", template=name, dtype=args.dtype)
        plots.save(swept.figure(), HERE / f"quality-layers-{name}.png")
        lines += [f"![{swept.title}](quality-layers-{name}.png)", "", swept.to_markdown()]

    lines += ["## Layers that selection finds", ""]
    documents = args.results / "documents.jsonl"
    long = (text for text in read_corpus(args.corpus) if len(text.split()) >= DOCUMENT_WORDS)
    with documents.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text, _ in zip(long, range(DOCUMENTS), strict=False))
    details, selected = [], {}
    for method in ("va", "aligned_va", "aligned_wva"):
        with_labels = select_layers(args.model, method, dev=f"sts:{args.data / DEV}", dtype=args.dtype)
        without = select_layers(args.model, method, corpus=documents, dtype=args.dtype)
        for how, found in (("with labels", with_labels), ("without labels", without)):
            selected[method, how] = found.recipe
            layers = describe(found.recipe.layers or ())
            details += [f"### {method}, {how}: layers {layers}", "", found.to_markdown()]
    lines += [*side_by_side(args, selected), "", *details]

    lines += ["## Calibration by kind and size", ""]
    once = {label: recipe for label, recipe in chosen.items() if args.whole or len(recipe.template) == 1}
    report = report_calibration(args.model, fitted_on, f"sts:{args.data / DEV}", once, dtype=args.dtype)
    lines.append(report.to_markdown().replace("\n## ", "\n### ").partition("\n")[2].strip())
    text = "\n".join(lines)
    (HERE / "quality.md").write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
