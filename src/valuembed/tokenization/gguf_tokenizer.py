"""The tokenizer that a GGUF file holds: a vocabulary, and words on how texts are cut into its pieces.

Source: llama.cpp, ``llama-vocab.cpp``, for what the words mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from valuembed._utils.text import counted, printable, shortened
from valuembed.backbone.checkpoints import Checkpoint, GgufFile, GgufStrings
from valuembed.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerBase

_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens: those that no text holds, and those that are never cut where a text holds them."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = None
"""As GPT-2 cuts texts, which the tokenizers library knows by itself."""

SPLITS: Mapping[str, str | None] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "smollm", "phi-2", "olmo", "jais", "mpt", "trillion"), _GPT2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx", "pixtral"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
}
"""Where texts are cut before pairs are merged, by llama.cpp's name for it; a file without one is cut as GPT-2 does."""

_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken"})
"""Whose tokenizers take a word that the vocabulary holds as it is, and begin texts with BOS unless a file says no."""

_COMPOSED = frozenset({"qwen2"})
"""Whose tokenizers compose letters and accents first (NFC), of which a file says nothing."""

_SPACE = "\u2581"


def load_gguf_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file.

    Args:
        checkpoint: whose model is such a file.

    Raises:
        CheckpointError: the file holds none, or a damaged one.
        UnsupportedModelError: it cuts texts in a way that is not read.
    """
    from transformers import PreTrainedTokenizerFast

    file = checkpoint.gguf_header()
    held = file.settings
    tokens = _tokens(file)
    kind = held.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file, tokens)
    else:
        raise UnsupportedModelError(
            f"model {file.name!r}: its tokenizer is of the kind {shortened(repr(kind), 40)}, and 'gpt2' and 'llama' "
            "are read from GGUF files; give the model that it was made from"
        )
    special, plain = _added(file, tokens, backend)
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
    named = {
        f"{ours}_token": _named(file, tokens, f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    template = held.get("tokenizer.chat_template")
    # What begins with BOS where a file has no word on it: SentencePiece, and some that merge bytes.
    usual = kind == "llama" or held.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    begins, ends = held.get("tokenizer.ggml.add_bos_token", usual), held.get("tokenizer.ggml.add_eos_token")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_Handed(backend),
        add_bos_token=bool(begins) and named["bos_token"] is not None,
        add_eos_token=bool(ends) and named["eos_token"] is not None,
        clean_up_tokenization_spaces=False,
        **({"chat_template": template} if isinstance(template, str) else {}),
        **named,
    )


def tokens_in(file: GgufFile) -> int:
    """How many tokens the vocabulary of a file has, without reading them."""
    array = file.settings.get("tokenizer.ggml.tokens")
    return array.count if isinstance(array, GgufStrings) else 0


def _tokens(file: GgufFile) -> list[str]:
    array = file.settings.get("tokenizer.ggml.tokens")
    if not isinstance(array, GgufStrings):
        raise CheckpointError(
            f"model {file.name!r}: its tokenizer cannot be loaded: the file holds no vocabulary; give a file that "
            "holds a whole model"
        )
    return array.read()


def _numbers(file: GgufFile, key: str, count: int) -> Sequence[Any]:
    """A number for each token; an error where it is not one for each."""
    numbers = file.settings.get(f"tokenizer.ggml.{key}")
    if not isinstance(numbers, list) or len(numbers) != count:
        raise CheckpointError(
            f"model {file.name!r}: its tokenizer cannot be loaded: tokenizer.ggml.{key} is not a number for each of "
            f"{counted(count, 'token')}; download it again"
        )
    return numbers


def _named(file: GgufFile, tokens: Sequence[str], key: str) -> str | None:
    number = file.settings.get(key)
    return tokens[number] if isinstance(number, int) and 0 <= number < len(tokens) else None


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    """Pairs of bytes merged, as GPT-2 does it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    name = file.settings.get("tokenizer.ggml.pre", "default")
    if name not in SPLITS:
        raise UnsupportedModelError(
            f"model {file.name!r}: its tokenizer cuts texts as {shortened(printable(str(name)), 40)!r} does, which is "
            f"not read from GGUF files; legal: {', '.join(SPLITS)}; give the model that it was made from"
        )
    array = file.settings.get("tokenizer.ggml.merges")
    if not isinstance(array, GgufStrings):
        raise CheckpointError(
            f"model {file.name!r}: its tokenizer cannot be loaded: the file holds no merges; convert it anew, with "
            "a llama.cpp of today"
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in array.read())]
    spelt = pre_tokenizers.ByteLevel.alphabet()
    spell, letters = _spelling(), set(spelt)
    vocabulary = {
        token if letters.issuperset(token) else "".join(spell[byte] for byte in token.encode()): number
        for number, token in enumerate(tokens)
    }
    try:
        model = models.BPE(
            vocabulary,
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            ignore_merges=name in _WHOLE_WORDS,
        )
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise _damaged(file, error) from error
    backend = Tokenizer(model)
    split = SPLITS[name]
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if split is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    backend.decoder = decoders.ByteLevel()
    if name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    return backend


def _spelling() -> dict[int, str]:
    """The letter that stands for each byte: itself where it can be seen, and one behind Latin-1 where it cannot."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + at) for at, byte in enumerate(unseen)}


def _sentencepiece(file: GgufFile, tokens: Sequence[str]) -> Tokenizer:
    """Pairs of characters merged, best first, and bytes for what the vocabulary has no piece for."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    is_gemma = file.architecture.startswith("gemma")
    if is_gemma:
        # Runs of blanks stand there as they are, and texts are looked up with the sign for blanks.
        tokens = [_SPACE * len(token) if " " in token and not token.strip() else token for token in tokens]
        # Its scores do not follow the order of its merges; the order of its tokens does.
        scores: Sequence[float] = range(0, -len(tokens), -1)
    else:
        scores = _numbers(file, "scores", len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = _named(file, tokens, "tokenizer.ggml.unknown_token_id")
    try:
        model = models.BPE(vocabulary, merges_of(tokens, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise _damaged(file, error) from error
    backend = Tokenizer(model)
    starts_with_blank = not is_gemma and bool(file.settings.get("tokenizer.ggml.add_space_prefix", True))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if starts_with_blank:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    if is_gemma:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    elif file.architecture == "phi3":
        # A blank in front of every piece that special tokens cut a text into, also where it begins with a blank.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            _SPACE, prepend_scheme="first" if starts_with_blank else "never", split=False
        )
    return backend


def merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs that a vocabulary of SentencePiece merges, best first: every way to cut a token into two others.

    Args:
        tokens: the vocabulary.
        scores: of each token; a pair has that of the token that it becomes. Among equals the longer beginning is first.
    """
    held = dict(zip(tokens, scores, strict=True))
    # Pairs are made of the vocabulary's own strings: of a large one there are half a million.
    own = {token: token for token in held}.get
    merges: list[tuple[str, str]] = []
    for _, equals in groupby(sorted(held, key=held.__getitem__, reverse=True), held.__getitem__):
        many = list(equals)
        found = [
            (left, right)
            for token in many
            for at in range(len(token) - 1, 0, -1)
            if (left := own(token[:at])) is not None and (right := own(token[at:])) is not None
        ]
        if len(many) > 1:
            found.sort(key=lambda pair: (-len(pair[0]), -len(pair[1])))
        merges += found
    return merges


class _Handed:
    """A backend that is taken over as it is, where a copy would be made: that takes as long as making it."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend = backend

    def __deepcopy__(self, _memo: Any) -> Tokenizer:
        return self.backend


def _added(file: GgufFile, tokens: Sequence[str], backend: Tokenizer) -> tuple[list[AddedToken], list[AddedToken]]:
    """Special tokens, and others that are never cut, as the file marks them.

    What a vocabulary spells in another way is marked by mistake: added as it stands there it would be a new token, and
    have no embedding.
    """
    from tokenizers import AddedToken

    if "tokenizer.ggml.token_type" not in file.settings:
        return [], []
    special: list[AddedToken] = []
    plain: list[AddedToken] = []
    for token, kind in zip(tokens, _numbers(file, "token_type", len(tokens)), strict=True):
        if kind in (_CONTROL, _USER_DEFINED) and backend.token_to_id(token) is not None:
            kept = special if kind == _CONTROL else plain
            kept.append(AddedToken(token, normalized=False, special=kind == _CONTROL))
    return special, plain


def _damaged(file: GgufFile, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"model {file.name!r}: its tokenizer cannot be loaded: {reason}")
