"""What lies in a folder, for tests of what is written there."""

from __future__ import annotations

from pathlib import Path


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, with its text; folders that are empty count."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: path.read_text() if path.is_file() else ""
        for name, path in found.items()
        if path.is_file() or not any(path.iterdir())
    }
