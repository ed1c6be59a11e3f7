"""Every error this library raises on purpose, and every kind of warning it gives.

ValuembedError
├── RecipeError            (ValueError)    a method, signal, alignment or combination that means nothing
│   ├── LayerError                         layers that do not exist, hold no values, or differ in width
│   ├── OptionError        (TypeError)     a keyword argument that a function does not take
│   └── TemplateError                      a template without its one ``{text}``, or an unknown name
├── InputError             (ValueError)    texts or data files that cannot be embedded
│   ├── DocumentError                      a document that cannot be read
│   ├── TextTooLongError                   a text that is too long and may not be cut
│   ├── UnknownTokenError                  texts with tokens for which a model has no embedding
│   ├── UnknownRowError                    a key that no row of an index has
│   └── IndexUnavailableError              an index that cannot be read, or not any more
├── UnsupportedModelError  (ValueError)    a model whose attention values cannot be read
├── DeviceError            (ValueError)    a device that does not exist, or that this machine does not have
├── CheckpointError        (OSError)       weights or files that are missing, damaged or refused
├── OutputError            (OSError)       results that cannot be written
├── ClusterError           (RuntimeError)  a cluster that is not there, has too little room, or loses its workers
├── ReadingError           (RuntimeError)  a forward pass that did not deliver what was asked
│   └── NotFiniteError                     vectors that are NaN or infinite
├── ServingError           (RuntimeError)  a server whose model thread takes no requests
├── TextFailed                             one text of a request that failed, and why
├── RequestError                           a request that is answered with an error of its HTTP status
└── MissingExtraError      (ImportError)   an optional dependency that is not installed

Each message echoes what was given and says what is legal or what to do.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from valuembed._utils.text import counted


class ValuembedError(Exception):
    """Base class: ``except ValuembedError`` catches what this library raises on purpose."""


class RecipeError(ValuembedError, ValueError):
    """The choices of a recipe do not fit together, or one of them is unknown."""


class LayerError(RecipeError):
    """The layers asked for do not exist, hold no values, or cannot be averaged."""


class OptionError(RecipeError, TypeError):
    """A keyword argument is none that the function takes."""


class TemplateError(RecipeError):
    """A template is unknown or does not hold exactly one ``{text}``."""


class InputError(ValuembedError, ValueError):
    """A text, or a file of texts, cannot be embedded; the message names the rows."""


class DocumentError(InputError):
    """A document cannot be read; the message is the reason, and does not name the file."""


class TextTooLongError(InputError):
    """A text is longer than the model takes, and may not be cut."""


class UnknownTokenError(InputError):
    """Texts hold tokens for which the model has no embedding; the message names the rows.

    Attributes:
        reasons: by row, a phrase that completes "the text ...".
    """

    reasons: Mapping[int, str] = {}

    @classmethod
    def of(cls, reasons: Mapping[int, str], texts: int) -> UnknownTokenError:
        """For some of so many texts."""
        listed = "; ".join(f"row {row} {reason}" for row, reason in list(reasons.items())[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        error = cls(f"{len(reasons)} of {counted(texts, 'text')} cannot be embedded: {listed}{more}")
        error.reasons = dict(reasons)
        return error

    def moved(self, start: int, texts: int) -> UnknownTokenError:
        """The same where the rows began at ``start`` of so many texts."""
        return self.of({start + row: reason for row, reason in self.reasons.items()}, texts)


class UnknownRowError(InputError):
    """No row of an index has the key that was given."""


class IndexUnavailableError(InputError):
    """An index cannot be read: it is gone, damaged or out of reach, or has become one of another model."""


class UnsupportedModelError(ValuembedError, ValueError):
    """The model's attention values cannot be read, or not exactly."""


class DeviceError(ValuembedError, ValueError):
    """A device does not exist, or this machine does not have it."""


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


class ServingError(ValuembedError, RuntimeError):
    """The model thread of a server takes no requests: it has stopped, is stuck, or has died."""


class TextFailed(ValuembedError):
    """One text of a request could not be embedded.

    Args:
        index: which of the request's texts.
        cause: what was raised for it.
    """

    def __init__(self, index: int, cause: Exception) -> None:
        super().__init__(f"text {index}: {cause}")
        self.index = index
        self.cause = cause


class RequestError(ValuembedError):
    """A request to a server is answered with an error.

    Args:
        status: of HTTP.
        message: for the client alone; it may repeat what the client sent, so it never enters a log.
        code: a word for programs.
        param: the field of the request that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers or {}


class MissingExtraError(ValuembedError, ImportError):
    """An optional dependency is not installed; the message is the line that installs it."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model takes and lost their ends."""


class VocabularyWarning(UserWarning):
    """The tokenizer of a model knows ids for which the model has no embedding."""


class BlankTextWarning(UserWarning):
    """Blank texts were embedded as the template around nothing."""


class UnusedModulesWarning(UserWarning):
    """A model was saved by sentence-transformers with modules, such as its pooling, that are not used."""


def trace_of(error: BaseException) -> str:
    """Type and places of an error for a log, without its message, which may repeat a text."""
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__} at {places}"
