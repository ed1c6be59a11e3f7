"""The page of beyond.py: tables and the chart of what lies in its folder of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from beyond_search import ANSWER, TOPIC_OF_PASSAGE, TOPIC_OF_QUESTION, WORDS as PASSAGE_WORDS
from real_data import DEV, HEADLINE, MORE_DEV
from real_page import SHORT, TITLES, wrapped

from valuembed.evaluation import spearman
from valuembed.reporting import markdown, plots

ABOUT = """Readouts that the paper does not have, on the decoders of [real.md](real.md), none of them trained. A part is
one readout, its vectors of length 1; a joined one has several, one behind the other, each times the root of its weight.
What was chosen was chosen on STSb dev and the training split of STS12; the means of STSb test, STS13 and STS14 are
reports."""
WAYS = {
    "raw": "raw: as they are",
    "general": "general: each part without the mean of the general sentences that come with the package",
    "own": "own: each part without the mean of the set's own texts, which needs all of them first",
    "whitened": "whitened: each part by the mean and covariance of the general sentences, shrinkage 0.5",
}
PASSES = {"echo": ("echo",), "hidden_mean": ("none",), "va": ("none",)}
"""Templates that a part is fed in; of all others PromptEOL's, or Echo's where the label says so."""
CHOSEN = "joined"
METRICS = ("MAP", "MRR@10", "nDCG@10")


def write_page(folder: Path, work: Path, names: Iterable[str]) -> None:
    """Write ``beyond.md`` and its chart; nothing without results."""
    found = {name: json.loads((work / name / "scores.json").read_text(encoding="utf-8")) for name in names}
    if not found:
        return
    lines = ["# Beyond the paper's readouts", "", *wrapped(ABOUT), "", *_made(found), ""]
    lines += ["## Joined, centred, whitened", "", *wrapped("Cells: " + "; ".join(WAYS.values()) + "."), ""]
    for name, made in found.items():
        lines += [f"### {TITLES[name]}", "", *_scores(made), ""]
    lines += ["## What it comes to", "", *_gains(found), "", f"![Score by tokens]({_chart(found, folder)})", ""]
    if asked := {name: made for name, made in found.items() if made.get("search")}:
        lines += ["## Questions and answers", "", *_search(asked), ""]
    if sorted_texts := {name: made for name, made in found.items() if made.get("tasks")}:
        lines += ["## Clusters and classes", "", *_tasks(sorted_texts), ""]
    lines += ["## Shrinkage", "", *_shrinkage(found), ""]
    lines += ["## Layers that no label chooses", "", *_layers(found), ""]
    (folder / "beyond.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _made(found: Mapping[str, Any]) -> Iterator[str]:
    yield "Made by `python benchmarks/beyond.py --models DIR --data DIR` with these options:"
    yield ""
    for name, made in found.items():
        drawn = ", ".join(f"{count:,} of {label}" for label, count in made["pairs"].items())
        versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
        given = f"--decoders {name} {made['given']}"
        first, *rest = wrapped(
            f"- `{given}`: pairs drawn with a fixed seed, {drawn}; {made['dtype']} on {made['cpu']}; {versions}"
        )
        yield from (first, *(f"  {line}" for line in rest))


def test_mean(scores: Mapping[str, float]) -> float:
    """The mean over the sets that are reports."""
    return fmean(scores[label] for label in HEADLINE)


def cost(made: Mapping[str, Any], row: str) -> float:
    """Tokens that are fed for a text."""
    templates = {template for part in made["parts"][row] for template in _templates(part)}
    return float(sum(made["tokens"][template] for template in templates))


def _templates(part: str) -> tuple[str, ...]:
    if part.startswith("va, echo"):
        return ("echo",)
    return PASSES.get(part, ("prompt_eol",))


def _scores(made: Mapping[str, Any]) -> list[str]:
    rows = []
    best = {
        (measure, way): max(_measures(of_row[way])[measure] for of_row in made["scores"].values())
        for way in WAYS
        for measure in (DEV, MORE_DEV, "test")
    }
    for row, of_row in made["scores"].items():
        cells = []
        for measure in (DEV, MORE_DEV, "test"):
            figures = {way: _measures(of_row[way])[measure] for way in WAYS}
            cells.append(
                " / ".join(
                    f"**{figure:.1f}**" if figure >= best[measure, way] - 1e-9 else f"{figure:.1f}"
                    for way, figure in figures.items()
                )
            )
        rows.append([row, f"{cost(made, row):.0f}", *cells])
    return markdown.table(["readout", "tokens a text", DEV, MORE_DEV, "mean of the test sets"], rows, "lrr")


def _measures(scores: Mapping[str, float]) -> dict[str, float]:
    return {DEV: scores[DEV], MORE_DEV: scores[MORE_DEV], "test": test_mean(scores)}


def _gains(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, made in found.items():
        before = test_mean(made["scores"]["aligned_wva"]["raw"])
        after = {way: test_mean(made["scores"][CHOSEN][way]) for way in ("raw", "general", "own")}
        share = cost(made, CHOSEN) / made["tokens"]["meta_eol"]
        gains = [f"{figure:.1f} ({figure - before:+.1f})" for figure in after.values()]
        rows.append([TITLES[name], f"{before:.1f}", *gains, f"{share:.2f}"])
    head = ["mean of the test sets", "aligned_wva", "joined", "joined, general", "joined, own", "tokens / MetaEOL's"]
    return markdown.table(head, rows, "lrr")


def _chart(found: Mapping[str, Any], folder: Path) -> str:
    """For each decoder the best raw score that so many tokens buy."""
    lines = {}
    for name, made in found.items():
        points = sorted((cost(made, row), test_mean(of_row["raw"])) for row, of_row in made["scores"].items())
        best: list[tuple[float, float]] = []
        for tokens, score in points:
            if not best or score > best[-1][1]:
                best = [*(point for point in best if point[0] < tokens), (tokens, score)]
        lines[SHORT[name]] = best
    figure = plots.curves(
        lines,
        title="The best score that so many tokens a text buy",
        xlabel="tokens a text, templates included",
        ylabel="Spearman x100, mean of three test sets",
    )
    plots.save(figure, folder / "beyond.png")
    return "beyond.png"


def _search(found: Mapping[str, Any]) -> Iterator[str]:
    yield from wrapped(
        "TREC-QA: MAP of the answers of each question among its own candidates, and MRR@10 among the candidates of all "
        f"questions. Cranfield: nDCG@10, of each abstract the first {PASSAGE_WORDS} words. Cells: raw / without the "
        "mean of all passages / whitened by them, shrinkage 0.5; under each set, then, the same fused with the words' "
        "ranking (BM25), as `--hybrid` fuses: raw / without the mean. BM25 alone reads the same words. What `--for "
        "search` takes, and where `search` centres by itself, was chosen on the development set. Rows that read "
        "questions and passages differently: AlignedWVA of a question against AlignedVA of passages, which lie in one "
        "space; prompts for topics, `" + TOPIC_OF_QUESTION + "` and `" + TOPIC_OF_PASSAGE + "`; a prompt for the "
        "answer, `" + ANSWER + "`, against passages by PromptEOL's. `trained` is all-MiniLM-L6-v2, an embedding model "
        "of 23 million parameters that was trained on a billion pairs."
    )
    for name, made in found.items():
        sets = made["search"]
        drawn = "; ".join(
            f"{label}: {of_set['questions']} questions, {of_set['passages']:,} passages"
            for label, of_set in sets.items()
        )
        yield from ("", f"### {TITLES[name]}, questions", "", f"{drawn}.", "")
        columns = [(label, metric) for label in sets for metric in METRICS if _has(sets[label], metric)]
        head = [title for label, metric in columns for title in (f"{label}, {metric}", "with words")]
        names = list(dict.fromkeys(row for of_set in sets.values() for row in of_set["scores"]))
        rows = [
            [row, *(cell for label, metric in columns for cell in _found(sets[label]["scores"][row], metric))]
            for row in names
        ]
        yield from markdown.table(["readout", *head], rows, "lr")


def _has(of_set: Mapping[str, Any], metric: str) -> bool:
    return metric in of_set["scores"]["BM25"]["raw"]


def _found(scores: Mapping[str, Mapping[str, float]], metric: str) -> list[str]:
    """The cells of a row: of vectors alone, and with words."""
    return [
        " / ".join(f"{scores[way][metric]:.1f}" for way in ways if way in scores) or "-"
        for ways in (("raw", "centred", "whitened 0.5"), ("raw, words", "centred, words"))
    ]


def _tasks(found: Mapping[str, Any]) -> Iterator[str]:
    yield from wrapped(
        "BBC-news: V-measure of k-means, the mean of ten starts, the first 100 words of each article. banking77: "
        "accuracy of a logistic regression on 4 texts of each of 77 classes. Cells as above: " + " / ".join(WAYS) + "."
    )
    for name, made in found.items():
        sets = made["tasks"]
        drawn = "; ".join(f"{label}: {of_set['texts']:,} texts" for label, of_set in sets.items())
        yield from ("", f"### {TITLES[name]}, clusters and classes", "", f"{drawn}.", "")
        names = list(dict.fromkeys(row for of_set in sets.values() for row in of_set["scores"]))
        rows = [
            [
                row,
                *(" / ".join(f"{figure:.1f}" for figure in of_set["scores"][row].values()) for of_set in sets.values()),
            ]
            for row in names
        ]
        yield from markdown.table(
            ["readout", *(f"{label}, {of_set['metric']}" for label, of_set in sets.items())], rows, "lr"
        )


def _shrinkage(found: Mapping[str, Any]) -> Iterator[str]:
    yield from wrapped(
        "Whitening by its shrinkage, single readouts: the mean of the two development sets / of the three test sets, "
        "whitened by the general sentences, then by a set's own texts."
    )
    for name, made in found.items():
        grid = list(next(iter(made["shrinkage"].values()))["own"])
        rows = []
        for part, of_part in made["shrinkage"].items():
            raw = made["scores"][part]["raw"]
            for by, of_by in of_part.items():
                rows.append([part, by, _means(raw), *(_means(of_by[shrinkage]) for shrinkage in grid)])
        yield from ("", f"### {TITLES[name]}, whitening", "")
        yield from markdown.table(["readout", "by", "raw", *grid], rows, "llr")


def _means(scores: Mapping[str, float]) -> str:
    return f"{fmean(scores[label] for label in (DEV, MORE_DEV)):.1f} / {test_mean(scores):.1f}"


def _layers(found: Mapping[str, Any]) -> Iterator[str]:
    yield from wrapped(
        f"VA over Echo's second copy, of one layer of the upper half: which layer each criterion takes from the "
        f"{max(made['general'] for made in found.values())} general sentences alone, what that layer scores on STSb "
        "test, raw, alone and joined with AlignedWVA, and the rank correlation of the criterion with the score on STSb "
        "dev over the layers."
    )
    for name, made in found.items():
        by_layer = made["by layer"]
        of_dev = {layer: scores["alone"][DEV] for layer, scores in by_layer.items()}
        labelled = max(of_dev, key=of_dev.__getitem__)
        rows = [["chosen by the labels of STSb dev", labelled, *_of_layer(by_layer[labelled]), "-"]]
        for title, values in made["criteria"].items():
            chosen = max(values, key=values.__getitem__)
            rows.append([title, chosen, *_of_layer(by_layer[chosen]), f"{_rank_correlation(values, of_dev):.2f}"])
        yield from ("", f"### {TITLES[name]}, layers", "")
        head = ["criterion", "layer", "alone", "joined", "rank correlation"]
        yield from markdown.table(head, rows, "lrr")
        fixed = made["scores"][CHOSEN]["raw"]["STSb test"]
        yield from ("", *wrapped(f"The fixed rule of `joined`, the last layer and the second before it: {fixed:.1f}."))


def _of_layer(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [f"{scores[kind]['STSb test']:.1f}" for kind in ("alone", "joined")]


def _rank_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    values = np.array([[one[layer] for layer in other]])
    return float(spearman(values, np.array(list(other.values())))[0])
