"""Published relatives of the paper's methods, which need no training either, on real decoders.

    python benchmarks/relatives.py --models DIR --data DIR [--decoders smollm2 gemma3 qwen2.5] [--pairs N] [--work DIR]
        [--page]

Each follows its paper's description with stock transformers and hooks of this script, text by text, in float32:

- Token Prepending (Fu et al., ACL 2025, arXiv 2412.11556): a token in front of the text, which in the first layers is
  given what the last token has become in the layer before.
- Contrastive Prompting (Cheng et al., ACL 2025, arXiv 2505.12831): in one layer the last token's mixed values lose
  those that a prompt for what is irrelevant gives, and keep their length.
- KV re-routing (Tang and Yang, arXiv 2601.01046): in some layers the last token's key and value stand in front of all
  tokens; mean and last token of the hidden states, each of length 1, are added.
- Weighted mean by position (SGPT, arXiv 2202.08904), and a mean without the first token, of hidden states and values.

Which layers are changed, and which layer's last token is read, is chosen on --pairs of STSb dev for each decoder; as
many of three test sets are the report. Results are kept in --work; --page only writes relatives.md of what lies there.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real import DECODERS, cpu_name
from real_data import DEV, HEADLINE, sts
from real_page import TITLES, wrapped
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers import AutoModel, AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import valuembed
from valuembed.evaluation import scoring_versions, spearman
from valuembed.recipes import TEMPLATES
from valuembed.reporting import markdown

HERE = Path(__file__).parent
EOL = str(TEMPLATES["prompt_eol"])
IRRELEVANT = 'The irrelevant information of this sentence : "{text}" means in one word:"'
COMPRESS = 'Context: "{text}". Compress the context in one word:"'
REROUTED = "rerouted"
Vectors = dict[str, list[Tensor]]


class Stock:
    """A decoder as transformers loads it, with what the hooks of this script change."""

    def __init__(self, folder: Path) -> None:
        self.words = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.layers = list(self.model.layers)
        self.rerouted: frozenset[int] = frozenset()

    def states(self, ids: Tensor) -> list[Tensor]:
        """``[t, m]`` after each layer, the last one after the final norm."""
        with torch.inference_mode():
            return [
                states[0] for states in self.model(ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
            ]

    def ids(self, template: str, text: str) -> Tensor:
        return self.words(template.replace("{text}", text), return_tensors="pt")["input_ids"]

    @contextmanager
    def hooked(self, modules: Sequence[Any], hook: Callable[..., Any], *, before: bool = False) -> Iterator[None]:
        handles = [
            (module.register_forward_pre_hook if before else module.register_forward_hook)(hook) for module in modules
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def by_last_token(states: Sequence[Tensor], prefix: str) -> dict[str, Tensor]:
    """The last token of the upper half of the layers, by name."""
    depth = len(states)
    return {f"{prefix}, layer {at}": states[at][-1] for at in range(depth // 2, depth)}


def prompt_eol(stock: Stock, text: str) -> dict[str, Tensor]:
    return by_last_token(stock.states(stock.ids(EOL, text)), "as it is")


def token_prepending(stock: Stock, text: str) -> dict[str, Tensor]:
    # The placeholder is a token of the tokenizer's own that no text holds.
    begin, end = (stock.words(part, add_special_tokens=False)["input_ids"] for part in EOL.split("{text}"))
    own = stock.words(text, add_special_tokens=False)["input_ids"]
    bos = stock.words("")["input_ids"][:1]
    ids = torch.tensor([[*bos, *begin, stock.words.eos_token_id, *own, *end]])
    place = len(bos) + len(begin)

    def prepend(module: Any, given: Any, made: Any) -> Any:
        states = made[0] if isinstance(made, tuple) else made
        states[:, place] = states[:, -1]
        return made

    found = {}
    for share in (4, 2):
        changed = len(stock.layers) // share
        with stock.hooked(stock.layers[:changed], prepend):
            found |= by_last_token(stock.states(ids), f"first {changed} layers")
    return found


def contrastive_prompting(stock: Stock, text: str) -> dict[str, Tensor]:
    mixed: dict[int, Tensor] = {}
    outputs = [layer.self_attn.o_proj for layer in stock.layers]

    def keep(module: Any, given: Any) -> None:
        mixed[id(module)] = given[0][0, -1]

    with stock.hooked(outputs, keep, before=True):
        stock.states(stock.ids(IRRELEVANT, text))
    found = {}
    depth = len(outputs)
    for at in sorted({depth // 6, depth // 4, depth // 3, depth // 2}):

        def steer(module: Any, given: Any) -> Any:
            values = given[0].clone()
            difference = values[0, -1] - mixed[id(module)]
            values[0, -1] = difference * (values[0, -1].norm() / difference.norm())
            return (values, *given[1:])

        with stock.hooked([outputs[at]], steer, before=True):
            found |= by_last_token(stock.states(stock.ids(EOL, text)), f"layer {at} steered")
    return found


def kv_rerouting(stock: Stock, text: str) -> dict[str, Tensor]:
    depth = len(stock.layers)
    thirds = {
        "lower": range(depth // 3),
        "middle": range(depth // 3, 2 * depth // 3),
        "upper": range(2 * depth // 3, depth),
    }
    found = {}
    before = stock.model.config._attn_implementation
    stock.model.config._attn_implementation_internal = REROUTED
    try:
        for name, layers in {"no": (), **thirds, "all": range(depth)}.items():
            stock.rerouted = frozenset(layers)
            REROUTING.append(stock)
            try:
                states = stock.states(stock.ids(COMPRESS, text))
            finally:
                REROUTING.pop()
            for at in (depth - 1, 2 * depth // 3):
                both = normalize(states[at].mean(dim=0), dim=0) + normalize(states[at][-1], dim=0)
                found[f"{name} layers rerouted, layer {at}"] = both
    finally:
        stock.model.config._attn_implementation_internal = before
    return found


REROUTING: list[Stock] = []


def rerouted_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Causal attention in which every token also sees the last one's key and value, in some layers."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    t = query.shape[2]
    seen = torch.ones(t, t, dtype=torch.bool).tril()
    if module.layer_idx in REROUTING[-1].rerouted:
        key, value = (torch.cat([states[:, :, -1:], states], dim=2) for states in (key, value))
        seen = torch.cat([torch.ones(t, 1, dtype=torch.bool), seen], dim=1)
    made = scaled_dot_product_attention(query, key, value, seen, scale=options.get("scaling"))
    return made.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(REROUTED, rerouted_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(REROUTED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])

PATCHED: dict[str, tuple[Callable[[Stock, str], dict[str, Tensor]], str]] = {
    "PromptEOL, hidden state": (prompt_eol, "arXiv 2307.16645"),
    "Token Prepending": (token_prepending, "arXiv 2412.11556"),
    "Contrastive Prompting": (contrastive_prompting, "arXiv 2505.12831"),
    "KV re-routing": (kv_rerouting, "arXiv 2601.01046"),
}
"""Rows with choices of layers: how a text is read, and the source."""

LIBRARY = ("aligned_wva", "joined")


def pooled(tokens: Tensor) -> dict[str, Tensor]:
    """Ways to average tokens ``[t, width]``."""
    places = torch.arange(1, len(tokens) + 1, dtype=torch.float32)
    return {
        "mean": tokens.mean(dim=0),
        "weighted by position": (places / places.sum()) @ tokens,
        "without the first token": tokens[1:].mean(dim=0) if len(tokens) > 1 else tokens[0],
    }


def run(args: argparse.Namespace, name: str) -> None:
    """Read, choose on dev, score and keep everything of one decoder."""
    sets = {label: sts(args.data, label, args.pairs, args.work / name) for label in (DEV, *HEADLINE)}
    texts = list(dict.fromkeys(text for pairs in sets.values() for text in (*pairs.sentences1, *pairs.sentences2)))
    rows: dict[str, dict[str, np.ndarray]] = {}
    stock = Stock(args.models / name)
    for label, (read, _) in PATCHED.items():
        found = [read(stock, text) for text in texts]
        rows[label] = {choice: torch.stack([one[choice] for one in found]).numpy() for choice in found[0]}
        print(f"{name}: {label} read", flush=True)
    del stock
    # What the prompt and the pooling give by themselves is a row of its own.
    changed = rows["KV re-routing"]
    rows["KV re-routing's prompt and pooling alone"] = {
        choice: changed.pop(choice) for choice in list(changed) if choice.startswith("no layers")
    }
    for method, what in (("hidden_mean", "hidden states"), ("va", "values")):
        model = valuembed.load(args.models / name, method, layers="third" if method == "va" else None, dtype="float32")
        averaged = [pooled(tokens) for tokens in model.encode(texts, output_value="token_embeddings")]
        for way in averaged[0]:
            rows[f"{what}, {way}"] = {"": torch.stack([one[way] for one in averaged]).numpy()}
    echo = valuembed.load(args.models / name, "va", layers="third", template="echo", dtype="float32")
    rows["values, second copy of Echo"] = {"": echo.encode(texts)}
    for method in LIBRARY:
        layers = "third" if method == "aligned_wva" else None
        rows[method] = {"": valuembed.load(args.models / name, method, layers=layers, dtype="float32").encode(texts)}
    at = {text: row for row, text in enumerate(texts)}

    def score(vectors: np.ndarray, label: str) -> float:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        one, other = (unit[[at[text] for text in side]] for side in (sets[label].sentences1, sets[label].sentences2))
        return 100 * float(spearman((one * other).sum(axis=1)[None], np.array(sets[label].scores))[0])

    kept = {}
    for label, choices in rows.items():
        dev = {choice: score(vectors, DEV) for choice, vectors in choices.items()}
        best = max(dev, key=dev.__getitem__)
        kept[label] = {
            "choice": best, "choices": len(dev), "dev": dev[best],
            "test": {name: score(choices[best], name) for name in HEADLINE},
        }  # fmt: skip
    about = {"pairs": args.pairs, "cpu": cpu_name(), "versions": scoring_versions(), "rows": kept}
    (args.work / name / "scores.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def page(work: Path) -> str:
    """The page of the decoders that there are results of."""
    lines = ["# Published relatives", ""]
    made = {name: json.loads((work / name / "scores.json").read_text()) for name in DECODERS
            if (work / name / "scores.json").exists()}  # fmt: skip
    first = next(iter(made.values()))
    versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
    lines += wrapped(
        "Made by `python benchmarks/relatives.py --models DIR --data DIR --decoders NAME --pairs N` on "
        f"{first['cpu']}; {versions}. Methods without training that others have published, read from the same decoders "
        "by hooks that follow their descriptions (the script says how); what a paper leaves open is chosen on N pairs "
        f"of {DEV}, labels and all, which is more than the methods of this library are given. Figures are 100 times "
        "Spearman's correlation, raw, on N pairs of each test set: differences of a few points are chance. These are "
        "small decoders; their authors used ones of 7 billion parameters."
    )
    for name, found in made.items():
        lines += ["", f"## {TITLES[name]}", "", f"`--decoders {name} --pairs {found['pairs']}`", ""]
        rows = []
        for label, row in found["rows"].items():
            source = PATCHED[label][1] if label in PATCHED else "SGPT, arXiv 2202.08904" if "position" in label else "-"
            figures = [row["dev"], *row["test"].values(), float(np.mean(list(row["test"].values())))]
            rows.append([label, source, row["choice"] or "-", *(f"{figure:.1f}" for figure in figures)])
        lines += markdown.table(
            ["row", "source", f"chosen on {DEV}", DEV, *HEADLINE, "mean of 3"], rows, "lll" + "r" * 5
        )
    return "\n".join(lines).rstrip() + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the decoders' folders")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--decoders", nargs="+", default=DECODERS)
    parser.add_argument("--pairs", type=int, default=100, help="of each set")
    parser.add_argument("--work", type=Path, default=Path("relatives-results"), help="folder for results that are kept")
    parser.add_argument("--page", action="store_true", help="only write the page of what lies in --work")
    args = parser.parse_args(given)
    for name in () if args.page else args.decoders:
        (args.work / name).mkdir(parents=True, exist_ok=True)
        if not (args.work / name / "scores.json").exists():
            run(args, name)
    (HERE / "relatives.md").write_text(page(args.work), encoding="utf-8")


if __name__ == "__main__":
    main()
