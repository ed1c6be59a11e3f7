"""Settings of a training run: each figure checked, and the processes that share a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from valuembed.errors import InputError
from valuembed.training.settings import TrainSettings, count_processes, is_first_process

ABOVE_0 = "it must be above 0"
ONE_OR_MORE = "it must be 1 or more, or left out"
A_SHARE = "it must be 0 or more and less than 1"


def test_the_defaults_are_legal_and_cannot_be_changed() -> None:
    settings = TrainSettings()
    assert (settings.scope, settings.batch_size, settings.matryoshka) == ("attention", 64, ())
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.rank = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank", 0, ABOVE_0),
        ("rank", -4, ABOVE_0),
        ("batch_size", 0, ABOVE_0),
        ("epochs", 0, ABOVE_0),
        ("epochs", -0.5, ABOVE_0),
        ("learning_rate", 0.0, ABOVE_0),
        ("learning_rate", float("nan"), ABOVE_0),
        ("temperature", 0, ABOVE_0),
        ("steps", 0, ONE_OR_MORE),
        ("mini_batch", 0, ONE_OR_MORE),
        ("save_every", -1, ONE_OR_MORE),
        ("eval_every", 0, ONE_OR_MORE),
        ("batch_size", 1, "the other pairs of a batch are the negatives, so it takes at least 2"),
        ("dropout", 1.0, A_SHARE),
        ("dropout", -0.1, A_SHARE),
        ("warmup", 1.5, A_SHARE),
        ("warmup", float("nan"), A_SHARE),
    ],
)
def test_a_figure_out_of_range_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}={value}: {message}$"):
        TrainSettings(**{name: value})


@pytest.mark.parametrize(
    "given",
    [
        {"rank": 1},
        {"batch_size": 2},
        {"epochs": 0.1},
        {"steps": 1},
        {"mini_batch": 1},
        {"dropout": 0},
        {"warmup": 0.99},
    ],
)
def test_the_smallest_and_largest_are_taken(given: dict[str, Any]) -> None:
    assert dataclasses.asdict(TrainSettings(**given)) == dataclasses.asdict(TrainSettings()) | given


def test_processes_are_counted_as_their_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert (count_processes(), is_first_process()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    assert (count_processes(), is_first_process()) == (4, True)
    monkeypatch.setenv("RANK", "3")
    assert not is_first_process()
