"""The map of an index for whoever answers requests: made when it is first asked for, and again after changes."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from valuembed.search.live_index import LiveIndex
from valuembed.search.map_file import CorpusMap, places_for, writable_place

logger = logging.getLogger(__name__)

LEAST_SECONDS = 60.0
"""Between two attempts, so that an index that changes all the time, or fails, does not keep a core busy."""

MAKE = "from valuembed.search.map_job import run; run()"


class LiveMap:
    """The map of an index; every method may be called from any thread.

    Args:
        index: that it is of.
    """

    def __init__(self, index: LiveIndex) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._map: CorpusMap | None = None
        self._looked = False
        self._job: _Job | None = None
        self._failed = False

    def find(self) -> tuple[CorpusMap | None, dict[str, Any]]:
        """The map as far as there is one, and what is going on; begins to make it where it is missing or out of date.

        Returns:
            The latest map, or None; and ``{"state", "step", "done"}``: ``ready``, ``making`` or ``failed``; while it is
            made, the step and how much of that is done, from 0 to 1.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        state = self._index.state
        with self._lock:
            if self._job is not None and not self._job.is_running:
                self._take(self._job)
            if self._map is None and not self._looked:
                self._looked = True
                self._map = _kept(self._index.address, state)
            if self._map is not None and self._map.state == state:
                return self._map, {"state": "ready", "step": None, "done": None}
            if self._job is None or (not self._job.is_running and self._job.age > LEAST_SECONDS):
                self._job, self._failed = _Job(self._index.address), False
            if self._job.is_running:
                return self._map, {"state": "making", **self._job.told}
            return self._map, {"state": "failed" if self._failed else "ready", "step": None, "done": None}

    def passages(self, keys: list[str]) -> list[dict[str, Any] | None]:
        """Rows by their keys, as plain data; None for one that is gone."""
        return self._index.passages(keys)

    def close(self) -> None:
        """End what is being made."""
        with self._lock:
            if self._job is not None:
                self._job.end()

    def _take(self, job: _Job) -> None:
        """What a job left, once."""
        if job.taken:
            return
        job.taken = True
        found = CorpusMap.load(job.path)
        if not job.is_kept:
            with suppress(OSError):
                job.path.unlink()
        self._failed = found is None
        if found is None:
            logger.warning("the map of the index could not be made: the process ended with status %s", job.status)
        else:
            self._map = found


class _Job:
    """A process that makes a map."""

    def __init__(self, address: str) -> None:
        self._since = time.monotonic()
        self.taken = False
        self.told: dict[str, Any] = {"step": "reading", "done": 0.0}
        place = writable_place(address)
        self.is_kept = place is not None
        if place is None:
            number, name = tempfile.mkstemp(suffix=".npz")
            os.close(number)
            place = Path(name)
        self.path = place
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", MAKE, address, str(place)],
            stdin=quiet,
            stdout=subprocess.PIPE,
            stderr=quiet,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def is_running(self) -> bool:
        return self._listener.is_alive()

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._since

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def end(self) -> None:
        self._process.terminate()
        self._listener.join(5)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
                    self.told = json.loads(line)
        self._process.wait()


def _kept(address: str, state: str) -> CorpusMap | None:
    """The map that an earlier server left: the one of this state, else any."""
    found = [kept for path in places_for(address) if (kept := CorpusMap.load(path))]
    return next((kept for kept in found if kept.state == state), found[0] if found else None)
