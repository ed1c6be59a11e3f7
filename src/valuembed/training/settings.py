"""How to train: the settings of a run, checked, and the processes that share it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from valuembed._utils.options import Options, option
from valuembed.backbone import LoadKwargs
from valuembed.errors import InputError

if TYPE_CHECKING:
    from valuembed.training.target_modules import Scope


class TrainKwargs(LoadKwargs, total=False):
    """Type the fields of :class:`TrainSettings`, and what a load takes, as keyword arguments."""

    scope: Scope
    rank: int
    dropout: float
    epochs: float
    steps: int | None
    batch_size: int
    mini_batch: int | None
    learning_rate: float
    warmup: float
    temperature: float
    matryoshka: tuple[int, ...]
    checkpointing: bool
    save_every: int | None
    eval_every: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Options):
    """How to train; every figure is ours.

    Attributes:
        scope: which linear maps get adapters, see :func:`valuembed.training.target_modules.target_modules`.
        rank: of the low-rank adapters; their scale is twice that over the rank.
        dropout: of the adapters' inputs.
        epochs: passes over the pairs, unless ``steps`` is given.
        steps: optimizer steps; None is as many as the epochs take.
        batch_size: pairs in a step, on each process. All other positives of the batch are negatives.
        mini_batch: pairs that are computed at once, by cached gradients (GradCache): a large batch in little memory,
            each text run twice. None computes the batch whole.
        learning_rate: peak, reached after ``warmup`` of the steps, then falling in a straight line.
        warmup: share of the steps.
        temperature: cosines are divided by it.
        matryoshka: widths to which vectors may be cut afterwards; the loss is a mean over them and the full width.
        checkpointing: compute layers again in the backward pass instead of keeping them.
        save_every: steps between checkpoints; None is a tenth of the run.
        eval_every: steps between evaluations; None is a fifth of the run.
        seed: of adapters, order and dropout.
    """

    scope: Scope = option(
        "attention",
        "Which parts get adapters, of those that the vectors depend on: 'attention', or 'all', which takes "
        "feed-forward parts too.",
    )
    rank: int = option(
        16, "The rank of the adapters; a higher one learns more and takes more memory.", min=1, metavar="N"
    )
    dropout: float = option(
        0.0, "The share of the adapters' inputs that is dropped at random in training.", min=0, max=1, metavar="SHARE"
    )
    epochs: float = option(1.0, "How often the training goes over all pairs.", metavar="N")
    steps: int | None = option(None, "How many steps the training takes, in place of --epochs.", min=1, metavar="N")
    batch_size: int = option(64, "How many pairs make a step, on each process.", min=2, metavar="N")
    mini_batch: int | None = option(
        None,
        "How many pairs are computed at once, by cached gradients, which lets large batches fit into little memory.",
        min=1,
        metavar="N",
    )
    learning_rate: float = option(5e-4, "The highest learning rate, after warming up.", metavar="RATE")
    warmup: float = 0.1
    temperature: float = option(0.05, "The number that cosines are divided by in the loss.", metavar="T")
    matryoshka: tuple[int, ...] = option(
        (), "The widths that vectors may be cut to after the training.", metavar="WIDTH ..."
    )
    checkpointing: bool = option(
        False, "Compute layers again in the backward pass, which takes less memory and more time."
    )
    save_every: int | None = option(
        None, "How many steps lie between two checkpoints. By default it is a tenth of all steps.", min=1, metavar="N"
    )
    eval_every: int | None = option(
        None, "How many steps lie between two evaluations. By default it is a fifth of all steps.", min=1, metavar="N"
    )
    seed: int = option(0, "The seed of the adapters, of the order and of dropout.", metavar="N")

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "epochs", "learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)!r}: it must be above 0")
        for name in ("steps", "mini_batch", "save_every", "eval_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: it must be 1 or more, or left out")
        if self.batch_size < 2:
            raise InputError("batch_size=1: the other pairs of a batch are the negatives, so it takes at least 2")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)!r}: it must be 0 or more and less than 1")


def count_processes() -> int:
    """How many processes train together, as their launcher tells each of them."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this process is the only one, or the one that writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0
