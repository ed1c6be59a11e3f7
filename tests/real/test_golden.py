"""Vectors and scores of real decoders are those that were recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest
from real_decoders import DECODERS, GOLDEN, SCORED, TEXTS, first_numbers, graded_scores, readouts, real_decoder

from valuembed.recipes import METHODS

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))
RELATIVE = 2e-2
"""How far vectors of other CPUs may be from those recorded; they were computed in float32."""


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request):
    return request.param, readouts(real_decoder(request.param))


def test_the_record_has_every_method_of_every_decoder():
    assert tuple(RECORDED) == DECODERS
    for found in RECORDED.values():
        assert set(found["first numbers"]) == set(found["layers"]) == set(METHODS)
        assert set(found["graded pairs"]) == set(SCORED)
        assert {len(rows) for rows in found["first numbers"].values()} == {len(TEXTS)}


@pytest.mark.slow
def test_layers(decoder):
    name, reads = decoder
    assert {method: list(plan.layers) for method, plan in reads.plans.items()} == RECORDED[name]["layers"]


@pytest.mark.slow
def test_vectors(decoder):
    name, reads = decoder
    for method, found in first_numbers(reads).items():
        expected = np.array(RECORDED[name]["first numbers"][method])
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert error.max() < RELATIVE, f"{method}: largest relative error {error.max():.1e}"


@pytest.mark.slow
def test_scores_of_graded_pairs(decoder):
    name, reads = decoder
    scores = graded_scores(reads)
    assert scores == pytest.approx(RECORDED[name]["graded pairs"], abs=0.01)
    # What the library is for: values say more of a sentence than the hidden states that they become.
    assert scores["va"] > scores["hidden_mean"]
    assert scores["aligned_wva"] > scores["hidden_mean"]
