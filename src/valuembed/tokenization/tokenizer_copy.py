"""Copies of a tokenizer that share its vocabulary, so that one costs milliseconds and next to no memory."""

from __future__ import annotations

from copy import copy, deepcopy

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Copy a tokenizer, so that the copy can be given tokens, and be used in a thread, without the other's noticing.

    A call of a tokenizer sets whether special tokens are parsed in the backend, for whoever calls it at that moment.
    A deep copy goes through all of the vocabulary, seconds long for some; this one shares it, as nothing ever writes
    there: added tokens are kept beside it.

    Args:
        tokenizer: one backed by the ``tokenizers`` library; any other is copied whole.
    """
    if not tokenizer.is_fast:
        return deepcopy(tokenizer)
    backend = tokenizer.backend_tokenizer
    own = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(own, part, value)
    own.encode_special_tokens = backend.encode_special_tokens
    added = backend.get_added_tokens_decoder()
    own.add_tokens([added[number] for number in sorted(added)])
    if own.get_added_tokens_decoder() != added:
        # Added tokens are numbered on from the vocabulary; numbers with gaps cannot be given again.
        return deepcopy(tokenizer)
    made = copy(tokenizer)
    made._tokenizer = own
    return made
