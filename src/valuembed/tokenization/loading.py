"""A checkpoint's tokenizer, and the longest sequence that is fed."""

from __future__ import annotations

from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from valuembed._utils.text import counted
from valuembed.backbone.checkpoints import (
    Checkpoint,
)
from valuembed.errors import CheckpointError, RecipeError
from valuembed.tokenization.gguf_tokenizer import load_gguf_tokenizer

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
"""Files that a tokenizer is read from, as far as they are there."""


CHAT_TEMPLATE = "chat_template.jinja"
"""Where a tokenizer's chat template lies."""


NO_LIMIT = 1_000_000
"""Tokenizers write absurd lengths where they know no limit; from here on a number means none."""


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: it is missing or damaged.
        UnsupportedModelError: a GGUF file holds one of a kind that is not read.
    """
    if checkpoint.gguf is not None:
        return load_gguf_tokenizer(checkpoint)
    for name in TOKENIZER_FILES if checkpoint.is_local else ():
        checkpoint.file(name)  # something else in a file's place is named here
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.location, trust_remote_code=checkpoint.trust_remote_code, **checkpoint.hub
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions on damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"model {checkpoint.name!r}: its tokenizer cannot be loaded: {reason}") from error
    # Where the files are missing, transformers makes an empty tokenizer for some families: all texts would be blank.
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if not tokenizer.get_vocab().keys() - special:
        raise CheckpointError(
            f"model {checkpoint.name!r}: its tokenizer cannot be loaded: it knows no words, as without its files "
            "(tokenizer.json and tokenizer_config.json)"
        )
    return tokenizer


def token_limit(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int | None:
    """The longest sequence to feed: what was asked for, else the smaller of the tokenizer's and the model's limits.

    Raises:
        RecipeError: less than one token, or more positions than a model with learned positions has.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if asked is None:
        limits = [
            limit
            for limit in (tokenizer.model_max_length, positions)
            if isinstance(limit, int) and 0 < limit < NO_LIMIT
        ]
        return min(limits, default=None)
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise RecipeError(f"max_tokens={asked!r} has to be a whole number, or None for the model's own limit")
    if asked < 1:
        raise RecipeError(f"max_tokens={asked} has to be at least 1")
    if isinstance(positions, int) and asked > positions and not getattr(config, "rope_parameters", None):
        raise RecipeError(
            f"max_tokens={asked} is more than the {counted(positions, 'position')} that {config.model_type} has learned"
        )
    return asked
