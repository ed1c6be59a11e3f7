"""Every error this library raises on purpose, and every kind of warning it gives.

ValuembedError
├── RecipeError            (ValueError)    a method, signal, alignment or combination that means nothing
│   ├── LayerError                         layers that do not exist, hold no values, or differ in width
│   └── TemplateError                      a template without its one ``{text}``, or an unknown name
├── InputError             (ValueError)    texts or data files that cannot be embedded
├── UnsupportedModelError  (ValueError)    a model whose attention values cannot be read
├── CheckpointError        (OSError)       weights or files that are missing, damaged or refused
├── OutputError            (OSError)       results that cannot be written
├── ClusterError           (RuntimeError)  a cluster that is not there, has too little room, or loses its workers
├── ReadingError           (RuntimeError)  a forward pass that did not deliver what was asked
│   └── NotFiniteError                     vectors that are NaN or infinite
└── MissingExtraError      (ImportError)   an optional dependency that is not installed

Each message echoes what was given and says what is legal or what to do.
"""

from __future__ import annotations


class ValuembedError(Exception):
    """Base class: ``except ValuembedError`` catches what this library raises on purpose."""


class RecipeError(ValuembedError, ValueError):
    """The five choices of a recipe do not fit together, or one of them is unknown."""


class LayerError(RecipeError):
    """The layers asked for do not exist, hold no values, or cannot be averaged."""


class TemplateError(RecipeError):
    """A template is unknown or does not hold exactly one ``{text}``."""


class InputError(ValuembedError, ValueError):
    """A text, or a file of texts, cannot be embedded; the message names the rows."""


class UnsupportedModelError(ValuembedError, ValueError):
    """The model's attention values cannot be read, or not exactly."""


class CheckpointError(ValuembedError, OSError):
    """A checkpoint's files are missing, damaged, or refused for safety."""


class OutputError(ValuembedError, OSError):
    """A result cannot be written where it was asked to go."""


class ClusterError(ValuembedError, RuntimeError):
    """A cluster cannot be reached, has no room for what is asked of it, or loses its workers again and again."""


class ReadingError(ValuembedError, RuntimeError):
    """A forward pass did not report what the recipe needs, or reported numbers that are not finite."""


class NotFiniteError(ReadingError):
    """Vectors came out NaN or infinite; the message names the rows."""


class MissingExtraError(ValuembedError, ImportError):
    """An optional dependency is not installed; the message is the line that installs it."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes and lost their ends."""


class BlankTextWarning(UserWarning):
    """Blank texts were embedded as the template around nothing."""
