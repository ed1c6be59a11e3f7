"""The sentence-transformers modules of saved models, under the paths that ``modules.json`` records for good."""

from valuembed.models import Calibration, ValueTransformer

__all__ = ["Calibration", "ValueTransformer"]
