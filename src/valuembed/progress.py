"""Where a long job stands, for those who watch it: a bar on a terminal, lines in a log, or a call for each step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from valuembed.printable import counted

LINE_EVERY = 60.0
"""Seconds between two lines in a log."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        rows: that it has read, ``embedded + rejected``.
        embedded: rows that have their vectors.
        rejected: rows set aside.
        truncated: texts of which only the beginning was read.
        tokens: that were computed.
        tokens_per_second: over the whole run.
        share: of all input that is done, what earlier runs did included, from 0 to 1, by bytes.
        seconds: since the run began.
        seconds_left: at this run's own pace; None while there is nothing to tell it by.
        waiting: for what other processes have in hand.
    """

    rows: int
    embedded: int
    rejected: int
    truncated: int
    tokens: int
    tokens_per_second: float
    share: float
    seconds: float
    seconds_left: float | None
    waiting: bool = False

    def __str__(self) -> str:
        parts = [counted(self.rows, "row"), f"{self.tokens_per_second:,.0f} tokens/s"]
        parts += [f"{self.truncated:,} truncated"] if self.truncated else []
        parts += [f"{self.rejected:,} rejected"] if self.rejected else []
        parts += [f"{duration(self.seconds_left)} left"] if self.seconds_left is not None else []
        parts += ["waiting for other processes"] if self.waiting else []
        return ", ".join(parts)


class Watch:
    """Counts what a run does, and tells it on.

    Args:
        sizes: bytes of each input, by its name.
        tell: True is a bar on stderr if that is a terminal, else a line every :data:`LINE_EVERY` seconds; False is
            nothing; or what is called with a :class:`Progress` after each step.
    """

    def __init__(self, sizes: dict[str, int], tell: bool | Callable[[Progress], object]) -> None:
        self.sizes = sizes
        self.behind = dict.fromkeys(sizes, 0.0)
        self.begun = time.monotonic()
        self.worked = 0.0
        self.embedded = self.rejected = self.truncated = self.tokens = 0
        self.waiting = False
        self._close: Callable[[], object] = lambda: None
        self._tell = self._teller(tell)

    def passed(self, name: str, share: float) -> None:
        """So much of an input is behind, which somebody else did."""
        self.behind[name] = max(self.behind[name], share * self.sizes[name])

    def done(self, name: str, share: float, *, embedded: int, rejected: int, truncated: int, tokens: int) -> None:
        """A step of this run: how far it has come in an input, and what it did since the last step."""
        self.waiting = False
        before = self.behind[name]
        self.passed(name, share)
        self.worked += self.behind[name] - before
        self.embedded += embedded
        self.rejected += rejected
        self.truncated += truncated
        self.tokens += tokens
        self._tell(self.now())

    def wait(self) -> None:
        """Nothing is left but what other processes have in hand."""
        self.waiting = True
        self._tell(self.now())

    def now(self) -> Progress:
        """Where the run stands."""
        seconds = time.monotonic() - self.begun
        total, behind = sum(self.sizes.values()), sum(self.behind.values())
        return Progress(
            rows=self.embedded + self.rejected,
            embedded=self.embedded,
            rejected=self.rejected,
            truncated=self.truncated,
            tokens=self.tokens,
            tokens_per_second=self.tokens / seconds if seconds else 0.0,
            share=behind / total if total else 1.0,
            seconds=seconds,
            seconds_left=seconds * (total - behind) / self.worked if self.worked else None,
            waiting=self.waiting,
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._close()

    def _teller(self, tell: bool | Callable[[Progress], object]) -> Callable[[Progress], object]:
        if callable(tell):
            return tell
        if not tell:
            return lambda progress: None
        return self._bar() if sys.stderr.isatty() else every(LINE_EVERY, _line)

    def _bar(self) -> Callable[[Progress], object]:
        from tqdm.auto import tqdm

        bar: Any = tqdm(total=1, desc="embedding", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}")
        self._close = bar.close

        def show(progress: Progress) -> None:
            bar.n = progress.share
            bar.set_postfix_str(str(progress))

        return show


def every(seconds: float, tell: Callable[[Progress], object]) -> Callable[[Progress], None]:
    """Pass on one progress in so many seconds, the first after as many."""
    last = time.monotonic()

    def seldom(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(progress)

    return seldom


def _line(progress: Progress) -> None:
    sys.stderr.write(f"{progress.share:.1%}: {progress}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
