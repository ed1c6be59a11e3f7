"""Which characters of a string a token stands for: what tokenizers report, put right."""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import groupby, pairwise

from transformers import PreTrainedTokenizerBase


def by_character(offsets: list[tuple[int, int]], string: str) -> list[tuple[int, int]]:
    """Offsets with every byte token at its own character.

    A Unigram model that falls back on bytes reports one range for all tokens of a run of unknown characters, and such
    a run may begin in the prompt and end in the text.
    """
    for shared, run in groupby(range(len(offsets)), key=list(offsets).__getitem__):
        tokens = list(run)
        if len(tokens) > 1 and shared[1] - shared[0] > 1:
            characters = [at for at in range(*shared) for _ in string[at].encode()]
            if len(characters) == len(tokens):
                offsets[tokens[0] : tokens[-1] + 1] = [(at, at + 1) for at in characters]
    return offsets


def without_leading_blanks(offsets: Sequence[tuple[int, int]], blanks: Container[int]) -> list[tuple[int, int]]:
    """Offsets in which a blank that a tokenizer puts in front has none of the characters of the token after it."""
    found = list(offsets)
    for place, (this, following) in enumerate(pairwise(offsets)):
        if place in blanks and this[0] == following[0]:
            found[place] = (this[0], this[0])
    return found


def pieces_of(string: str, offsets: Sequence[tuple[int, int]], places: Sequence[int]) -> list[str]:
    """The characters that each token adds: those from the end of the one before it, unless tokens between were cut.

    Args:
        string: the whole of it.
        offsets: of all tokens.
        places: which of them are left.
    """
    found = []
    end, before = 0, -1
    for place in places:
        start, stop = offsets[place]
        begin = end if place == before + 1 else start
        end, before = max(begin, stop), place
        found.append(string[begin:end])
    return found


def token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where each token of a text by itself starts, in characters; special tokens in it are plain text.

    The tokens of one character all start where it does.

    Args:
        tokenizer: one that reports character offsets.
        text: of any length.
    """
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    return [start for start, _ in by_character(encoded["offset_mapping"], text)]
