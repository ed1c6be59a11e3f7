"""Where a long job stands, for those who watch it: a bar on a terminal, lines in a log, or a call for each step."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm

from valuembed._utils.streams import is_watched, stderr_is_open
from valuembed._utils.text import counted

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
        unit: what is counted as rows.
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
    unit: str = "row"

    def __str__(self) -> str:
        parts = [counted(self.rows, self.unit), f"{self.tokens_per_second:,.0f} tokens/s"]
        parts += [f"{self.truncated:,} truncated"] if self.truncated else []
        parts += [f"{self.rejected:,} rejected"] if self.rejected else []
        parts += [f"{duration(self.seconds_left)} left"] if self.seconds_left is not None else []
        parts += ["waiting for other processes"] if self.waiting else []
        return ", ".join(parts)


class ProgressTracker:
    """Counts what a run does, and tells it on.

    Args:
        sizes: bytes of each input, by its name.
        tell: True is a bar on stderr if that is a terminal, else a line every :data:`LINE_EVERY` seconds; False is
            nothing; or what is called with a :class:`Progress` after each step.
        unit: what is counted.
    """

    def __init__(self, sizes: dict[str, int], tell: bool | Callable[[Progress], object], unit: str = "row") -> None:
        self.sizes = sizes
        self.unit = unit
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
        counts = {"embedded": embedded, "rejected": rejected, "truncated": truncated, "tokens": tokens}
        self.all_done({name: share}, **counts)

    def all_done(
        self, shares: Mapping[str, float], *, embedded: int, rejected: int, truncated: int, tokens: int
    ) -> None:
        """A step of this run through several inputs, each with how far it has come."""
        self.waiting = False
        before = sum(self.behind[name] for name in shares)
        for name, share in shares.items():
            self.passed(name, share)
        self.worked += sum(self.behind[name] for name in shares) - before
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
            unit=self.unit,
        )

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._close()

    def _teller(self, tell: bool | Callable[[Progress], object]) -> Callable[[Progress], object]:
        if callable(tell):
            return tell
        if not tell:
            return lambda progress: None
        return self._bar() if is_watched() else every(LINE_EVERY, _line)

    def _bar(self) -> Callable[[Progress], object]:
        bar: Any = tqdm(total=1, desc="embedding", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}")
        self._close = bar.close

        def show(progress: Progress) -> None:
            bar.n = progress.share
            bar.set_postfix_str(str(progress))

        return show


_steps: ContextVar[Callable[[int], object] | None] = ContextVar("_steps", default=None)


@contextmanager
def watching_steps(tell: Callable[[int], object]) -> Iterator[None]:
    """Have a model that is called in the block tell after each of its steps how many texts it has embedded."""
    before = _steps.set(tell)
    try:
        yield
    finally:
        _steps.reset(before)


def step_done(texts: int) -> None:
    """Tell whoever watches that a step of so many texts is done."""
    if (tell := _steps.get()) is not None:
        tell(texts)


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
    if not stderr_is_open():
        return
    sys.stderr.write(f"{progress.share:.1%}: {progress}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def track(show: bool, over: Any = None, **about: Any) -> Any:
    """A bar on stderr if that is a terminal; elsewhere a line every :data:`LINE_EVERY` seconds while it is open.

    The lines come from a thread: a step may take longer than a reader of a log waits for a sign of life.

    Args:
        show: whether to show anything.
        over: what is gone through; None where the steps are counted with ``update``.
        about: arguments of ``tqdm``: ``total``, ``desc``, ``unit``, ``leave``.

    Returns:
        A ``tqdm``, to be gone through or used in a ``with`` block.
    """
    if show and stderr_is_open() and not is_watched():
        return _Counted(over, **about)
    return tqdm(over, disable=not (show and stderr_is_open()), **about)


def text_bar(texts: int, show: bool, unit: str = "text") -> Any:
    """A bar on stderr over the texts of a call, or what else it counts, as sentence-transformers shows one."""
    return tqdm(total=texts, desc=f"{unit.capitalize()}s", unit=unit, disable=not (show and stderr_is_open()))


class _Counted(tqdm):  # type: ignore[misc]
    """A bar that is not drawn; what it has counted is told by the lines of the log."""

    def __init__(self, over: Any, **about: Any) -> None:
        super().__init__(over, file=io.StringIO(), **about)
        _LINES.open(self)

    def display(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def close(self) -> None:
        super().close()
        _LINES.close(self)

    def __str__(self) -> str:
        total = f" of {self.total:,}" if self.total else ""
        note = f" ({self.postfix})" if self.postfix else ""
        return f"{self.desc}: {self.n:,}{total}{note}"


class _Lines:
    """Lines that say where the open bars stand, the outermost first."""

    def __init__(self) -> None:
        self._bars: list[_Counted] = []
        self._ended = threading.Event()

    def open(self, bar: _Counted) -> None:
        self._bars.append(bar)
        if len(self._bars) == 1:
            self._ended = threading.Event()
            threading.Thread(target=self._tell, args=(self._ended, time.monotonic()), daemon=True).start()

    def close(self, bar: _Counted) -> None:
        with suppress(ValueError):  # a bar may be closed twice
            self._bars.remove(bar)
        if not self._bars:
            self._ended.set()

    def _tell(self, ended: threading.Event, begun: float) -> None:
        while not ended.wait(LINE_EVERY):
            standing = ", ".join(map(str, list(self._bars)))
            with suppress(OSError, ValueError):  # whoever read the log may be gone
                sys.stderr.write(f"{standing}, {duration(time.monotonic() - begun)}\n")
                sys.stderr.flush()


_LINES = _Lines()
