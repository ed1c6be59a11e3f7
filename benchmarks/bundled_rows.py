"""The rows and the sets of bundled.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from valuembed.recipes import Recipe, resolve_recipe

SETS = {
    "STSb dev": "sts:STSBenchmark.en.dev.jsonl",
    "STSb test": "sts:STSBenchmark.en.test.jsonl",
    "STS12": "sts:STS12.jsonl",
    "STS13": "sts:STS13.jsonl",
    "STS14": "sts:STS14.jsonl",
}
"""Names of the files of a set, by its own."""

SHORT = ("STSb dev", "STSb test")
"""Sets that MetaEOL, with eight passes a text, is measured on."""

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
"""Method, template and layers by label; None is the method's own layers."""


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
