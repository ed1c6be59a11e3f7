"""A linear softmax: trained on one set of vectors, scored on another. Tensors in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from valuembed._utils.torch_settings import gradients

EPOCHS, ROWS_PER_STEP, LEARNING_RATE = 3, 512, 0.01
FEWEST_STEPS = 32
"""Steps of an epoch at least: with few positions each takes fewer rows."""


@dataclass(frozen=True)
class ProbeScore:
    """How well the next token of held out positions is predicted.

    Attributes:
        top1: share of positions whose next token is the first guess, 0 to 1.
        top5: share of positions whose next token is among the first five.
        loss: mean cross-entropy in nats over the positions whose next token is a class; the others count as missed
            in ``top1`` and ``top5``, and have no finite loss.
    """

    top1: float
    top5: float
    loss: float

    @property
    def figures(self) -> tuple[float, float, float]:
        """As they stand in a table: percent, percent, nats."""
        return (100 * self.top1, 100 * self.top5, self.loss)


def scales(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature; the deviation of a constant one is taken as 1."""
    spread = vectors.std(dim=0, correction=0)
    return vectors.mean(dim=0), torch.where(spread > 0, spread, 1)


def as_classes(ids: Tensor, classes: Tensor) -> Tensor:
    """Places of ids ``[q]`` among sorted classes, -1 where an id is none of them."""
    places = torch.searchsorted(classes, ids).clamp(max=len(classes) - 1)
    return torch.where(classes[places] == ids, places, -1)


@gradients()
def train_softmax(
    vectors: Tensor, targets: Tensor, held_out: Tensor, wanted: Tensor, classes: int, seed: int = 0
) -> ProbeScore:
    """Train a linear softmax and score it.

    It starts from the classes' frequencies, and ends after :data:`EPOCHS` epochs of AdamW with a rate that falls to 0:
    few, for it has more weights than there are positions, and would learn these by heart.

    Args:
        vectors: ``[p, width]`` of the training part, on the device to train on.
        targets: ``[p]`` the class of each.
        held_out: ``[q, width]``.
        wanted: ``[q]`` the class of each, -1 for none.
        classes: how many there are.
        seed: of the order.
    """
    centre, spread = scales(vectors)
    vectors, held_out = (vectors - centre) / spread, (held_out - centre) / spread
    device = vectors.device
    targets = targets.to(device)
    probe = nn.Linear(vectors.shape[1], classes, device=device, dtype=vectors.dtype)
    with torch.no_grad():
        probe.weight.zero_()
        probe.bias.copy_(torch.bincount(targets, minlength=classes).clamp(min=0.5).log())
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(vectors), generator=generator) for _ in range(EPOCHS)]
    at_once = max(1, min(ROWS_PER_STEP, len(vectors) // FEWEST_STEPS))
    batches = [batch for order in orders for batch in torch.split(order, at_once)]
    optimizer = torch.optim.AdamW(probe.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / len(batches))
        rows = batch.to(device)
        loss = nn.functional.cross_entropy(probe(vectors[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        pairs = zip(*(torch.split(part, ROWS_PER_STEP) for part in (held_out, wanted)), strict=True)
        parts = [_count(probe(rows), of_rows.to(device)) for rows, of_rows in pairs]
    return _score(torch.stack(parts).sum(dim=0), wanted)


def most_frequent(targets: Tensor, wanted: Tensor, classes: int) -> ProbeScore:
    """What a probe without inputs reaches: it knows the classes' frequencies in the training part.

    Args:
        targets, wanted, classes: as for :func:`train_softmax`.
    """
    logits = torch.bincount(targets, minlength=classes).float().log()
    return _score(_count(logits.expand(len(wanted), -1), wanted), wanted)


def _count(logits: Tensor, wanted: Tensor) -> Tensor:
    """How many of q positions are right at the first guess and among five, and the sum of their losses, ``[3]``."""
    guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices == wanted[:, None]
    known = wanted >= 0
    loss = nn.functional.cross_entropy(logits[known], wanted[known], reduction="sum")
    return torch.stack((guesses[:, 0].sum(), guesses.any(dim=1).sum(), loss)).double().cpu()


def _score(counts: Tensor, wanted: Tensor) -> ProbeScore:
    first, five, loss = counts.tolist()
    known = int((wanted >= 0).sum())
    return ProbeScore(first / len(wanted), five / len(wanted), loss / known if known else float("nan"))
