"""A probe that finds what is there and nothing else."""

from __future__ import annotations

import math

import pytest
import torch

from valuembed.research.linear_probe import as_classes, most_frequent, train_softmax


def test_finds_what_is_there():
    # Ten classes, each a direction of its own with a little noise: any linear probe separates them.
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 10, (6000,), generator=generator)
    vectors = torch.eye(16)[classes] + 0.05 * torch.randn(6000, 16, generator=generator)
    score = train_softmax(vectors[:5000], classes[:5000], vectors[5000:], classes[5000:], 10)
    assert (score.top1, score.top5) == (1, 1)
    assert score.loss < math.log(10) / 2


def test_finds_nothing_where_there_is_nothing():
    generator = torch.Generator().manual_seed(0)
    # One class of ten is drawn half of the time.
    classes = torch.randint(0, 18, (6000,), generator=generator).sub(8).clamp(min=0)
    vectors = torch.randn(6000, 8, generator=generator)
    score = train_softmax(vectors[:5000], classes[:5000], vectors[5000:], classes[5000:], 10)
    best = most_frequent(classes[:5000], classes[5000:], 10)
    assert score.top1 == pytest.approx(best.top1, abs=0.02)
    assert score.loss == pytest.approx(best.loss, abs=0.05)


def test_sizes_and_places_of_features_do_not_count():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2000, 4, generator=generator)
    classes = vectors[:, :3].argmax(dim=1)
    moved = vectors * torch.tensor([1e3, 1e-3, 1, 50]) + torch.tensor([5.0, 0, -1e2, 3])
    first, second = (train_softmax(v[:1500], classes[:1500], v[1500:], classes[1500:], 3) for v in (vectors, moved))
    assert first.top1 > 0.9
    assert second.top1 == pytest.approx(first.top1, abs=0.01)
    assert second.loss == pytest.approx(first.loss, rel=1e-2)


def test_the_same_every_time():
    vectors = torch.randn(600, 4, generator=torch.Generator().manual_seed(2))
    classes = (vectors[:, 0] > 0).long()
    torch.manual_seed(0)
    first = train_softmax(vectors, classes, vectors, classes, 2)
    torch.manual_seed(1)
    assert train_softmax(vectors, classes, vectors, classes, 2) == first


def test_a_next_token_without_a_class_is_missed():
    # Separable, but a quarter of what is wanted was never trained on.
    vectors = torch.eye(4)[torch.arange(4000) % 4]
    classes = torch.arange(4000) % 4
    wanted = torch.where(classes == 3, -1, classes)
    score = train_softmax(vectors, classes, vectors, wanted, 4)
    assert (score.top1, score.top5) == (0.75, 0.75)
    assert math.isfinite(score.loss)


def test_classes_are_the_ids_that_were_trained_on():
    # Below, between and above the classes there is none; -1 marks it.
    found = as_classes(torch.tensor([1, 3, 5, 7, 9, 7]), torch.tensor([3, 7, 8]))
    assert found.tolist() == [-1, 0, -1, 1, -1, 1]


def test_most_frequent_by_hand():
    # Class 0 has 4 of 8 positions, class 1 and 2 have 2. Wanted: 0, 2, none. One of three is the first guess, two
    # are among the first five (of three); losses -ln(1/2) and -ln(1/4).
    score = most_frequent(torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 2, -1]), 3)
    assert (score.top1, score.top5) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert score.loss == pytest.approx((math.log(2) + math.log(4)) / 2)
