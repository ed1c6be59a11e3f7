"""The bundled model: its size, its vectors, and what it makes of graded pairs; and its recorded scores, given the data.

What it is held to is written by `python benchmarks/bundled.py --golden`, after the model has been made anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from scipy.stats import spearmanr

from valuembed.backbone.checkpoints.location import locate
from valuembed.backbone.digests import content_digest
from valuembed.data.labelled import read_sts
from valuembed.evaluation.runner import evaluate
from valuembed.models.multi_readout import MultiReadout
from valuembed.recipes.methods import METHODS

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "bundled"
RECORD = json.loads((GOLDEN / "record.json").read_text(encoding="utf-8"))
DATA = Path(os.environ.get("VALUEMBED_EVAL_DATA", ROOT.parent / "shared" / "eval"))
DEV = DATA / "STSBenchmark.en.dev.jsonl"
SCORES = json.loads((ROOT / "benchmarks" / "bundled.json").read_text(encoding="utf-8"))["bundled"]
SINGLE = [name for name, recipe in METHODS.items() if not recipe.joined]
"""What a joined one gives follows from its parts, and from the sentences of its mean."""
CARD = (ROOT / "src" / "valuembed" / "backbone" / "bundled" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def readouts() -> MultiReadout:
    return MultiReadout.load("bundled", {name: name for name in SINGLE}, dtype="float32")


def test_the_record_is_of_this_model():
    assert RECORD["digest"] == content_digest(locate("bundled"))


@pytest.mark.process
def test_small_enough_and_there_once():
    folder = Path(locate("bundled").location)
    assert (folder / "model.safetensors").stat().st_size <= 24e6
    package = sum(file.stat().st_size for file in folder.parent.rglob("*") if "__pycache__" not in file.parts)
    assert package < 30e6
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tree is not a git checkout, so its files cannot be listed")
    large = [name for name in listed.stdout.split("\0") if name and (ROOT / name).stat().st_size > 1e6]
    assert large == ["src/valuembed/backbone/bundled/model.safetensors"]


@pytest.fixture(scope="module")
def vectors(readouts) -> dict[str, np.ndarray]:
    return readouts.encode(RECORD["texts"])


@pytest.mark.parametrize("method", SINGLE)
def test_golden_vectors(vectors, method):
    golden = load_file(GOLDEN / "vectors.safetensors")[method].numpy()
    made = vectors[method]
    assert made.shape == golden.shape
    error = np.linalg.norm(made - golden, axis=1) / np.linalg.norm(golden, axis=1)
    assert error.max() < 1e-4, f"largest relative error {error.max():.1e}"


@pytest.fixture(scope="module")
def graded(readouts) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """60 pairs of our own, ten of each grade from 0 to 5: grades, and cosines by method."""
    pairs = read_sts(ROOT / "examples" / "sts.jsonl")
    sides = [readouts.encode(texts) for texts in (pairs.sentences1, pairs.sentences2)]
    units = [
        {name: vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for name, vectors in side.items()}
        for side in sides
    ]
    return np.array(pairs.scores), {method: (units[0][method] * units[1][method]).sum(1) for method in SINGLE}


@pytest.mark.slow
@pytest.mark.parametrize("method", SINGLE)
def test_rank_order_of_graded_pairs(graded, method):
    grades, cosines = graded
    assert sorted(grades) == sorted([*range(6)] * 10)
    assert spearmanr(cosines[method], grades).statistic == pytest.approx(RECORD["graded pairs"][method], abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("method", SINGLE)
def test_pairs_that_mean_the_same_are_closer_than_unrelated_ones(graded, method):
    grades, cosines = graded
    assert cosines[method][grades >= 4].mean() > cosines[method][grades <= 1].mean()


@pytest.mark.skipif(not DEV.is_file(), reason=f"no {DEV.name}; VALUEMBED_EVAL_DATA names the folder that holds it")
def test_recorded_scores():
    rows = {"VA": "va", "mean of hidden states": "hidden_mean", "AlignedWVA, PromptEOL": "aligned_wva"}
    # The layers that the record was made with.
    recipes = {
        label: replace(METHODS[row], layers="0.65:0.9") if METHODS[row].signal == "value" else METHODS[row]
        for label, row in rows.items()
    }
    made = evaluate("bundled", recipes, f"sts:{DEV}", dtype="float32", progress=False)
    for score in made.scores:
        # Recorded in bfloat16.
        assert score.score == pytest.approx(SCORES["scores"][score.method]["STSb dev"], abs=0.3), score.method


def test_the_card_tells_the_recorded_scores():
    """Every row of the card's table of methods, and its loss."""
    table = re.search(r"\| method \| (.*) \|\n\|[:|-]+\|\n((?:\|.*\n)+)", CARD)
    assert table is not None
    sets = table[1].split(" | ")
    shown = {row.split(" | ")[0].strip("| "): row.strip("|\n ").split(" | ")[1:] for row in table[2].splitlines()}
    assert set(shown) == set(SCORES["scores"])
    for method, cells in shown.items():
        recorded = [SCORES["scores"][method].get(name) for name in sets]
        assert cells == ["-" if value is None else f"{value:.1f}" for value in recorded], method
    assert f"{SCORES['loss']['nats a token']:.3f}" in CARD
