"""The page of a GPU benchmark, made of the gpu.json of one or several runs."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from valuembed._utils.text import counted

RATIOS = {
    "VA, packed": "sentence-transformers mean pooling",
    "VA, packed, compiled": "sentence-transformers mean pooling",
    "AlignedWVA, packed": "PromptEOL",
    "AlignedWVA, packed, compiled": "PromptEOL",
}
"""Ours, and what the names of the peers begin with: the fastest of them is who is compared with."""

NAMES = {"va": "VA", "aligned_wva": "AlignedWVA"}


def report(results: Sequence[dict[str, Any]]) -> str:
    """The page; parts of a later run stand in for those of an earlier one."""
    parts: dict[str, dict[str, Any]] = {}
    for result in results:
        parts |= {name: part for name, part in result["parts"].items() if part["ended"] != "not run"}
    lines = [
        "# On a GPU",
        "",
        *wrap(
            "Made by `python benchmarks/gpu.py`, and this page of its results by `--report`. Models of random weights "
            "in the named shapes; a part whose time is up keeps what it has found."
        ),
        "",
    ]
    if results[-1]["tiny"]:
        lines += ["**Tried out on tiny models: no figure here means anything.**", ""]
    machines = [told for name in parts for told in found(parts, name, "device")]
    for told in machines[:1]:
        lines += wrap(
            f"{told['device']}, {told['memory'] / 2**30:.0f} GiB; torch {told['torch']}, transformers "
            f"{told['transformers']}, sentence-transformers {told['sentence_transformers']}, Python "
            f"{results[-1]['python']}, {results[-1]['cores']} CPU cores. Weights and sums of matrices in bfloat16; a "
            f"product of 8192 x 8192 matrices runs at {told['product'] / 1e12:,.0f} TFLOP/s."
        )
        lines.append("")
    lines += tests(parts)
    for name in parts:
        if name.startswith("speed"):
            lines += correctness(parts, name) + speed(parts, name) + singles(parts, name)
    for name in parts:
        if name.startswith("profile"):
            lines += profiles(parts, name)
    if rows := parts.get("fine-tuning", {}).get("rows"):
        lines += tuning(rows)
    lines += ["## How the parts ended", "", "| part | ended | seconds |", "|:--|:--|--:|"]
    lines += [f"| {name} | {part['ended']} | {part.get('seconds', '')} |" for name, part in parts.items()]
    for name, part in parts.items():
        for told in part.get("found", []):
            if told.get("failed"):
                lines += ["", *wrap(f"{name}: {told['failed']} {told.get('length', '')}: {told['why']}")]
            for warning in told.get("warnings", []):
                lines += ["", *wrap(f"{name}, warned: {warning}")]
    return "\n".join(lines) + "\n"


def wrap(prose: str) -> list[str]:
    return textwrap.wrap(prose, 120)


def found(parts: dict[str, Any], part: str, key: str) -> Iterator[dict[str, Any]]:
    """What a part told under a key."""
    return (told for told in parts.get(part, {}).get("found", []) if key in told)


def three(values: Sequence[float], form: str = ",.2f") -> str:
    """Median, lowest, highest; of one value, that."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def tests(parts: dict[str, Any]) -> list[str]:
    if "tests" not in parts:
        return []
    said = parts["tests"].get("said", "")
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?|xfailed)", said[-300:])
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    lines = ["## Tests of the packed layout and of fused norms", "", f"{', '.join(counts) or 'No result'}."]
    return [*lines, *(f"- {line[:200]}" for line in failed), ""]


def correctness(parts: dict[str, Any], name: str) -> list[str]:
    told = list(found(parts, name, "correctness"))
    if not told:
        return []
    lines = [
        f"## Correctness, {name.removeprefix('speed ')}",
        "",
        *wrap(
            f"{told[0]['texts']} sentences and paragraphs. Stock is transformers' own decoder, a text at a time, with "
            "the formulas spelled out, in the same precision and with the same weights in float32. Errors are "
            "distances of vectors of length 1."
        ),
        "",
        "| | compared | least cosine | median error | largest error |",
        "|:--|:--|--:|--:|--:|",
    ]
    for one in told:
        for pair, how in one["pairs"].items():
            lines.append(
                f"| {one['correctness']} | {pair} | {how['least_cosine']:.5f} | {how['median_error']:.4f} | "
                f"{how['largest_error']:.4f} |"
            )
    if not all(one["packs"] for one in told):
        lines += ["", "**Texts were padded: the packed layout was not taken.**"]
    return [*lines, ""]


def speed(parts: dict[str, Any], name: str) -> list[str]:
    lines = []
    for length in ("sentences", "paragraphs"):
        turns: dict[str, list[dict[str, Any]]] = {}
        for told in found(parts, name, "turn"):
            if told["length"] == length:
                turns.setdefault(told["turn"], []).append(told)
        if not turns:
            continue
        any_turn = next(iter(turns.values()))[0]
        rates = {who: {one["round"]: one["texts"] / one["seconds"] for one in those} for who, those in turns.items()}
        lines += [
            f"## Throughput, {name.removeprefix('speed ')}, {length}",
            "",
            *wrap(
                f"{any_turn['texts']:,} texts, {any_turn['tokens'] / any_turn['texts']:.0f} tokens each; everyone in "
                f"turns, median (lowest-highest) of {counted(max(map(len, turns.values())), 'round')} after one to "
                "warm up; peers that another of their kind outran in the first round have that one alone. FLOPs are "
                "those of the matrices that the method needs, for real tokens; the share is that of the square product "
                "in the same round. Memory is beside the weights."
            ),
            "",
            "| | texts/s | tokens/s | padded / real tokens | TFLOP/s | share of the product | peak MB |",
            "|:--|--:|--:|--:|--:|--:|--:|",
        ]
        for who, those in turns.items():
            pace = [one["flops"] / one["seconds"] for one in those]
            tokens = statistics.median(one["tokens"] / one["seconds"] for one in those)
            share = [rate / one["limit"] for rate, one in zip(pace, those, strict=True)]
            lines.append(
                f"| {who} | {three(list(rates[who].values()), ',.0f')} | {tokens:,.0f} | "
                f"{those[0]['padded'] / those[0]['tokens']:.2f} | {statistics.median(pace) / 1e12:,.1f} | "
                f"{three(share)} | {max(one['memory'] for one in those) / 2**20:,.0f} |"
            )
        ratios = []
        for ours, beginning in RATIOS.items():
            peers = {who: statistics.median(of.values()) for who, of in rates.items() if who.startswith(beginning)}
            if ours not in rates or not peers:
                continue
            best = max(peers, key=peers.__getitem__)
            shared = sorted(rates[ours].keys() & rates[best].keys())
            if shared:
                times = [rates[ours][number] / rates[best][number] for number in shared]
                ratios.append(f"| {ours} | {best} | {three(times)} |")
        if ratios:
            lines += ["", "| ours | against | times as fast |", "|:--|:--|--:|", *ratios]
        lines.append("")
    return lines


def singles(parts: dict[str, Any], name: str) -> list[str]:
    told = list(found(parts, name, "single"))
    if not told:
        return []
    lines = [f"## A single text, {name.removeprefix('speed ')}", "", "| | milliseconds |", "|:--|--:|"]
    return [*lines, *(f"| {one['single']} | {1000 * one['seconds']:.1f} |" for one in told), ""]


def profiles(parts: dict[str, Any], name: str) -> list[str]:
    lines = []
    for told in found(parts, name, "profile"):
        busy = told["busy"] / max(told["seconds"], 1e-9)
        lines += [
            f"## Where the time goes, {name.removeprefix('profile ')}, {NAMES[told['profile']]}, {told['length']}",
            "",
            *wrap(
                f"{told['texts']:,} texts in {told['seconds']:.2f} s. Kernels take {told['busy']:.2f} s of it "
                f"({busy:.0%}), in {told['kernels']:,} launches; in the profiled call there were "
                f"{told['span'] - told['busy']:.2f} s between kernels. Tokenizing alone takes "
                f"{told['tokenizing']:.2f} s."
            ),
            "",
            "| kernel | launches | ms | share |",
            "|:--|--:|--:|--:|",
        ]
        total = sum(time for _, _, time in told["top"]) or 1
        for kernel, count, time in told["top"][:12]:
            shown = kernel.replace("|", "/")
            lines.append(f"| `{shown}` | {count:,} | {time / 1e3:,.1f} | {time / total:.0%} |")
        lines.append("")
        for python in found(parts, name, "python"):
            if (python["python"], python["length"]) == (told["profile"], told["length"]):
                lines += ["| Python, most time of its own | calls | ms |", "|:--|--:|--:|"]
                lines += [f"| `{where}` | {calls:,} | {1e3 * own:,.1f} |" for where, calls, own in python["top"][:8]]
                lines.append("")
    return lines


def tuning(rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    names = list(next(iter(rows.values()))[0]["scores"])
    lines = [
        "## Fine-tuning",
        "",
        *wrap("Mean of the seeds (lowest-highest), Spearman x 100. The label ends with the epochs; see finetune.md."),
        "",
        f"| | seeds | minutes | peak MB on the device | {' | '.join(names)} |",
        f"|:--|{'--:|' * (3 + len(names))}",
    ]
    for label, made in rows.items():
        cells = [str(len(made)), f"{statistics.fmean(one['seconds'] for one in made) / 60:.2f}"]
        cells.append(f"{max(one['device_peak'] or 0 for one in made):,.0f}")
        for name in names:
            values = [one["scores"][name] for one in made]
            spread = f" ({min(values):.2f}-{max(values):.2f})" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]
