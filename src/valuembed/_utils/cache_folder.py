"""Where results are kept that would take time to find again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "VALUEMBED_CACHE"
"""Environment variable that names the folder for what is kept; empty for none."""


def cache_folder() -> Path | None:
    """The folder for what is kept, which may not exist yet; None where nothing is to be kept."""
    named = os.environ.get(CACHE_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    own = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, usual = own.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    try:
        return Path(os.environ.get(variable) or Path.home() / usual) / "valuembed"
    except RuntimeError:  # there is no home
        return None
