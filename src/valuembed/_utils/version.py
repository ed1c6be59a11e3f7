"""The version of this library, for whatever records what made it."""

__version__ = "0.1.0"
