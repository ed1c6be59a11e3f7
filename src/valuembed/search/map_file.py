"""A map of an index as it is kept: beside the index, or in the folder for what is kept where it cannot be written."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from valuembed._utils.cache_folder import cache_folder
from valuembed.vectors import is_remote

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
"""Grows when maps are made another way, so that those that are kept are made anew."""

NAME = "map.npz"


@dataclass(frozen=True)
class Area:
    """Rows of a map that are similar.

    Attributes:
        words: that tell it from the other areas, the most telling first.
        rows: how many of the map's rows it has.
        place: ``(x, y)``, where they crowd.
        examples: numbers of the rows next to that place.
    """

    words: tuple[str, ...]
    rows: int
    place: tuple[float, float]
    examples: tuple[int, ...]


@dataclass(frozen=True)
class CorpusMap:
    """A map of an index.

    Attributes:
        state: of the index when it was made, see :func:`state_of`.
        rows: of the index.
        keys: of the rows that are on the map, which may be a sample; a row's number is its place in this list.
        places: ``[b, 2]`` float32, from -1 to 1.
        area_of: ``[b]`` uint8, number of each row's area.
        areas: the largest first.
    """

    state: str
    rows: int
    keys: tuple[str, ...]
    places: NDArray[np.float32]
    area_of: NDArray[np.uint8]
    areas: tuple[Area, ...]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each key."""
        return {key: number for number, key in enumerate(self.keys)}

    @cached_property
    def version(self) -> str:
        """Differs between maps."""
        return sha256(f"{self.state}{self.places.tobytes()!r}".encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write it, in place of one that is there, all at once."""
        import numpy as np

        told: dict[str, Any] = {
            "format": FORMAT,
            "state": self.state,
            "rows": self.rows,
            "areas": [vars(area) for area in self.areas],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".map-{secrets.token_hex(6)}.tmp"
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file,
                    told=_bytes(json.dumps(told)),
                    keys=_bytes(json.dumps(self.keys)),
                    places=self.places,
                    area_of=self.area_of,
                )
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> CorpusMap | None:
        """The one that was written; None where there is none of this format."""
        import numpy as np

        try:
            # Opened here, for of what is no archive numpy would leave it open.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                told = json.loads(file["told"].tobytes())
                if told["format"] != FORMAT:
                    return None
                areas = tuple(
                    Area(tuple(area["words"]), area["rows"], tuple(area["place"]), tuple(area["examples"]))
                    for area in told["areas"]
                )
                keys = tuple(json.loads(file["keys"].tobytes()))
                return cls(told["state"], told["rows"], keys, file["places"], file["area_of"], areas)
        except (OSError, ValueError, KeyError, TypeError, BadZipFile, EOFError):
            return None


def places_for(address: str) -> list[Path]:
    """Files that may hold the map of an index, those first that are preferred; none where nothing is to be kept."""
    found = []
    if not is_remote(address):
        found.append(Path(address) / NAME)
    if folder := cache_folder():
        full = address if is_remote(address) else str(Path(address).resolve())
        found.append(folder / "maps" / f"{sha256(full.encode()).hexdigest()[:32]}.npz")
    return found


def writable_place(address: str) -> Path | None:
    """The file that a new map is written to; None where there is nowhere."""
    for path in places_for(address):
        folder = path.parent
        with suppress(OSError):
            if folder.name == "maps":
                folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return path
    return None


def state_of(version: int, rows: int) -> str:
    """What differs after a change of an index.

    Args:
        version: of its table.
        rows: how many it has.
    """
    return f"{version}:{rows}"


def _bytes(text: str) -> Any:
    import numpy as np

    return np.frombuffer(text.encode(), np.uint8)
