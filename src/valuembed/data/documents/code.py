"""Read programs: cut where definitions begin, which stand in the trail as headings do."""

from __future__ import annotations

import re
from itertools import accumulate

from valuembed.data.documents.extraction import Extraction, Heading, cleaned

_DEFINITION = re.compile(
    r"""(?P<indent>[ \t]*)
    (?:(?:export|default|pub(?:\([^)]*\))?|public|private|protected|static|async|abstract|final|sealed|unsafe|extern|
       inline|override|open|data|const|local|partial|internal|create|or\s+replace)\s+)*
    (?P<kind>def|class|func|fn|fun|function|interface|struct|enum|union|impl|trait|module|namespace|mod|protocol|
       extension|object|record|type|table|view|index|trigger|procedure|sub|macro_rules!|message|service|resource)
    \s+(?P<name>(?:if\s+not\s+exists\s+)?(?:\([^)]*\)\s*)?[\w.:$<>]+)""",
    re.X | re.I,
)
_TABLE = re.compile(r"\[{1,2}(?P<name>[^\[\]]+)\]{1,2}\s*$")
_FUNCTION = re.compile(
    r"(?!if\b|for\b|while\b|switch\b|return\b|else\b)[A-Za-z_][\w\s*&:<>,]*?\b(?P<name>[A-Za-z_][\w:~]*)\s*\([^;{}]*\)?[^;{}]*\{?\s*$"
)
_CLOSING = re.compile(
    r"[)\]}>]|end\b|fi\b|done\b|esac\b|EOF\b|else\b|elif\b|except\b|finally\b|catch\b|#\s*endif|#\s*else|{"
)
_DECORATOR = re.compile(r"\s*(?:@|#\[|//|\#|--|/?\*|\"\"\")")
_C_LIKE = frozenset((".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".java", ".cs", ".cu", ".m", ".mm"))
_TABLES = frozenset((".toml", ".ini", ".cfg", ".conf"))
_INNER = frozenset(
    (".py", ".pyi", ".pyx", ".pyw", ".rb", ".java", ".cs", ".ts", ".tsx", ".js", ".rs", ".kt", ".scala", ".php")
)
"""Kinds in which what is indented within a definition is a part of its own where it is a definition too."""


def read_code(text: str, ending: str) -> Extraction:
    """The text of a program as it stands.

    Args:
        text: of the file.
        ending: of its name, in lower case.
    """
    text = cleaned(text)
    lines = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    headings: list[Heading] = []
    blank = True
    for number, line in enumerate(lines):
        if found := _definition(line, ending, blank):
            level, title = found
            at = number
            # Comments and decorators above a definition belong to it.
            while at and _DECORATOR.match(lines[at - 1]) and starts[at - 1] >= (headings[-1].end if headings else 0):
                at -= 1
            headings.append(Heading(starts[at], starts[number] + len(line), level, title))
        blank = not line.strip() or bool(_CLOSING.match(line))
    marks = [(start, number) for number, start in enumerate(starts[:-1], 1)]
    return Extraction(text, None, headings, marks)


def _definition(line: str, ending: str, after_blank: bool) -> tuple[int, str] | None:
    """Level and title of the definition that a line begins."""
    if ending in _TABLES:
        found = _TABLE.match(line)
        return (1, found["name"].strip()) if found else None
    if ending == ".json":
        return None
    if found := _DEFINITION.match(line):
        depth = len(found["indent"].expandtabs(4))
        if depth == 0 or (depth <= 4 and ending in _INNER):
            return 1 + (depth > 0), f"{found['kind'].lower()} {found['name'].strip().rstrip(':<')}"
        return None
    if ending in _C_LIKE and after_blank and (found := _FUNCTION.match(line)):
        return 1, found["name"]
    return None
