"""A model's chat template, as a template for texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from valuembed.errors import TemplateError
from valuembed.recipes import TEMPLATES, TemplateSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"


def names_chat(spec: Any) -> bool:
    """Whether a template of any form names the model's chat template somewhere."""
    if isinstance(spec, str):
        return spec == CHAT or spec.startswith(f"{CHAT}:")
    parts = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, Sequence) else ()
    return any(names_chat(part) for part in parts)


def expand_chat(spec: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Replace ``"chat"`` and ``"chat:NAME"`` by the tokenizer's chat template around the text or around template NAME.

    The text stands in the user's turn, the assistant's turn is opened, and a BOS that the tokenizer adds by itself is
    not written twice. Other templates are returned as they are.

    Args:
        spec: whatever :func:`valuembed.load` takes as ``template``.
        tokenizer: the model's.

    Raises:
        TemplateError: the tokenizer has no chat template, or NAME is unknown.
    """
    if isinstance(spec, Mapping):
        return {role: expand_chat(part, tokenizer) for role, part in spec.items()}
    if isinstance(spec, str):
        return _chat_template(spec, tokenizer) if names_chat(spec) else spec
    if isinstance(spec, Sequence):
        return [expand_chat(part, tokenizer) for part in spec]
    return spec


def _chat_template(spec: str, tokenizer: PreTrainedTokenizerBase) -> TemplateSpec:
    if not tokenizer.chat_template:
        raise TemplateError(f"template {spec!r}: this model's tokenizer has no chat template")
    name = spec.removeprefix(CHAT).removeprefix(":") or "none"
    inner = TEMPLATES.get(name)
    if not isinstance(inner, str):
        legal = ", ".join(name for name, value in TEMPLATES.items() if isinstance(value, str))
        raise TemplateError(f"template {spec!r}: {name!r} cannot stand in a chat; legal: {legal}")
    turns = [{"role": "user", "content": "{prompt}" + inner}]
    string = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return str(string).removeprefix(bos) if adds_bos and bos else str(string)
