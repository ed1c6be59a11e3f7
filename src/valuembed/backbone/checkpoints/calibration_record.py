"""What a calibration is and what it was fitted on, as a saved folder records it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from valuembed.backbone.checkpoints.location import Checkpoint
from valuembed.errors import CheckpointError, RecipeError
from valuembed.recipes import Recipe, recipe_differences

CALIBRATION_TYPE = "valuembed.modules.Calibration"
EARLY_CALIBRATION_TYPE = "valuembed.calibration.Calibration"
"""In modules.json of a saved model, and of one that was saved before the package had rooms."""
CALIBRATION_FILE, _MODULES_FILE = "config.json", "modules.json"


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What a calibration is and what it was fitted on; saved beside its numbers.

    Attributes:
        kind: one of :data:`valuembed.models.KINDS`.
        recipe: whose vectors it takes, with absolute layers.
        width, size: of the vectors that go in and come out.
        shrinkage: of whitening; None for other kinds.
        texts: how many different texts it was fitted on; 0 for the filter.
        corpus: digest of these texts, 16 hex digits; None for the filter.
    """

    kind: str
    recipe: Recipe
    width: int
    size: int
    shrinkage: float | None = None
    texts: int = 0
    corpus: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; ``CalibrationRecord.from_dict(record.to_dict()) == record``."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CalibrationRecord:
        """A record from plain data.

        Raises:
            RecipeError: a key is unknown or missing.
        """
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(data)):
            raise RecipeError(f"a calibration records {', '.join(sorted(names))}; unknown or missing: {wrong}")
        return cls(**{**data, "recipe": Recipe.from_dict(data["recipe"])})

    def __str__(self) -> str:
        kind = f"{self.kind}, shrinkage {self.shrinkage:g}" if self.shrinkage is not None else self.kind
        fitted = f"fitted on {self.texts:,} texts" if self.texts else "from the language model head"
        return f"{kind}, {self.width} numbers to {self.size}, {fitted}"


def read_record(checkpoint: Checkpoint) -> CalibrationRecord | None:
    """How a saved model was calibrated, found out without loading it; None where it was not.

    Raises:
        CheckpointError: the files that say so are missing or damaged.
    """
    path = checkpoint.file(_MODULES_FILE)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            folder = next(
                (
                    module["path"]
                    for module in json.load(file)
                    if module["type"] in (CALIBRATION_TYPE, EARLY_CALIBRATION_TYPE)
                ),
                None,
            )
        if folder is None:
            return None
        config = checkpoint.file(f"{folder}/{CALIBRATION_FILE}")
        if config is None:
            raise CheckpointError(f"model {checkpoint.name!r}: its calibration {folder} is missing")
        with open(config, encoding="utf-8") as file:
            return CalibrationRecord.from_dict(json.load(file))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"model {checkpoint.name!r}: its calibration is damaged: {error}") from error


def check_recipe(record: CalibrationRecord, recipe: Recipe, name: str, source: str) -> None:
    """Whether a calibrated model is asked for what it was calibrated for; its name and its origin's are for the error.

    Raises:
        RecipeError: it is another one, naming the choices that differ.
    """
    found = recipe_differences(record.recipe, recipe)
    different = [f"{name} {made!r}, asked for is {asked!r}" for name, (made, asked) in found.items()]
    if different:
        raise RecipeError(
            f"model {name!r} was calibrated ({record.kind}) for {record.recipe.method} with {'; '.join(different)}. "
            f"Load it without method, layers, template and cleaning, or load {source!r} and calibrate that"
        )
