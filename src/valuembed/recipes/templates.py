"""Prompt templates: the named ones, their slots, and where the text stands in the rendered string.

A template is a string with exactly one ``{text}``, the text that is embedded. It may also hold one ``{prompt}``,
where an instruction goes (without it an instruction goes first), and one ``{echo}``, an earlier copy of the text
that is only read past. Any other brace is an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from valuembed.errors import TemplateError

PROMPT_EOL = 'This sentence : "{text}" means in one word:"'

# Eight task prompts in MetaEOL's scheme, each ending in PromptEOL's manner. The wording is ours.
_META_EOL_TASKS = (
    ("name the topic that a sentence is about", "For the topic"),
    ("tell whether a sentence states a fact or an opinion", "For fact or opinion"),
    ("rate a sentence from very bad to very good", "For the rating"),
    ("name the emotion that a sentence conveys", "For the emotion"),
    ("restate a sentence in other words", "As a paraphrase"),
    ("find a word that could stand for a sentence in its context", "As a synonym"),
    ("find the key fact that a sentence reports", "For the key fact"),
    ("find the entities in a sentence and how they relate", "For entities and relations"),
)
META_EOL = tuple(
    f"In this task, {task}. {answer}, {PROMPT_EOL[0].lower()}{PROMPT_EOL[1:]}" for task, answer in _META_EOL_TASKS
)

TEMPLATES: dict[str, str | tuple[str, ...]] = {
    "none": "{text}",
    "prompt_eol": PROMPT_EOL,
    # The wording is ours: the source says what the prompt asks for, not in which words.
    "future_eol": 'This sentence : "{text}" will be followed by , in one word:"',
    "pretended_cot": 'After thinking step by step , this sentence : "{text}" means in one word:"',
    "knowledge": (
        "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
        "additional but less central details. With this in mind , " + PROMPT_EOL[0].lower() + PROMPT_EOL[1:]
    ),
    "echo": "Rewrite the sentence: {echo}, rewritten sentence: {text}",
    "meta_eol": META_EOL,
}
"""Every template with a name. ``"chat"`` is added per model: it comes from the tokenizer's own chat template."""

ROLES = ("query", "document")
"""What ``encode_query`` and ``encode_document`` set; any other call has no role."""

TemplateSpec = str | Sequence[str] | None

_SLOT = re.compile(r"\{(text|prompt|echo)\}")


@dataclass(frozen=True)
class Rendered:
    """A template around one text.

    Attributes:
        string: what is tokenized, whole.
        text: character range ``[start, end)`` of the text in ``string``.
        echo: the same for the earlier copy of the text, where the template has one.
    """

    string: str
    text: tuple[int, int]
    echo: tuple[int, int] | None = None


@dataclass(frozen=True)
class Template:
    """A checked template, split at its slots.

    Attributes:
        source: the string as the user gave it.
        pieces: literal strings and slots in turn: literal, slot, literal, ..., literal.
    """

    source: str
    pieces: tuple[str, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Check the slots of a template string.

        Raises:
            TemplateError: not exactly one ``{text}``, more than one ``{prompt}`` or ``{echo}``, or an ``{echo}``
                after the text (a decoder reads from the left, so the copy that is read has to be the later one).
        """
        if not isinstance(source, str):
            raise TemplateError(f"a template is a string with one {{text}}, got {type(source).__name__}: {source!r}")
        pieces = tuple(_SLOT.split(source))
        slots = pieces[1::2]
        for slot, least, most in (("text", 1, 1), ("prompt", 0, 1), ("echo", 0, 1)):
            if not least <= slots.count(slot) <= most:
                wanted = "exactly one" if least else "at most one"
                raise TemplateError(f"template {source!r} holds {slots.count(slot)} {{{slot}}}; it needs {wanted}")
        if "echo" in slots and slots.index("echo") > slots.index("text"):
            raise TemplateError(f"template {source!r}: {{echo}} has to stand before {{text}}, the copy that is read")
        return cls(source, pieces)

    @property
    def literals(self) -> tuple[str, ...]:
        """The constant strings between the slots."""
        return self.pieces[0::2]

    @property
    def copies(self) -> int:
        """How often the text stands in it."""
        return sum(slot in ("text", "echo") for slot in self.pieces[1::2])

    def with_literals(self, literals: Sequence[str]) -> Template:
        """The same slots between other constant strings."""
        pieces = list(self.pieces)
        pieces[0::2] = literals
        return Template(self.source, tuple(pieces))


@lru_cache(maxsize=256)
def parse_template(source: str) -> Template:
    """:meth:`Template.parse`, remembered: one template serves a whole corpus."""
    return Template.parse(source)


def resolve_templates(spec: TemplateSpec) -> tuple[str, ...]:
    """Turn a name, a string or a list of either into template strings.

    Returns:
        One string or several; several mean that their raw vectors are averaged.

    Raises:
        TemplateError: an unknown name, a string without its one ``{text}``, or an empty list.
    """
    if spec is None:
        spec = "none"
    if isinstance(spec, str):
        named = TEMPLATES.get(spec, spec if _SLOT.search(spec) else None)
        if named is None:
            raise TemplateError(
                f"template {spec!r} is unknown; give one of {', '.join(TEMPLATES)}, chat (for models that have a "
                "chat template, in load()), or a string with one {text}"
            )
        strings = (named,) if isinstance(named, str) else named
    elif isinstance(spec, Sequence):
        if not spec:
            raise TemplateError('template=[] holds no template; give "none" to embed the text alone')
        strings = tuple(string for part in spec for string in resolve_templates(part))
    else:
        raise TemplateError(f"a template is a name, a string or a list of strings, got {type(spec).__name__}: {spec!r}")
    for string in strings:
        parse_template(string)
    return strings


def check_roles(spec: Mapping[str, TemplateSpec]) -> None:
    """Raise unless every key of a per-role template is a role or ``"default"``.

    Raises:
        TemplateError: naming the unknown key and the legal ones.
    """
    legal = (*ROLES, "default")
    for role in spec:
        if role not in legal:
            raise TemplateError(f"template: role {role!r} is unknown; roles are {', '.join(legal)}")
