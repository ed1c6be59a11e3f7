"""Vectors on their way from the device into one tensor, without making the device wait."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

UNDER_WAY = 2
"""Copies that may be under way while later steps are computed."""


class AsyncGather:
    """The vectors of a call, filled in step by step.

    Args:
        rows: b, how many there will be.
        device: where they are wanted.
    """

    def __init__(self, rows: int, device: torch.device | str) -> None:
        self._rows = rows
        self._device = torch.device(device)
        self._vectors: Tensor | None = None
        self._under_way: deque[tuple[list[int], Tensor, torch.cuda.Event]] = deque()

    def put(self, rows: list[int], vectors: Tensor) -> None:
        """Take the vectors ``[len(rows), width]`` of some rows; a copy out of a CUDA device is only begun."""
        if self._vectors is None:
            self._vectors = torch.empty(self._rows, vectors.shape[1], dtype=torch.float32, device=self._device)
        if vectors.device.type != "cuda" or self._device.type != "cpu":
            self._vectors[rows] = vectors.to(self._device, torch.float32)
            return
        landed = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        landed.copy_(vectors, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(torch.cuda.current_stream(vectors.device))
        self._under_way.append((rows, landed, arrived))
        while len(self._under_way) > UNDER_WAY:
            self._wait_oldest()

    def all(self) -> Tensor:
        """``[b, width]`` float32, once every row has been put; ``[0, 0]`` where there are none."""
        while self._under_way:
            self._wait_oldest()
        return torch.empty(0, 0, dtype=torch.float32) if self._vectors is None else self._vectors

    def _wait_oldest(self) -> None:
        rows, landed, arrived = self._under_way.popleft()
        arrived.synchronize()
        assert self._vectors is not None
        self._vectors[rows] = landed.float()
