"""Eight kinds of tokenizer, trained in memory on the sentences below: one for each way real checkpoints differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from valuembed.errors import UnsupportedModelError

VOCABULARY = 480

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = """\
The harbour was quiet before the first boats came in.
She kept the old letters in a tin box under the stairs.
A meeting about the new bridge will be held on Tuesday.
Prices rose again this month, but less than last year.
He did not expect the answer to be so simple.
Snow fell all night and closed the road over the pass.
The children painted the fence green and white.
In 1987 the mill was sold for 40,000 pounds.
What would you do if the train never arrived?
The museum shows maps, clocks and glass from three centuries.
My neighbour grows tomatoes, beans and a little corn.
Bread is baked here every morning except on Sunday.
The committee could not agree, so nothing was decided.
Two dogs ran across the field after the same stick.
This sentence means what it says in one word: nothing more.
The doctor said that rest would help more than medicine.
Light travels faster than sound; we see the storm first.
Nobody knew who had left the window open.
The second half of the game was better than the first.
Water boils at a lower temperature in the mountains.
They walked along the river until it was dark.
"Come in," said the woman, "and close the door."
The engine started, stopped, and started again.
A good map is worth more than a fast car.
Students who sleep well remember what they have read.
The recipe asks for 200 grams of flour and two eggs.
It's easier to break a thing than to mend it.
The old theatre will be opened again in the spring.
Bees were found in the roof of the village school.
The report was long, careful and almost never read.
Café owners in Zürich paid 3 € more for each kilo.
The wind turned, and the smoke went out to sea.
"""


@dataclass(frozen=True)
class _Kind:
    """What sets one kind apart: its model, what it adds around a text, and what it lacks."""

    model: str = "byte_level"
    bos: bool = False
    eos: bool = False
    pad: bool = True
    chat: bool = False
    padding_side: str = "right"


_KINDS: Mapping[str, _Kind] = {
    "byte_level": _Kind(),
    "byte_level_bos": _Kind(bos=True),
    "metaspace_bos": _Kind(model="metaspace_always", bos=True, padding_side="left"),
    "metaspace_first": _Kind(model="metaspace_first"),
    "adds_eos": _Kind(eos=True),
    "bos_eos": _Kind(bos=True, eos=True),
    "no_pad": _Kind(pad=False),
    "chat": _Kind(chat=True, padding_side="left"),
}

TOKENIZERS: tuple[str, ...] = tuple(_KINDS)
"""The kinds of `tiny_tokenizer`."""


def tiny_tokenizer(kind: str = "byte_level") -> PreTrainedTokenizerFast:
    """A tokenizer of at most 512 tokens that encodes any text and gives it back.

    ==================  =======================================================================
    ``byte_level``      byte-level BPE; has EOS and a pad token, adds nothing
    ``byte_level_bos``  byte-level BPE that puts BOS first
    ``metaspace_bos``   BPE with byte fallback, a space before every text, BOS; pads on the left
    ``metaspace_first`` Unigram with byte fallback, a space before the first word only
    ``adds_eos``        byte-level BPE that puts EOS last
    ``bos_eos``         byte-level BPE that does both
    ``no_pad``          byte-level BPE without pad token
    ``chat``            byte-level BPE with a chat template (ChatML); pads on the left
    ==================  =======================================================================

    Raises:
        UnsupportedModelError: the kind is not in `TOKENIZERS`.
    """
    if kind not in _KINDS:
        raise UnsupportedModelError(f"no tiny tokenizer of the kind {kind!r}; known: {', '.join(TOKENIZERS)}")
    row = _KINDS[kind]
    tokenizer = Tokenizer.from_str(_trained(row.model))
    specials = {"eos_token": "<|im_end|>" if row.chat else "</s>"}
    if row.pad:
        specials["pad_token"] = "<pad>"
    if row.bos:
        specials["bos_token"] = "<s>"
    if row.model != "byte_level":
        specials["unk_token"] = "<unk>"
    others = ["<|im_start|>"] if row.chat else []
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in [*specials.values(), *others]])
    ids = {name: (text, tokenizer.token_to_id(text)) for name, text in specials.items()}
    before, after = (["<s>"] if row.bos else []), ([specials["eos_token"]] if row.eos else [])
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[pair for pair in ids.values() if pair[0] in (*before, *after)],
        )
    tokenizer_class: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = tokenizer_class(
        tokenizer_object=tokenizer,
        model_max_length=256,
        padding_side=row.padding_side,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **({"chat_template": CHATML} if row.chat else {}),
        **({"extra_special_tokens": others} if others else {}),
        **specials,
    )
    return built


@cache
def _trained(model: str) -> str:
    """A tokenizer's file as text: the same in every run, trained once per process."""
    return _TRAINERS[model]().to_str()


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _train(tokenizer, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def _metaspace_always() -> Tokenizer:
    vocabulary, merges = _metaspace_pieces("always")
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return _with_byte_fallback(model, "always")


def _metaspace_first() -> Tokenizer:
    # Training a Unigram model is not the same twice (its sums run in parallel), so the pieces are those of BPE, and a
    # piece scores the higher the earlier BPE found it; single characters and bytes are the last resort.
    vocabulary, _ = _metaspace_pieces("first")
    ranked = sorted(vocabulary, key=vocabulary.__getitem__)
    last_resort = {piece for piece in ranked if len(piece) == 1} | set(_BYTE_TOKENS)
    pieces = [(piece, -20.0 if piece in last_resort else -3.0 - rank / 100) for rank, piece in enumerate(ranked)]
    return _with_byte_fallback(models.Unigram(pieces, 0, True), "first")


def _metaspace_pieces(prepend_scheme: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE model whose first entries are ``<unk>`` and the 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    first = ["<unk>", *_BYTE_TOKENS]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=first, show_progress=False))
    trained = json.loads(tokenizer.to_str())["model"]
    return trained["vocab"], [(left, right) for left, right in trained["merges"]]


def _with_byte_fallback(model: models.Model, prepend_scheme: str) -> Tokenizer:
    """A SentencePiece-like tokenizer; the byte tokens are plain entries of the model, never parsed out of a text."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend_scheme), decoders.Fuse()]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    tokenizer.train_from_iterator(SENTENCES.splitlines(), trainer)


_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_TRAINERS = {"byte_level": _byte_level, "metaspace_always": _metaspace_always, "metaspace_first": _metaspace_first}
