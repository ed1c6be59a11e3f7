"""Conditions that a client sends to a server: only those are let through that cannot bring its process down.

The engine behind an index plans a condition by calls within calls, so that a long chain of operators overflows its
stack; and some functions make texts of any size of a short one.
"""

from __future__ import annotations

import re
from itertools import pairwise

from valuembed._utils.text import counted
from valuembed.errors import InputError

MOST_CHARACTERS = 10_000

MOST_TOKENS = 400
"""Beside lists of constants, which are not nested. The engine's stack overflows at some 500 operators and more."""

FUNCTIONS = frozenset(
    {
        "abs",
        "btrim",
        "cast",
        "ceil",
        "char_length",
        "character_length",
        "coalesce",
        "contains",
        "date_part",
        "date_trunc",
        "ends_with",
        "floor",
        "left",
        "length",
        "lower",
        "ltrim",
        "now",
        "nullif",
        "octet_length",
        "regexp_like",
        "right",
        "round",
        "rtrim",
        "starts_with",
        "strpos",
        "substr",
        "substring",
        "to_date",
        "to_timestamp",
        "trim",
        "try_cast",
        "upper",
    }
)
"""What may be called: nothing whose result can be many times longer than what it is given."""

_WORDS = frozenset(
    {
        "all",
        "and",
        "any",
        "as",
        "between",
        "by",
        "case",
        "else",
        "end",
        "from",
        "in",
        "is",
        "like",
        "ilike",
        "not",
        "or",
        "similar",
        "then",
        "to",
        "when",
    }
)
"""Words that a parenthesis may follow without being a call."""

_TYPES = frozenset({"char", "decimal", "numeric", "time", "timestamp", "varchar"})
"""Types that take a size."""

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>--|/\*)
  | (?P<string>'(?:[^']|'')*')
  | (?P<name>"(?:[^"]|"")*"|`[^`]*`)
  | (?P<word>[^\W\d]\w*)
  | (?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)
  | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)

_LISTED = re.compile(r",\s*(?:'(?:[^']|'')*'|-?\d+(?:\.\d*)?)(?=\s*[,)])")
"""A constant of a list, but for the first."""


def check_client_filter(where: str) -> None:
    """Raise on a condition that could do harm; whether it means anything is for the index to say.

    Args:
        where: of a search, in SQL.

    Raises:
        InputError: it is too long, calls what is not in :data:`FUNCTIONS`, or has comments or strings of other kinds.
    """
    if len(where) > MOST_CHARACTERS:
        raise InputError(f"the filter has {counted(len(where), 'character')}; at most {MOST_CHARACTERS:,} are taken")
    tokens = [(str(match.lastgroup), match[0]) for match in _TOKEN.finditer(where)]
    before = ("space", "")
    for kind, text in tokens:
        if kind == "comment":
            raise _refused(where, "it has a comment; leave that out")
        if kind == "string" and (before[0] in ("word", "number", "string") or before[1] == "&"):
            raise _refused(where, f"a letter stands before the text {text:.40}; write texts as 'text'")
        if kind == "sign" and text in ("$", "\\", "'"):
            raise _refused(where, f"{text} stands outside of a text; write texts as 'text', with '' for one quote")
        before = (kind, text)
    told = [(kind, text) for kind, text in tokens if kind != "space"]
    for (kind, text), (_, following) in pairwise(told):
        word = text.lower()
        is_word = kind == "word" and word in {*FUNCTIONS, *_WORDS, *_TYPES}
        if following == "(" and kind in ("word", "name") and not is_word:
            raise _refused(where, f"{text:.40} cannot be called; legal: {', '.join(sorted(FUNCTIONS))}")
    count = len(told) - 2 * len(_LISTED.findall(where))
    if count > MOST_TOKENS:
        words = counted(count, "word and sign", "words and signs")
        raise _refused(where, f"it has {words} beside lists; at most {MOST_TOKENS} are taken")


def _refused(where: str, reason: str) -> InputError:
    return InputError(f"the filter {where!r:.200} is not taken: {reason}")
