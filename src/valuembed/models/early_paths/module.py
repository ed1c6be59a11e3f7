"""``valuembed.module``, which early saved folders name."""

from valuembed.models.value_transformer import ValueTransformer

__all__ = ["ValueTransformer"]
