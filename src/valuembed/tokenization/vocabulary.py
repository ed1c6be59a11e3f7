"""A tokenizer beside an embedding matrix: ids that have no row there are told, and never looked up.

Tokens that were added to a tokenizer, without resizing the matrix, are such ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from valuembed._utils.text import counted, printable, shortened
from valuembed.backbone.checkpoints import Checkpoint
from valuembed.errors import InputError, TemplateError, UnknownTokenError
from valuembed.tokenization.gguf_tokenizer import load_gguf_tokenizer, tokens_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from valuembed.tokenization.sequences import TokenSequence
    from valuembed.tokenization.tokenizer import TextTokenizer

TOKENIZER_FILE = "tokenizer.json"


def lacking(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """What to tell of a tokenizer that knows ids beyond the embedding matrix; None where all have a row.

    Args:
        tokenizer: of a model.
        rows: of its embedding matrix.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return _lacking(tokenizer.get_vocab(), special, rows)


def lacking_in_file(checkpoint: Checkpoint, rows: int) -> str | None:
    """As :func:`lacking`, from the tokenizer's file alone; None too where there is none that can be read."""
    from tokenizers import Tokenizer

    if checkpoint.gguf is not None:
        if tokens_in(checkpoint.gguf_header()) <= rows:  # known without reading them
            return None
        return lacking(load_gguf_tokenizer(checkpoint), rows)
    path = checkpoint.file(TOKENIZER_FILE)
    if path is None:
        return None
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception:  # the tokenizers library raises bare Exceptions on damaged files, which loading tells
        return None
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return _lacking(tokenizer.get_vocab(True), special, rows)


def _lacking(vocabulary: Mapping[str, int], special: Iterable[str], rows: int) -> str | None:
    beyond = sorted((number, token) for token, number in vocabulary.items() if number >= rows)
    if not beyond:
        return None
    shown = ", ".join(_named(token, number) for number, token in beyond[:3])
    more = f" and {len(beyond) - 3:,} more" if len(beyond) > 3 else ""
    texts = {token for _, token in beyond} - set(special)
    meant = (
        "a text that holds such a token cannot be embedded and is refused"
        if texts
        else "these are special tokens, which no text holds, but a template can, and such a template is refused"
    )
    return (
        f"the tokenizer knows {counted(len(beyond), 'id')} beyond the {rows:,} rows of the "
        f"embedding matrix: {shown}{more}; {meant}"
    )


def check_rows(rows: Sequence[TokenSequence], known: int, texts: TextTokenizer, template: str) -> None:
    """Raise where tokens have no embedding.

    Args:
        rows: sequences of b texts in one template.
        known: how many ids have an embedding.
        texts: their tokenizer.
        template: that they were tokenized with.

    Raises:
        UnknownTokenError: the tokens of some texts, with their rows.
        InputError: the template's or the instruction's.
    """
    reasons = {}
    for at, row in enumerate(rows):
        if max(row.ids) < known:
            continue
        start, end = row.span
        if (wrong := next((token for token in row.ids[start:end] if token >= known), None)) is not None:
            reasons[at] = f"holds the token {_token(texts, wrong)}, for which the model has no embedding"
        else:
            wrong = next(token for token in row.ids if token >= known)
            raise InputError(
                f"template {template!r} and its instruction hold the token {_token(texts, wrong)}, for which the model "
                f"has no embedding: its matrix has {counted(known, 'row')}"
            )
    if reasons:
        raise UnknownTokenError.of(reasons, len(rows))


def check_template(template: str, known: int, texts: TextTokenizer) -> None:
    """Raise where what a template puts around every text, BOS included, has no embedding.

    Args:
        template: a template string.
        known: how many ids have an embedding.
        texts: the tokenizer.

    Raises:
        TemplateError: it names the token.
    """
    row = texts.rows(["a"], template, max_tokens=None)[0]
    around = [*row.ids[: row.span[0]], *row.ids[row.span[1] :]]
    if wrong := [token for token in around if token >= known]:
        raise TemplateError(
            f"template {template!r} puts the token {_token(texts, wrong[0])} around every text, and the model has no "
            f"embedding for it: its matrix has {counted(known, 'row')}; use another template, or resize the matrix "
            "and train it"
        )


def _token(texts: TextTokenizer, number: int) -> str:
    return _named(str(texts.tokenizer.convert_ids_to_tokens(number)), number)


def _named(token: str, number: int) -> str:
    return f"{shortened(printable(token), 40)!r} (id {number})"
