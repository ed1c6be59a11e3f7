"""The bundled model and what it is compared with: every method on STS sets, layer by layer, and what its tests hold.

    python benchmarks/bundled.py --data DIR --corpus FILE --model NAME=FOLDER [--model NAME=FOLDER ...]
        [--training NAME=FILE ...] [--results DIR] [--dtype bfloat16]
    python benchmarks/bundled.py --golden

The first form measures each checkpoint on the STS sets of DIR (files as bundled_rows.py names them) and its loss on the
held-out part of the corpus, and writes bundled.md and bundled.json beside this script, bundled-layers.png and, from the
training.json files of scripts/train_bundled.py, bundled-loss.png into docs/. MetaEOL, with eight passes a text, is
measured on SHORT. Models that are not named keep what bundled.json says of them. The second form writes the vectors
and the figures that the tests hold the bundled model to.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import math
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from bundled_rows import ROWS, SETS, SHORT, recipes, specs
from safetensors.torch import save_file
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from valuembed.analysis.layer_sweep import sweep
from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.digests import content_digest
from valuembed.data.labelled import read_sts
from valuembed.evaluation.results import scoring_versions
from valuembed.evaluation.runner import evaluate
from valuembed.models import MultiReadout
from valuembed.recipes.methods import METHODS
from valuembed.reporting import markdown, plots

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "scripts"))

from bundling.rows import encode, pack  # noqa: E402
from bundling.text import documents, is_held_out  # noqa: E402
from bundling.training import validation_loss  # noqa: E402

STS = [name for name, spec in SETS.items() if spec.startswith("sts:")]
BAG = "bag of embeddings: mean of the text's own token embeddings, no layer run"
CHARTED = ("bundled", "plain")
"""Models of the layer curves."""
SIGNALS = {"VA": "values raw", "hidden mean": "hidden mean"}
TEXTS = ("A doctor sees a patient.", "Die Katze schläft, 4 Uhr früh.", "One sentence after the other. " * 30)
LENGTH, AT_ONCE = 128, 64

Figures = dict[str, dict[str, float]]


def bag(folder: str, files: dict[str, Path]) -> dict[str, float]:
    """Spearman x 100 of the cosines between means of token embeddings, special tokens left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    table = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach()

    def vectors(texts: list[str]) -> torch.Tensor:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return torch.stack([table[of_text].mean(0) for of_text in ids])

    found = {}
    for name, file in files.items():
        read = read_sts(file)
        cosines = torch.cosine_similarity(vectors(read.sentences1), vectors(read.sentences2))
        found[name] = 100 * float(spearmanr(cosines, read.scores).statistic)
    return found


def held_out_loss(folder: str, corpus: Path) -> tuple[float, float]:
    """Loss on the held-out documents: nats a token, and bits a byte, which other tokenizers do not move."""
    texts = [text for text in documents(corpus) if is_held_out(text)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    nats, known = validation_loss(model, pack(encode(tokenizer, texts), LENGTH), AT_ONCE)
    return nats / known, nats / math.log(2) / sum(len(text.encode()) for text in texts)


def score(folder: str, args: argparse.Namespace) -> dict[str, object]:
    """Everything that is measured of one checkpoint."""
    files = {one: args.data / SETS[one].removeprefix("sts:") for one in STS}
    scores: Figures = {BAG: bag(folder, files)}
    chosen = recipes()
    for labels, sets in (
        ([label for label in chosen if len(chosen[label].template) == 1], STS),
        ([label for label in chosen if len(chosen[label].template) > 1], [one for one in STS if one in SHORT]),
    ):
        tasks = specs(args.data, sets)
        methods = {label: chosen[label] for label in labels}
        made = evaluate(folder, methods, tasks, output=args.results, dtype=args.dtype)
        titles = dict(zip(made.tasks, sets, strict=True))
        for one in made.scores:
            scores.setdefault(one.method, {})[titles[one.task]] = one.score
    layers = {}
    for one, file in files.items():
        swept = sweep(folder, f"sts:{file}", signals=list(SIGNALS.values()), dtype=args.dtype)
        layers[one] = {label: list(swept.scores[signal].values()) for label, signal in SIGNALS.items()}
    nats, bits = held_out_loss(folder, args.corpus)
    return {"scores": scores, "layers": layers, "loss": {"nats a token": nats, "bits a byte": bits}}


def verdicts(scores: Figures) -> Iterator[str]:
    """Whether VA beats the hidden mean and the bag of embeddings, set by set."""
    for readout in ("VA", "VA, all layers"):
        for label in ("mean of hidden states", BAG):
            won = [name for name in STS if scores[readout][name] > scores[label][name]]
            lost = [name for name in STS if name not in won]
            says = " and ".join(
                f"{verb} {', '.join(names)}" for verb, names in (("beats it on", won), ("does not on", lost)) if names
            )
            yield f"- {readout} against {label.partition(':')[0]}: {says}."


def page(measured: dict[str, dict[str, object]], args: argparse.Namespace) -> Iterator[str]:
    """bundled.md."""
    yield "# The bundled model and its variants\n"
    shown = " ".join(f"--model {name}=FOLDER" for name in measured)
    yield f"Made by `python benchmarks/bundled.py --data DIR --corpus FILE {shown} --dtype {args.dtype}`,"
    yield f"on Python {platform.python_version()}, {', '.join(map(' '.join, scoring_versions().items()))}.\n"
    yield "Spearman x 100 of the cosines, test splits where a file has any. Loss: on the held-out hundredth of the"
    yield "corpus, in pieces of 128 tokens; models made without that split may have been trained on parts of it.\n"
    yield "| model | nats a token | bits a byte |\n|:--|--:|--:|"
    for name, found in measured.items():
        yield f"| {name} | {found['loss']['nats a token']:.3f} | {found['loss']['bits a byte']:.3f} |"
    for name, found in measured.items():
        yield f"\n## {name}\n"
        rows = []
        for label in (BAG, *ROWS):
            cells = [found["scores"][label].get(one) for one in STS]
            rows.append([label, *("-" if cell is None else f"{cell:.2f}" for cell in cells)])
        yield from markdown.table(["method", *STS], rows, "lr")
        yield ""
        yield from verdicts(found["scores"])
        for label in SIGNALS:
            yield f"\n{label} by layer, no template:\n"
            count = len(found["layers"][STS[0]][label])
            rows = [[one, *(f"{value:.2f}" for value in found["layers"][one][label])] for one in STS]
            yield from markdown.table(["set", *map(str, range(count))], rows, "lr")


def draw(measured: dict[str, dict[str, object]], training: dict[str, str]) -> None:
    """The charts for the docs."""
    dev = STS[0]
    curves = {}
    for name in CHARTED:
        if name in measured:
            for label in SIGNALS:
                curves[f"{label}, {name}"] = list(enumerate(measured[name]["layers"][dev][label]))
    last = max(len(points) for points in curves.values()) - 1
    known = measured[CHARTED[0]]["scores"][BAG][dev]
    curves[f"bag of embeddings, {CHARTED[0]}"] = [(0, known), (last, known)]
    figure = plots.curves(curves, title=f"{dev}, layer by layer, no template", xlabel="layer", ylabel="Spearman x 100")
    plots.save(figure, ROOT / "docs" / "bundled-layers.png")
    if training:
        losses = {}
        for name, file in training.items():
            curve = json.loads(Path(file).read_text())["curve"]
            losses[f"{name}: held out"] = [(tokens / 1e6, held_out) for tokens, _, held_out in curve]
            # A mean over a few steps, as at the end of a phase, jumps.
            gaps = [after[0] - before[0] for before, after in zip([[0.0], *curve], curve, strict=False)]
            losses[f"{name}: training"] = [
                (tokens / 1e6, trained)
                for (tokens, trained, _), gap in zip(curve, gaps, strict=True)
                if gap > 0.8 * max(gaps)
            ]
        figure = plots.curves(losses, title="Loss", xlabel="million tokens", ylabel="nats a token")
        plots.save(figure, ROOT / "docs" / "bundled-loss.png")


def golden() -> None:
    """Vectors of a few texts by every method, and the scores on the graded pairs that the examples hold."""
    kept, scores = {}, {}
    # What a joined method gives follows from those of its parts.
    single = [name for name, recipe in METHODS.items() if not recipe.joined]
    panel = MultiReadout.load("bundled", {name: name for name in single}, dtype="float32")
    for method, vectors in panel.encode(list(TEXTS)).items():
        kept[method] = torch.from_numpy(vectors)
    pairs = read_sts(ROOT / "examples" / "sts.jsonl")
    one, two = panel.encode(pairs.sentences1), panel.encode(pairs.sentences2)
    for method in single:
        cosines = torch.cosine_similarity(torch.from_numpy(one[method]), torch.from_numpy(two[method]))
        scores[method] = round(float(spearmanr(cosines, pairs.scores).statistic), 4)
    save_file(kept, ROOT / "tests" / "models" / "bundled" / "vectors.safetensors")
    record = {"digest": content_digest(locate("bundled")), "texts": TEXTS, "graded pairs": scores}
    (ROOT / "tests" / "models" / "bundled" / "record.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", action="store_true", help="write what the tests hold the bundled model to")
    parser.add_argument("--data", type=Path, help="folder of the evaluation sets")
    parser.add_argument("--corpus", type=Path, help="the corpus that the model was trained on")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER", help="or NAME=bundled")
    parser.add_argument("--training", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--results", type=Path, default=Path("bundled-results"), help="results that are kept")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.golden:
        golden()
        return
    models = {name: str(locate(place).location) for name, place in (one.split("=", 1) for one in args.model)}
    kept = HERE / "bundled.json"
    measured = json.loads(kept.read_text()) if kept.is_file() else {}
    for name, folder in models.items():
        measured[name] = score(folder, args)
        kept.write_text(json.dumps(measured, indent=1) + "\n")
    (HERE / "bundled.md").write_text("\n".join(page(measured, args)) + "\n")
    draw(measured, dict(one.split("=", 1) for one in args.training))


if __name__ == "__main__":
    main()
