"""What came of an update, and the list of what was set aside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from valuembed._utils.atomic import replace_text
from valuembed.errors import OutputError


@dataclass(frozen=True)
class DocumentsSummary:
    """What came of an update.

    Attributes:
        documents: that the store holds passages of.
        passages: that it holds.
        added, changed, removed: documents that this run found new, in another state, or no longer.
        unchanged: documents that are as they were; those that were only touched count here.
        rejected: documents and other files that are set aside.
        embedded: passages that this run embedded.
        truncated: passages of which only the beginning was read.
        tokens: that were computed.
        seconds: time for all of it.
        width, precision: of a stored vector.
        first_rejected: name and reason of the first that is set aside; None where there is none.
    """

    documents: int
    passages: int
    added: int
    changed: int
    removed: int
    unchanged: int
    rejected: int
    embedded: int
    truncated: int
    tokens: int
    seconds: float
    width: int
    precision: str
    first_rejected: str | None = None


def list_rejected(path: Path | None, rejected: Mapping[str, str]) -> None:
    """Write the list of what is set aside, a line of JSON each, or remove it where there is nothing.

    Args:
        path: of the list; None is nowhere.
        rejected: reasons by name.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None:
        return
    if not rejected:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove {path}: {error.strerror or error}") from error
        return
    lines = [json.dumps({"file": name, "reason": reason}, ensure_ascii=False) for name, reason in rejected.items()]
    replace_text(path, "".join(f"{line}\n" for line in lines))
