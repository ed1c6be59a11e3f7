"""The training loop: batches, loss, optimizers, learning rate, checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from bundling.lessons import LessonRows
from bundling.rows import labels, pieces

ANSWER = 4.0
"""What a lesson's answer counts for, in tokens."""
IGNORED = -100


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        rows: rows in a step.
        lessons: of these, rows of lessons; 0 for none.
        rate_matrices: learning rate of Muon, for the layers' matrices.
        rate_others: learning rate of AdamW, for embeddings and norms.
        warm_up: steps over which the learning rate rises from 0.
        seed: of everything drawn.
    """

    rows: int = 96
    lessons: int = 0
    rate_matrices: float = 0.02
    rate_others: float = 0.004
    warm_up: int = 100
    seed: int = 0


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        steps: done so far.
        tokens: fed so far, padding left out.
        corpus_rows, lesson_rows: taken so far from either.
        seconds: of wall time, over all starts.
        curve: ``[tokens, training loss, validation loss]`` at intervals, in nats a token.
    """

    steps: int = 0
    tokens: int = 0
    corpus_rows: int = 0
    lesson_rows: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)


class Order:
    """Rows in an order that the seed decides, epoch after epoch."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self._epoch, self._drawn = -1, np.empty(0, np.int64)

    def take(self, start: int, count: int) -> np.ndarray:
        """The next rows after ``start`` that were taken before."""
        return np.array([self._row(place) for place in range(start, start + count)], np.int64)

    def _row(self, place: int) -> int:
        epoch, within = divmod(place, self.rows)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return int(self._drawn[within])


def optimizers(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in known]
    return [
        torch.optim.Muon(matrices, lr=settings.rate_matrices, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=settings.rate_others, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def token_loss(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, wanted: Tensor) -> Tensor:
    """Summed cross-entropy of the tokens that are known ``[]``, in nats."""
    return F.cross_entropy(
        _scores(model, ids, positions, mask)[:, :-1].flatten(0, 1), wanted.flatten(), reduction="sum"
    )


def lesson_loss(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor, wanted: Tensor, ends: Tensor,
    answers: Tensor, weights: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same, and the summed cross-entropy of the answers ``[]`` against their distribution.

    Args:
        model: a causal language model.
        ids, positions: ``[b, t]``.
        mask: ``[b, 1, t, t]``, added to the attention scores.
        wanted: ``[b, t - 1]``, -100 at the ends of prompts.
        ends: ``[k]``, places of the prompts' last tokens in the flattened batch.
        answers, weights: ``[k, n]``, tokens that answer, and the share of each.
    """
    scores = _scores(model, ids, positions, mask)
    known = F.cross_entropy(scores[:, :-1].flatten(0, 1), wanted.flatten(), reduction="sum")
    answered = scores.flatten(0, 1)[ends].log_softmax(-1).gather(1, answers)
    return known, -(weights * answered).sum()


def _scores(model: PreTrainedModel, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    return model(
        input_ids=ids, position_ids=positions, attention_mask={"full_attention": mask}, use_cache=False
    ).logits.float()


class Trainer:
    """A model in training, which can be stopped at any moment and goes on from its last checkpoint.

    Args:
        model: a causal language model in float32, on its device.
        corpus: ``[rows, t]`` ids.
        held_out: ``[rows, t]`` ids, for the validation loss.
        lessons: for the steps' lesson rows, where the settings ask for any.
        settings: see there.
        checkpoint: the file of the run's state.
        compiled: compile the step; faster, and slow to start.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        corpus: np.ndarray,
        held_out: np.ndarray,
        lessons: LessonRows | None,
        settings: Settings,
        checkpoint: Path,
        *,
        compiled: bool = False,
    ) -> None:
        self.model, self.settings, self.checkpoint = model, settings, checkpoint
        self.corpus, self.held_out, self.lessons = corpus, held_out, lessons
        self.progress = Progress()
        self._optimizers = optimizers(model, settings)
        self._rates = [group["lr"] for optimizer in self._optimizers for group in optimizer.param_groups]
        self._order = Order(len(corpus), settings.seed)
        self._lesson_order = Order(len(lessons.ids), settings.seed + 1) if lessons is not None else None
        step: Callable[..., Any] = lesson_loss if settings.lessons else token_loss
        self._loss = torch.compile(step, dynamic=False) if compiled else step

    def resume(self, checkpoint: Path | None = None) -> bool:
        """Take a run's state up, this one's or another's; whether there was one."""
        path = checkpoint or self.checkpoint
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.model.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.progress = Progress(**state["progress"])
        return True

    def save(self) -> None:
        """Write the state beside the last one, then in its place."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "progress": asdict(self.progress),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint.with_suffix(".tmp")
        torch.save(state, beside)
        os.replace(beside, self.checkpoint)

    def run(self, until: int, *, cool_from: int | None = None, save_every: int = 200, look_every: int = 100) -> None:
        """Train until so many tokens are fed.

        Args:
            until: tokens, counted from the model's first.
            cool_from: tokens from which the learning rate falls, in a straight line, to 0 at ``until``. None: it stays.
            save_every: steps between checkpoints.
            look_every: steps between entries of the curve.
        """
        progress = self.progress
        started, before = time.monotonic(), progress.seconds
        with tqdm(total=until, initial=progress.tokens, unit=" tokens", unit_scale=True, mininterval=10) as bar:
            seen: list[float] = []
            while progress.tokens < until:
                cooled = 1.0 if cool_from is None else (until - progress.tokens) / max(1, until - cool_from)
                self._set_rates(min(1.0, (progress.steps + 1) / self.settings.warm_up) * min(1.0, cooled))
                fed = progress.tokens
                seen.append(self._step())
                bar.update(progress.tokens - fed)
                progress.seconds = before + time.monotonic() - started
                if progress.steps % look_every == 0 or progress.tokens >= until:
                    self._look(sum(seen) / len(seen))
                    seen = []
                if progress.steps % save_every == 0 or progress.tokens >= until:
                    self.save()

    def _set_rates(self, share: float) -> None:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * share

    def _step(self) -> float:
        """One step of all optimizers; the mean loss of its known tokens, answers left out, in nats."""
        device, progress = self.model.device, self.progress
        taught = self.settings.lessons
        rows = self.corpus[self._order.take(progress.corpus_rows, self.settings.rows - taught)]
        extra: tuple[Tensor, ...] = ()
        if taught:
            assert self.lessons is not None
            assert self._lesson_order is not None
            drawn = self._lesson_order.take(progress.lesson_rows, taught)
            rows = np.concatenate([self.lessons.ids[drawn], rows])
        ids = torch.from_numpy(rows.astype(np.int64)).to(device)
        wanted = labels(ids)
        if taught:
            ends = torch.from_numpy(self.lessons.ends[drawn].astype(np.int64)).to(device)
            there = ends >= 0
            wanted = _without(wanted, ends, there)
            flat = (ends.clamp(min=0) + torch.arange(taught, device=device)[:, None] * ids.shape[1]).flatten()
            answers = torch.from_numpy(self.lessons.answers[drawn].astype(np.int64)).to(device).flatten(0, 1)
            weights = torch.from_numpy(self.lessons.weights[drawn]).to(device).flatten(0, 1)
            extra = (flat, answers, weights)
        with torch.autocast(device.type, torch.bfloat16):
            made = self._loss(self.model, *inputs(ids), wanted, *extra)
        known, answered = made if taught else (made, made.new_zeros(()))
        count = (wanted != IGNORED).sum()
        answered_count = there.sum() if taught else 0
        ((known + ANSWER * answered) / (count + ANSWER * answered_count)).backward()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = float(known.detach() / count)
        if mean != mean:
            raise FloatingPointError(f"the loss is not a number at step {progress.steps + 1}")
        progress.steps += 1
        progress.tokens += int((ids != 0).sum())
        progress.corpus_rows += self.settings.rows - taught
        progress.lesson_rows += taught
        return mean

    def _look(self, training: float) -> None:
        sample = self.held_out[: 2 * self.settings.rows]
        nats, known = validation_loss(self.model, sample, self.settings.rows)
        self.progress.curve.append([self.progress.tokens, round(training, 4), round(nats / known, 4)])
        tqdm.write(json.dumps({"steps": self.progress.steps, "curve": self.progress.curve[-1]}))


def _without(wanted: Tensor, ends: Tensor, there: Tensor) -> Tensor:
    """Labels with the ends of prompts left out: those answer to a distribution instead."""
    rows, number = there.nonzero(as_tuple=True)
    wanted = wanted.clone()
    wanted[rows, ends[rows, number]] = IGNORED
    return wanted


def inputs(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the model is fed: ids and positions ``[b, t]``, and the mask ``[b, 1, t, t]`` to add to the scores."""
    positions, visible = pieces(ids)
    # In the precision of the scores, which would else be computed in the mask's.
    mask = torch.zeros(visible.shape, dtype=torch.bfloat16, device=ids.device)
    return ids, positions, mask.masked_fill(~visible, torch.finfo(mask.dtype).min)


@torch.no_grad()
def validation_loss(model: PreTrainedModel, rows: np.ndarray, at_once: int) -> tuple[float, int]:
    """Summed loss in nats over the known tokens of ``[rows, t]``, and how many they are; bfloat16 arithmetic."""
    total, known = 0.0, 0
    for start in range(0, len(rows), at_once):
        ids = torch.from_numpy(rows[start : start + at_once].astype(np.int64)).to(model.device)
        wanted = labels(ids)
        with torch.autocast(model.device.type, torch.bfloat16):
            total += float(token_loss(model, *inputs(ids), wanted))
        known += int((wanted != IGNORED).sum())
    return total, known
