"""Chunks that fit into a model: a cutter of documents for the texts that it embeds."""

from __future__ import annotations

from collections.abc import Callable

from valuembed._utils.text import counted, inflected
from valuembed.errors import InputError
from valuembed.models import TextEncoder, ValueEncoder
from valuembed.recipes import check_takes_parts, parse_template
from valuembed.tokenization import Cutter


def cutter_for(model: object, tokens: int, overlap: int = 0, *, late: bool = False) -> Cutter:
    """A cutter for the texts that a model embeds as documents.

    Args:
        model: of :func:`valuembed.load`.
        tokens, overlap: as in :class:`valuembed.tokenization.Cutter`.
        late: the chunks are read from one pass over their document.

    Raises:
        InputError: numbers that mean nothing, or a chunk that does not fit into the model beside its template.
        RecipeError: the model's recipe has no vector of a part of a text that is run as a whole.
    """
    if not isinstance(model, (ValueEncoder, TextEncoder)):
        raise InputError(f"chunk={tokens}: documents are cut for a model of valuembed.load, not {type(model)}")
    if late:
        check_takes_parts(model.recipe, "late chunking")
    cutter = Cutter(model.reader.texts.tokenizer, tokens, overlap)
    check_room(model, tokens)
    return cutter


def token_counter(model: object, tokens: int, in_front: int = 0) -> Callable[[str], int]:
    """What counts the tokens of a text for a model whose passages are to have so many at most, and more in front.

    Raises:
        InputError: a number that means nothing, or a passage that does not fit into the model beside its template.
    """
    if not isinstance(model, (ValueEncoder, TextEncoder)):
        raise InputError(f"chunk={tokens}: documents are cut for a model of valuembed.load, not {type(model)}")
    if tokens < 1:
        raise InputError(f"chunk={tokens} has to be at least 1 token")
    check_room(model, tokens, in_front)
    tokenizer = model.reader.texts.tokenizer

    def count(text: str) -> int:
        ids = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, truncation=False, verbose=False
        ).input_ids
        return len(ids)

    return count


def check_room(model: ValueEncoder | TextEncoder, tokens: int, in_front: int = 0) -> None:
    """Raise an :class:`InputError` where a text of so many tokens does not fit beside the templates."""
    room = _room(model)
    if room is not None and tokens + in_front > room:
        headings = f"with {counted(in_front, 'token')} of headings in front, " if in_front else ""
        raise InputError(
            f"chunk={tokens}: {headings}beside the template, {counted(room, 'token')} of a text "
            f"{inflected(room, 'fits', 'fit')} into max_tokens={model.reader.max_tokens}; ask for smaller chunks"
        )


def _room(model: ValueEncoder | TextEncoder) -> int | None:
    """How many tokens of a text fit beside the longest of its templates; None without a limit."""
    reader = model.reader
    if reader.max_tokens is None:
        return None
    prompts = model.prompts
    name = next((name for name in ("document", "passage", "corpus") if name in prompts), model.default_prompt_name)
    prompt = prompts.get(name or "", "") or ""
    rooms = []
    for template in reader.recipe.templates_for("document"):
        copies = parse_template(template).copies
        row = reader.texts.rows(["a"], template, prompt, max_tokens=None)[0]
        rooms.append((reader.max_tokens - len(row.ids)) // copies + 1)
    return min(rooms)
