"""From the corpus file to documents, a held-out share of them, sentences, and a tokenizer."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
HELD_OUT = 100
"""One document in so many is held out."""


def documents(path: Path) -> Iterator[str]:
    """The texts of a corpus: JSON Lines with a field "text", plain or zstd."""
    with pyarrow.input_stream(str(path), compression="zstd" if path.suffix == ".zst" else None) as file:
        yield from (json.loads(line)["text"] for line in io.TextIOWrapper(file, encoding="utf-8"))


def is_held_out(text: str) -> bool:
    """Whether a document is kept for the validation loss. Its own text decides, so no order or seed moves it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT == 0


def sentences(document: str) -> Iterator[list[str]]:
    """Sentences in their order, paragraph by paragraph."""
    for paragraph in document.split("\n"):
        yield [part.strip() for part in re.split(r"(?<=[.!?])\s+", paragraph) if part.strip()]


def train_tokenizer(texts: Iterable[str], vocabulary: int, longest: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts a BOS in front.

    Args:
        texts: what the merges are learned from.
        vocabulary: its size, special tokens and the 256 bytes included.
        longest: the number of tokens that the model accepts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=longest
    )
