"""State of the whole process, changed for the length of a block and put back: a library leaves it as it was."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_lock = threading.Lock()


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables: for what reads them when it is imported or started."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Log less from one package, by the name of its logger; loggers below it that have a level of their own keep it."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def ignored_warnings(message: str = "", *categories: type[Warning]) -> Iterator[None]:
    """Ignore warnings of other packages, by the beginning of their message or by category.

    ``warnings.catch_warnings`` swaps the whole list of filters, so that two threads that leave it in another order than
    they entered change it for good. Here each block adds entries of its own, and takes these out again.
    """
    added = [("ignore", re.compile(message, re.IGNORECASE), category, None, 0) for category in categories or (Warning,)]
    with _lock:
        warnings.filters[:0] = added  # type: ignore[index]
    try:
        yield
    finally:
        with _lock:
            warnings.filters[:] = [one for one in warnings.filters if not any(one is entry for entry in added)]  # type: ignore[index]


@contextmanager
def random_state() -> Iterator[None]:
    """Leave the generators of Python, numpy and torch where they were, whatever is seeded or drawn."""
    import numpy as np
    import torch

    python, legacy, own = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
        torch.random.set_rng_state(own)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
