"""``valuembed.calibration``, which early saved folders name."""

from valuembed.models.calibration import Calibration

__all__ = ["Calibration"]
