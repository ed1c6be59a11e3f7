"""Readouts beyond the paper's: joined, centred, whitened; layers that no label chooses; what each costs in tokens.

    python benchmarks/beyond.py --models DIR --data DIR [--decoders smollm2 gemma3 qwen2.5] [--pairs N] [--work DIR]
        [--questions N] [--documents N] [--texts N] [--embedder DIR] [--dtype float32] [--page]

DIR of --models holds a folder for each decoder, DIR of --data the evaluation sets as JSON Lines; of each set --pairs
pairs are drawn with a fixed seed. Vectors are kept in --work: what lies there is not computed again, and --page only
writes the page of it. Written beside this script: beyond.md and beyond.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beyond_layers import criteria, halves, without_words
from beyond_page import write_page
from beyond_search import FURTHER, ONE_SIDED, TWO_SIDED, collections, search
from beyond_tasks import score_tasks, tasks
from numpy.typing import NDArray
from real import DECODERS, cpu_name
from real_data import DEV, MORE_DEV, sts
from sentence_transformers import SentenceTransformer

from valuembed.backbone import resolve_plan
from valuembed.evaluation import scoring_versions, spearman
from valuembed.models import MultiReadout, fit, general_sentences
from valuembed.recipes import METHODS, Recipe, resolve_recipe

HERE = Path(__file__).parent
TEST = ("STSb test", "STS13", "STS14")
SETS = (DEV, MORE_DEV, *TEST)
GENERAL = "general sentences"
Vectors = dict[str, NDArray[np.float32]]

PARTS: dict[str, Recipe] = {
    "hidden_mean": METHODS["hidden_mean"],
    "va": resolve_recipe("va", "third"),
    "prompt_eol": METHODS["prompt_eol"],
    "wva": resolve_recipe("wva", "third"),
    "aligned_wva": resolve_recipe("aligned_wva", "third"),
    "echo": METHODS["echo"],
    "va, echo": resolve_recipe("va", "third", "echo"),
    "va, echo, last": resolve_recipe("va", "last", "echo"),
    "va, echo, last-2": resolve_recipe("va", "last-2", "echo"),
}
"""What is read, by label; layers by name, so that no preset changes them."""

JOINED = {
    "aligned_wva + va": {"aligned_wva": 1.0, "va": 1.0},
    "aligned_wva + prompt_eol": {"aligned_wva": 1.0, "prompt_eol": 1.0},
    "aligned_wva + va, echo": {"aligned_wva": 1.0, "va, echo": 1.0},
    "aligned_wva + va, echo, last": {"aligned_wva": 1.0, "va, echo, last": 1.0},
    "joined": {"aligned_wva": 1.0, "va, echo, last": 0.5, "va, echo, last-2": 0.5},
}
"""Parts and weights of joined readouts; the last is the method of that name."""

WAYS = ("raw", "general", "own", "whitened")
"""What each part goes through before it is joined: nothing; without the mean of the general sentences; without that of
the set's own texts; whitened by the general sentences."""

SHRINKAGE = 0.5
WHITENED = ("hidden_mean", "va", "prompt_eol", "wva", "aligned_wva", "va, echo")
SHRINKAGES = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the decoders' folders")
    parser.add_argument("--data", type=Path, required=True, help="folder of the evaluation sets")
    parser.add_argument("--decoders", nargs="+", default=DECODERS)
    parser.add_argument("--pairs", type=int, default=300, help="of each set")
    parser.add_argument(
        "--questions", type=int, default=30, help="of each split of TREC-QA, half as many of Cranfield; 0 for none"
    )
    parser.add_argument("--documents", type=int, default=120, help="of Cranfield, or as many as its questions need")
    parser.add_argument("--texts", type=int, default=100, help="to cluster, and to classify; 0 for none")
    parser.add_argument("--embedder", type=Path, help="folder of a trained embedding model to set beside")
    parser.add_argument("--work", type=Path, default=Path("beyond-results"), help="folder for results that are kept")
    parser.add_argument("--dtype", default="float32", help="precision of the decoders")
    parser.add_argument("--page", action="store_true", help="only write the page of what lies in --work")
    args = parser.parse_args(given)
    try:
        if not args.page:
            for name in args.decoders:
                run(args, name)
    finally:
        write_page(HERE, args.work, [name for name in DECODERS if (args.work / name / "scores.json").exists()])


def run(args: argparse.Namespace, name: str) -> None:
    """Read, score and write down everything of one decoder."""
    work = args.work / name
    work.mkdir(parents=True, exist_ok=True)
    readouts = MultiReadout.load(args.models / name, PARTS, dtype=args.dtype)
    spec = readouts.reader.plan.decoder_spec
    upper = [layer for layer in spec.value_layers if 2 * layer >= spec.num_layers]
    single = {f"va, echo@{layer}": resolve_recipe("va", [layer], "echo") for layer in upper}
    readouts = MultiReadout.load(args.models / name, {**PARTS, **single}, dtype=args.dtype)
    layers = chosen(readouts, single)
    sets = {label: sts(args.data, label, args.pairs, work) for label in SETS}
    read = {GENERAL: read_texts(readouts, list(general_sentences()), work / "general.npz")}
    sides = {}
    for label, pairs in sets.items():
        texts = list(dict.fromkeys([*pairs.sentences1, *pairs.sentences2]))
        read[label] = read_texts(readouts, texts, work / f"{label.replace(' ', '_')}-{len(pairs.scores)}.npz")
        at = {text: row for row, text in enumerate(texts)}
        sides[label] = [[at[text] for text in side] for side in (pairs.sentences1, pairs.sentences2)]
        print(f"{name}: {label} read", flush=True)
    scored = {label: np.array(sets[label].scores) for label in SETS}

    def scores(vectors: Callable[[str], NDArray[np.float32]]) -> dict[str, float]:
        found = {}
        for label, (one, two) in sides.items():
            of_set = vectors(label)
            cosines = (of_set[one] * of_set[two]).sum(axis=1, dtype=np.float64)
            found[label] = 100 * float(spearman(cosines[None], scored[label])[0])
        return found

    rows = {part: {part: 1.0} for part in PARTS} | JOINED
    made: dict[str, Any] = {
        "pairs": {label: len(found) for label, found in scored.items()},
        "general": len(general_sentences()),
        "layers": {part: readouts.recipes[part].describe().layers for part in PARTS},
        "tokens": tokens(readouts, sets[DEV].sentences1),
        "scores": {
            row: {way: scores(lambda label, p=parts, w=way: joined(read, label, p, w)) for way in WAYS}
            for row, parts in rows.items()
        },
        "parts": rows,
        "given": f"--pairs {args.pairs} --questions {args.questions} --documents {args.documents} --texts {args.texts}",
        "dtype": args.dtype,
        "cpu": cpu_name(),
        "versions": scoring_versions(),
    }
    general = list(general_sentences())
    altered = dict(zip(("dropped", "first", "second"), (without_words(general), *halves(general)), strict=True))
    alone = {side: read_texts(layers, texts, work / f"general-{side}.npz") for side, texts in altered.items()}
    made["criteria"] = criteria(
        {layer: read[GENERAL][f"va, echo@{layer}"] for layer in upper},
        read[GENERAL]["aligned_wva"],
        *({layer: alone[side][f"va, echo@{layer}"] for layer in upper} for side in altered),
    )
    made["shrinkage"] = shrinkages(read, scores)
    made["by layer"] = {
        layer: {
            "alone": scores(lambda label, part=f"va, echo@{layer}": joined(read, label, {part: 1.0}, "raw")),
            "joined": scores(
                lambda label, part=f"va, echo@{layer}": joined(read, label, {"aligned_wva": 1.0, part: 1.0}, "raw")
            ),
        }
        for layer in upper
    }
    (work / "scores.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    if args.questions:
        made["search"] = searched(args, readouts, work, rows)
    if args.texts:
        made["tasks"] = sorted_texts(args, readouts, work, read, rows)
    (work / "scores.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


def shrinkages(
    read: Mapping[str, Vectors], scores: Callable[[Callable[[str], NDArray[np.float32]]], dict[str, float]]
) -> dict[str, Any]:
    """What whitening gives by its shrinkage, of single readouts: by the general sentences, and by a set's own texts."""
    made: dict[str, Any] = {}
    for part in WHITENED:
        found = {label: of_label[part] for label, of_label in read.items()}
        principal = {label: moments(vectors) for label, vectors in found.items()}
        made[part] = {
            name: {str(shrinkage): scores(whitened(found, principal, base, shrinkage)) for shrinkage in SHRINKAGES}
            for name, base in (("general", GENERAL), ("own", None))
        }
    return made


def whitened(
    found: Vectors, principal: Mapping[str, Any], base: str | None, shrinkage: float
) -> Callable[[str], NDArray[np.float32]]:
    """What gives a set's vectors, whitened by the moments of one set, or each set by its own."""

    def of_set(label: str) -> NDArray[np.float32]:
        mean, variances, directions = principal[base or label]
        shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
        return unit((found[label] - mean) @ (directions / np.sqrt(shrunk)).astype(np.float32))

    return of_set


def moments(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """The mean of vectors, the variances of their principal directions, and these."""
    mean = vectors.mean(axis=0)
    centred = (vectors - mean).astype(np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    return mean, variances.clip(min=0), directions


def chosen(readouts: MultiReadout, recipes: Mapping[str, Recipe]) -> MultiReadout:
    """Some of the readouts of a decoder, or others of as few layers, on the same weights."""
    spec = readouts.reader.plan.decoder_spec
    plans = {name: resolve_plan(recipe, None, spec) for name, recipe in recipes.items()}
    return MultiReadout(readouts.reader, plans)


def searched(
    args: argparse.Namespace, readouts: MultiReadout, work: Path, rows: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """How well questions find passages: the rows on both sides alike, and those that read either side differently."""
    further = {
        side: chosen(readouts, {name: recipe for name, recipe in FURTHER.items() if ONE_SIDED.get(name, side) == side})
        for side in ("questions", "passages")
    }
    found: dict[str, Any] = {}
    for label, collection in collections(args.data, args.questions, args.documents).items():
        start = f"{label.replace(' ', '_')}-{len(collection.questions)}"
        texts = {"questions": collection.questions, "passages": collection.passages}
        read: dict[str, Vectors] = {}
        for side, of_side in texts.items():
            kept = work / f"{start}-{'answers' if side == 'passages' else side}.npz"
            own = read_texts(readouts, of_side, kept)
            read[side] = {**own, **read_texts(further[side], of_side, work / f"{start}-{side}-further.npz")}
        both = {row: (parts, parts) for row, parts in rows.items()} | TWO_SIDED
        vectors = {
            row: (joined(read, "questions", one, "raw"), joined(read, "passages", two, "raw"))
            for row, (one, two) in both.items()
        }
        if args.embedder:
            vectors["trained"] = (trained(args.embedder, texts["questions"]), trained(args.embedder, texts["passages"]))
        found[label] = search(collection, vectors)
        print(f"{readouts.reader.origin.name}: {label} searched", flush=True)
    return found


def sorted_texts(
    args: argparse.Namespace,
    readouts: MultiReadout,
    work: Path,
    read: dict[str, Vectors],
    rows: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """How well texts are clustered and classified by each row."""
    sets = tasks(args.data, args.texts)
    further = chosen(readouts, {"aligned_va": FURTHER["aligned_va"]})
    for name, of_set in sets.items():
        for group in (readouts, further):
            kept = work / f"{name}-{len(of_set.texts)}-{len(group.recipes)}.npz"
            read[name] = {**read.get(name, {}), **read_texts(group, of_set.texts, kept)}
    general = read_texts(further, list(general_sentences()), work / "general-further.npz")
    read[GENERAL] = {**read[GENERAL], **general}
    all_rows = {**rows, "aligned_va": {"aligned_va": 1.0}}
    made: dict[str, dict[str, Callable[[str], NDArray[np.float32]]]] = {
        row: {way: lambda label, p=parts, w=way: joined(read, label, p, w) for way in WAYS}
        for row, parts in all_rows.items()
    }
    if args.embedder:
        made["trained"] = {"raw": lambda label: trained(args.embedder, sets[label].texts)}
    return score_tasks(sets, made)


def trained(folder: Path, texts: list[str]) -> NDArray[np.float32]:
    """The vectors of a trained embedding model, of length 1."""
    return unit(SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False))


def read_texts(readouts: MultiReadout, texts: list[str], kept: Path) -> Vectors:
    """The vectors of texts by part, of length 1, from the file where they lie or computed."""
    about = json.dumps([texts, {name: recipe.choices() for name, recipe in readouts.recipes.items()}], sort_keys=True)
    if kept.exists() and str((found := np.load(kept))["about"]) == about:
        return {name: found[name] for name in readouts.recipes}
    vectors = {name: unit(of_part) for name, of_part in readouts.encode(texts).items()}
    np.savez(kept, about=about, **vectors)  # type: ignore[arg-type]
    return vectors


def joined(read: Mapping[str, Vectors], label: str, parts: Mapping[str, float], way: str) -> NDArray[np.float32]:
    """Parts of one set's texts in one of the ways, each of length 1, joined by their weights, of length 1."""
    found = []
    for part, weight in parts.items():
        vectors = read[label][part]
        if way == "general":
            vectors = vectors - read[GENERAL][part].mean(axis=0)
        elif way == "own":
            vectors = vectors - vectors.mean(axis=0)
        elif way == "whitened":
            general = read[GENERAL][part]
            vectors = (vectors - general.mean(axis=0)) @ whitening(general)
        found.append(weight**0.5 * unit(vectors))
    return unit(np.concatenate(found, axis=1))


def whitening(general: NDArray[np.float32]) -> NDArray[np.float32]:
    """The matrix that the library's whitening finds on the general sentences."""
    return fit("whiten", torch.from_numpy(general), shrinkage=SHRINKAGE).matrix.float().numpy()


def tokens(readouts: MultiReadout, texts: Sequence[str]) -> dict[str, float]:
    """Mean tokens of a text by template, and for MetaEOL, which is not read here."""
    reader = readouts.reader
    templates = {"none": "none", "prompt_eol": "prompt_eol", "echo": "echo", "meta_eol": "meta_eol"}
    found = {}
    for name, template in templates.items():
        recipe = replace(METHODS["va"], template=resolve_recipe("va", None, template).template)
        rows = reader.tokenize_texts(list(texts), None, None, recipe=recipe)
        found[name] = sum(len(row.ids) for of_template in rows for row in of_template) / len(texts)
    return found


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors at length 1."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)


if __name__ == "__main__":
    main()
