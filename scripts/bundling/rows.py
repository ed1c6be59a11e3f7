"""Documents as rows of equal length, without padding.

A row holds pieces of documents, each opened by a BOS as every text is when the model is used, and none sees another:
tokens since the last BOS are all that a token attends to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bundling.text import BOS_ID, EOS_ID, PAD_ID

ENCODED_AT_ONCE = 512


def encode(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Ids of each text, without special tokens."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == ENCODED_AT_ONCE:
            yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            batch = []
    if batch:
        yield from tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]


def pack(encoded: Iterable[list[int]], length: int) -> np.ndarray:
    """Fill rows one after the other; a document that meets a row's end goes on in the next, behind a new BOS.

    Args:
        encoded: ids of each document, without special tokens; an EOS is added to each.
        length: tokens of a row.

    Returns:
        ``[rows, length]`` uint16; the last row is filled up with padding.
    """
    rows: list[np.ndarray] = []
    row: list[int] = []
    for ids in encoded:
        left = [*ids, EOS_ID]
        while left:
            # A BOS with a single token behind it, at a row's end, teaches little; it is allowed for the sake of no gap.
            room = length - len(row) - 1
            if room < 1:
                rows.append(np.array(row + [PAD_ID] * (length - len(row)), np.uint16))
                row = []
                continue
            row += [BOS_ID, *left[:room]]
            left = left[room:]
    if row:
        rows.append(np.array(row + [PAD_ID] * (length - len(row)), np.uint16))
    return np.stack(rows)


def pieces(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each token stands in its piece, and which tokens it may attend to.

    Args:
        ids: ``[b, t]``, each row opened by a BOS.

    Returns:
        Positions ``[b, t]``, 0 at each BOS; and the mask ``[b, 1, t, t]``, true where the row's token (third axis) may
        attend to the column's (fourth).
    """
    starts = ids == BOS_ID
    piece = starts.cumsum(1)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    positions = places - torch.where(starts, places, 0).cummax(1).values
    causal = places[:, :, None] >= places[:, None, :]
    return positions, (causal & (piece[:, :, None] == piece[:, None, :]))[:, None]


def labels(ids: torch.Tensor) -> torch.Tensor:
    """What each token but the last predicts ``[b, t - 1]``; -100 where nothing can be known: a next piece, padding."""
    following = ids[:, 1:]
    return following.masked_fill((following == BOS_ID) | (following == PAD_ID), -100)
