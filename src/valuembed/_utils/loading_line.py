"""A line that says that a model is being loaded, for as long as that takes. Only the command line asks for one."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from pathlib import PurePath

LATE = 60.0
"""Seconds after which a log is told too."""

_ERASE = "\r\x1b[K"


class LoadingLine:
    """On a terminal it stands there at once and is gone when the model is there; a log gets it when that takes long."""

    def __init__(self) -> None:
        self._on_screen = False
        self._late: threading.Timer | None = None

    def begin(self, model: str) -> None:
        """Show it.

        Args:
            model: its name; of a path, the last part is shown.
        """
        self.end()
        name = model if model.count("/") < 2 else PurePath(model).name
        if sys.stderr.isatty():
            # The cursor goes back, so that what others print in the meantime takes the line's place.
            sys.stderr.write(f"{_ERASE}loading {name} ...\r")
            sys.stderr.flush()
            self._on_screen = True
            return
        self._late = threading.Timer(LATE, _write, (f"still loading {name} ...\n",))
        self._late.daemon = True
        self._late.start()

    def end(self) -> None:
        """Take it away, if it is there."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if self._on_screen:
            self._on_screen = False
            _write(_ERASE)


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # whoever watched may be gone
        sys.stderr.write(text)
        sys.stderr.flush()


LINE = LoadingLine()
"""The one line: whatever builds a model ends it."""
