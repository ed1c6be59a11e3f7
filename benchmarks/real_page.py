"""The page of real.py: tables and charts of what lies in its folder of results."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from real_data import DEV, HEADLINE, LONGEST, MORE_DEV
from real_sts import RANGES, ROWS, SHRINKAGE, WAYS

from valuembed.recipes import METHODS, describe
from valuembed.reporting import markdown, plots

TITLES = {
    "smollm2": "SmolLM2-135M-Instruct",
    "gemma3": "Gemma 3 270M",
    "qwen2.5": "Qwen2.5-Coder-0.5B-Instruct",
}
SHORT = {"smollm2": "SmolLM2 135M", "gemma3": "Gemma 3 270M", "qwen2.5": "Qwen2.5-Coder 0.5B"}
ABOUT = """SmolLM2-135M-Instruct (4 bits, Q4_1; Apache-2.0), Gemma 3 270M, base (Q4_K_M; Gemma terms of use) and
Qwen2.5-Coder-0.5B-Instruct (Q4_K_M; Apache-2.0). All three are 4-bit quantizations that were dequantized to bfloat16
and are computed in the precision named below, so scores are a little below those of the original weights. No decoder
was trained for any of this. The layers that are read by default, the last third, were settled after scores of these
decoders had been seen, those of test sets among them; under Layers stands what other ranges give."""
MEANING = f"""Cells with several figures are {" / ".join(WAYS)}: as the vectors are; without their mean; and scaled to
equal variance in all directions (shrinkage {SHRINKAGE}). Mean and directions come from the sentences of STSb dev alone,
without their scores. The template of FutureEOL and the eight task texts of MetaEOL are worded by us. Figures are
percent by mteb's metrics, for STS 100 times Spearman's correlation of the cosines. The best of a column is bold, in
each of its ways."""
BARS = {
    "hidden_mean": "mean of hidden states",
    "prompt_eol": "PromptEOL, hidden state",
    "va": "VA",
    "wva": "WVA",
    "aligned_wva": "AlignedWVA",
}
"""Rows of the chart, by their label in it."""
IN_TEMPLATE = "wva, aligned_wva and prompt_eol in PromptEOL's template"
MORE = """
## The paper's tables and analyses

The rows of the paper on samples of the same sets, with layers brought over from Qwen3-8B by relative depth:
[SmolLM2](reproduce-smollm2.md), [Gemma 3](reproduce-gemma3.md), and the STS sets alone with
[Qwen2.5-Coder](reproduce-qwen2.5.md). Layers that were chosen for one decoder do not suit another: on SmolLM2
AlignedWVA has 50.7 with those of Qwen3-8B (21-22 and 24-25) and 65.2 with the last third, on the same 100 pairs of STSb
test. Presets are therefore for one backbone each.

Its two analyses on SmolLM2: [which segment comes next](probe-segments.md) ([chart](probe-segments.png)) and
[the next token](probe-next-token.md) ([chart](probe-next-token.png)). Values find the next segment better the deeper
the layer, from the middle on, and in the last one better than hidden states do there or after the final norm (20.0
against 17.6 and 16.2 %, one standard error at most 1.1); the best layer of hidden states, 23, is as good (19.9 %). The
next token is told by hidden states in all of the deep layers, by values at the token nearly as well in the best of them
(21.8 against 22.2 %, one standard error at most 1.1), and by the mean of either over the prefix hardly at all: 4.9 and
5.3 % where the most frequent token has 3.8 %.

`DIR` is as above, `CORPUS` long documents as JSON Lines:

```bash
python benchmarks/real_data.py --data DIR --out brief --size brief
python benchmarks/real_data.py --data DIR --corpus CORPUS --out small
valuembed reproduce --backbone qwen-3-8b --model DIR/smollm2 --local brief --max-tokens 96 --dtype float32 \\
    --skip 'meta_eol,knowledge,pretended_cot,*_cleaned' -o reproduce-smollm2
valuembed probe segments DIR/smollm2 --corpus small/documents.jsonl --segments 2500 \\
    --layers 0,6,12,18,20,23,26,29 --dtype float32 -o probes
valuembed probe next-token DIR/smollm2 --corpus small/documents.jsonl --positions 10000 \\
    --layers 0,6,12,18,20,23,26,29 --dtype float32 -o probes
```
"""


def write_page(folder: Path, work: Path, names: Iterable[str]) -> None:
    """Write ``real.md`` and a chart of layers for each decoder; nothing without results."""
    found = {name: json.loads((work / name / "scores.json").read_text(encoding="utf-8")) for name in names}
    if not found:
        return
    lines = ["# Methods on real decoders", "", *wrapped(ABOUT), "", *_made(found), "", *wrapped(MEANING), ""]
    if whole := {name: made for name, made in found.items() if {*HEADLINE} <= {*made.get("headline", {})}}:
        lines += [f"## STS: mean of {', '.join(HEADLINE)}", "", *_headline(whole), ""]
        lines += [f"![Spearman correlation by decoder and method]({_bars(whole, folder)})", ""]
    lines += ["## Where values lose", "", *_versus(found), ""]
    for name, made in found.items():
        if made.get("sts"):
            lines += [f"## {TITLES[name]}: STS", "", *_sts_table(made), ""]
        if made.get("meta"):
            lines += [f"### With MetaEOL, {made['meta']['pairs']} pairs of STSb test, raw", "", *_meta_table(made), ""]
        if made.get("others"):
            lines += [f"### {TITLES[name]}: other tasks", "", *_other_table(made), ""]
    if tried := {name: made for name, made in found.items() if "dev" in made}:
        lines += ["## Layers", "", *_layers(tried, folder)]
    lines += ["## What it took", "", *_cost(found), ""]
    text = "\n".join(lines).rstrip() + "\n" + MORE
    (folder / "real.md").write_text(text, encoding="utf-8")


def wrapped(text: str) -> list[str]:
    """A paragraph as lines of at most 120 characters."""
    return textwrap.wrap(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _made(found: Mapping[str, Any]) -> Iterator[str]:
    yield "Made by `python benchmarks/real.py --models DIR --data DIR` with these options:"
    yield ""
    for name, made in found.items():
        dev, pairs = ("all" if made["size"][key] is None else f"{made['size'][key]:,}" for key in ("dev", "pairs"))
        drawn = (
            f"{dev} pairs of {DEV} and {pairs} of each other STS set (drawn with a fixed seed where not all); means "
            f"and directions of {made.get('fitted_on', 0):,} sentences; "
        )
        given = f"--decoders {name} --size {made['size']['name']}"
        given += f" --pairs {made['pairs']}" if made.get("pairs") else ""
        where = made["cpu"] if made["device"] == "cpu" else made["device"]
        versions = ", ".join(f"{package} {number}" for package, number in made["versions"].items())
        text = (
            f"- `{given}`: {TITLES[name]}, {made['num_layers']} layers, m = {made['width']}; "
            f"{drawn if 'dev' in made else ''}{made['dtype']} on {where}; {versions}"
        )
        first, *rest = wrapped(text)
        yield from (first, *(f"  {line}" for line in rest))


def _cell(figures: Iterable[float | None], best: Iterable[float | None] = ()) -> str:
    written = []
    for figure, top in zip(figures, [*best, *(None for _ in WAYS)], strict=False):
        text = "-" if figure is None else f"{figure:.1f}"
        written.append(f"**{text}**" if figure is not None and top is not None and figure >= top - 1e-9 else text)
    return " / ".join(written)


def _table(
    rows: Iterable[str],
    columns: Mapping[str, Callable[[str, str], float | None]],
    ways: Iterable[str],
    about: Mapping[str, Callable[[str], str]] | None = None,
) -> list[str]:
    """Rows that have any figure, behind what is said about them, with the best of each column and way in bold."""
    ways, labels, told = list(ways), list(rows), about or {}
    figures = {(column, row): [get(way, row) for way in ways] for column, get in columns.items() for row in labels}
    tops = {
        column: [
            max((cells[place] for row in labels if (cells := figures[column, row])[place] is not None), default=None)
            for place in range(len(ways))
        ]
        for column in columns
    }
    body = []
    for row in labels:
        if any(figure is not None for column in columns for figure in figures[column, row]):
            cells = [_cell(figures[column, row], tops[column]) for column in columns]
            body.append([row, *(say(row) for say in told.values()), *cells])
    return markdown.table(["row", *told, *columns], body, "l" * (1 + len(told)) + "r")


def _mean(made: Mapping[str, Any], sets: Iterable[str], way: str, row: str, part: str = "sts") -> float | None:
    scores = [made[part][name]["scores"].get(way, {}).get(row) for name in sets]
    return None if None in scores or not scores else fmean(scores)


def _headline(found: Mapping[str, Any]) -> list[str]:
    columns = {
        TITLES[name]: lambda way, row, made=made: _mean(made, HEADLINE, way, row, "headline")
        for name, made in found.items()
    }
    counts = [
        f"{TITLES[name]}, {', '.join(format(made['headline'][one]['pairs'], ',') for one in HEADLINE)}"
        for name, made in found.items()
    ]
    return [*_table(ROWS, columns, WAYS), "", *wrapped(f"Pairs of the three sets: {'; '.join(counts)}.")]


def _bars(found: Mapping[str, Any], folder: Path) -> str:
    """Draw the headline, raw; the file's name."""
    picture = "real.png"
    figure = plots.bars(
        {
            SHORT[name]: {
                label: score
                for row, label in BARS.items()
                if (score := _mean(made, HEADLINE, "raw", row, "headline")) is not None
            }
            for name, made in found.items()
        },
        title=f"Without training: mean over {', '.join(HEADLINE)}",
        ylabel="Spearman of cosine x100",
    )
    plots.save(figure, folder / picture)
    return picture


def _sts_table(made: Mapping[str, Any]) -> list[str]:
    columns: dict[str, Any] = {}
    for name, of_set in made["sts"].items():
        columns[name] = lambda way, row, of_set=of_set: of_set["scores"].get(way, {}).get(row)
    columns[f"mean of {len(made['sts'])}"] = lambda way, row: _mean(made, made["sts"], way, row)
    about: dict[str, Callable[[str], str]] = {
        "layers": lambda row: made["rows"][row]["layers"],
        "run": lambda row: f"{made['rows'][row]['run']:.0%}",
        "template": lambda row: made["rows"][row]["template"],
        f"{DEV}, raw": lambda row: _cell([made["dev"]["scores"]["raw"].get(row)]),
    }
    lines = _table(ROWS, columns, WAYS, about)
    return [*lines, "", "Run: the share of the decoder's layers that a model of this row alone would run."]


def _meta_table(made: Mapping[str, Any]) -> list[str]:
    meta = made["meta"]
    column = {f"Spearman, {meta['pairs']} pairs": lambda way, row: meta["scores"].get(way, {}).get(row)}
    return _table(ROWS, column, ["raw"])


def _other_table(made: Mapping[str, Any]) -> list[str]:
    columns = {
        f"{name} ({of_task['metric']})": lambda way, row, of_task=of_task: of_task["scores"].get(way, {}).get(row)
        for name, of_task in made["others"].items()
    }
    ways = [way for way in WAYS if any(way in of_task["scores"] for of_task in made["others"].values())]
    about = "; ".join(f"{name}: {of_task['about']}" for name, of_task in made["others"].items())
    lines = _table(ROWS, columns, ways)
    return [*lines, "", *wrapped(f"Each cell: {' / '.join(ways)}. {about}.")]


def _kind(row: str) -> str:
    """Whether a row reads values or hidden states."""
    return METHODS[ROWS[row]["method"]].signal


def _versus(found: Mapping[str, Any]) -> Iterator[str]:
    """The best row of values beside the best of hidden states, everywhere."""
    table: dict[str, dict[str, str]] = {}
    for name, made in found.items():
        places: dict[str, Callable[[str, str], float | None]] = {}
        if {*HEADLINE} <= {*made.get("headline", {})}:
            places["STS, the three sets"] = lambda way, row, made=made: _mean(made, HEADLINE, way, row, "headline")
        for task, of_task in made.get("others", {}).items():
            places[task] = lambda way, row, of_task=of_task: of_task["scores"].get(way, {}).get(row)
        for place, get in places.items():
            for way in WAYS:
                best: dict[str, tuple[float, str]] = {}
                for row in ROWS:
                    figure = get(way, row)
                    if figure is not None:
                        best[_kind(row)] = max(best.get(_kind(row), (-1.0, "")), (figure, row))
                if len(best) == 2:
                    (value, of_value), (hidden, of_hidden) = best["value"], best["hidden"]
                    cell = f"{value:.1f} ({of_value}) - {hidden:.1f} ({of_hidden}): **{value - hidden:+.1f}**"
                    table.setdefault(f"{place}, {way}", {})[name] = cell
    rows = [[place, *(cells.get(name, "-") for name in found)] for place, cells in table.items()]
    yield from wrapped(
        "The best row that reads values, the best that reads hidden states (a bag of embeddings and Echo among them), "
        "and the difference. The best of several rows is a little too good for both sides."
    )
    yield ""
    yield from markdown.table(["", *(TITLES[name] for name in found)], rows, "l")
    bag = next(iter(ROWS))
    for name, made in found.items():
        if made.get("sts"):
            figures = [[_mean(made, made["sts"], way, row) for way in WAYS] for row in (bag, "va")]
            if None not in figures[0] + figures[1]:
                yield ""
                yield (
                    f"{TITLES[name]}, all {len(made['sts'])} test sets: a bag of token embeddings has "
                    f"{_cell(figures[0])}, VA {_cell(figures[1])}."
                )


def _layers(found: Mapping[str, Any], folder: Path) -> Iterator[str]:
    yield from wrapped(
        f"Spearman x100, raw: {DEV} / {MORE_DEV}, on which a choice may rest, and the mean of the test sets, which is "
        "a report. Cost is the share of the decoder's layers that run. va and aligned_va have no template, wva and "
        "aligned_wva PromptEOL's."
    )
    yield ""
    methods = [method for method in next(iter(found.values()))["curves"] if METHODS[method].signal == "value"]
    for name, made in found.items():
        sets = made.get("sts", {})
        rows = []
        for title in RANGES:
            layers = made["ranges"][title]
            dev, more = (
                [made[key]["scores"]["raw"].get(f"{method}@{title}") for method in methods]
                for key in ("dev", "more dev")
            )
            cells = [_cell(pair) for pair in zip([*dev, *_average(dev)], [*more, *_average(more)], strict=True)]
            if sets:
                test = [_mean(made, sets, "raw", f"{method}@{title}") for method in methods]
                cells += [_cell([figure]) for figure in (*test, *_average(test))]
            rows.append([title, describe(layers), f"{(layers[-1] + 1) / made['num_layers']:.0%}", *cells])
        head = [*(f"{method}, dev" for method in methods), "mean, dev"]
        head += [*(f"{method}, test" for method in methods), "mean, test"] if sets else []
        yield f"### {TITLES[name]}"
        yield ""
        yield f"{made['dev']['pairs']:,} and {made['more dev']['pairs']:,} pairs."
        yield ""
        yield from markdown.table(["range", "layers", "cost", *head], rows, "llr")
        yield ""
        yield f"![{TITLES[name]}, score by layer]({_chart(name, made, folder)})"
        yield ""


def _chart(name: str, made: Mapping[str, Any], folder: Path) -> str:
    """Draw scores over layers; the file's name."""
    picture = f"real-layers-{name}.png"
    raw = made["dev"]["scores"]["raw"]
    figure = plots.curves(
        {m: [(layer, raw[f"{m}@{layer}"]) for layer in range(made["num_layers"])] for m in made["curves"]},
        title=f"{TITLES[name]}: {DEV}, {made['dev']['pairs']:,} pairs\n{IN_TEMPLATE}",
        xlabel="layer",
        ylabel="Spearman of cosine x100",
        span=("last third", made["ranges"]["last third"]),
        peaks="best layer of each",
    )
    plots.save(figure, folder / picture)
    return picture


def _average(figures: list[Any]) -> list[float | None]:
    if not figures:
        return []
    return [None if None in figures else fmean(figures)]


def _cost(found: Mapping[str, Any]) -> Iterator[str]:
    yield from wrapped(
        "A pass serves all rows of its template at once, and reads every range of layers besides. Tokens are those "
        f"fed, what a template puts in front of all texts counted once. Long texts are cut to {LONGEST} tokens. "
        "Seconds are those of parts that were run by one or two threads, some beside other work: they say what a run "
        "takes, and compare nothing."
    )
    yield ""
    rows = []
    for name, made in found.items():
        passes: dict[str, list[float]] = {}
        for of_set in (
            *made.get("headline", {}).values(),
            *made.get("sts", {}).values(),
            *([made["meta"]] if made.get("meta") else []),
        ):
            for group, spent in of_set["passes"].items():
                total = passes.setdefault(group, [0.0, 0.0, 0.0])
                for place, key in enumerate(("texts", "tokens", "seconds")):
                    total[place] += spent[key]
        for group, (texts, tokens, seconds) in passes.items():
            rate = texts / seconds if seconds else 0.0
            rows.append(
                [
                    TITLES[name],
                    group,
                    f"{texts:,.0f}",
                    f"{tokens / max(texts, 1):.1f}",
                    f"{seconds:,.0f}",
                    f"{rate:.1f}",
                ]
            )
    yield from markdown.table(
        ["decoder", "template", "texts", "tokens a text", "seconds", "texts a second"], rows, "llr"
    )
