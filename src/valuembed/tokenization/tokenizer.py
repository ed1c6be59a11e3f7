"""From a text and a template to token ids, with the text's own tokens marked and only they ever cut.

The rendered string is tokenized whole: prefix, text and suffix tokenized apart would give other ids wherever a
tokenizer merges across their borders. The text's tokens are found by character offsets afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, takewhile
from typing import Any

from tokenizers import AddedToken, Encoding
from transformers import PreTrainedTokenizerBase

from valuembed.data import check_prompt
from valuembed.errors import InputError, UnsupportedModelError
from valuembed.recipes import CLEANINGS, Recipe, Rendered, Template, parse_template
from valuembed.tokenization.offsets import by_character, pieces_of, without_leading_blanks
from valuembed.tokenization.sequences import PlacedText, TokenSequence, cut_text, within, without_suffix
from valuembed.tokenization.tokenizer_copy import copy_tokenizer
from valuembed.tokenization.vocabulary import check_rows

METASPACE = "\u2581"
"""How some tokenizers write a blank, also one that they put in front of a string."""

# Texts that begin with a letter, a capital, a digit, punctuation, a blank and other scripts.
_VARIED = ("a", "Zebra", "7", "(", '"', " x", "\u4e2d", "\u00e9")
# Stand-ins for special tokens of a template, in a private-use plane: no text holds them by accident.
_ALIAS = "\U0010fa5e{}\U0010fa5f"
# Templates that are remembered: enough for any recipe, few enough for a server that takes them from its clients. Those
# with special tokens have a tokenizer of their own.
_MOST_TOKENIZERS, _MOST_REMEMBERED = 16, 256


def render(template: Template, text: str, prompt: str = "") -> Rendered:
    """Put a text (and an instruction) into a template.

    Args:
        template: its slots.
        text: the text to embed, taken as it is: braces in it are ordinary characters.
        prompt: an instruction; it goes to the ``{prompt}`` slot, else before the whole template.
    """
    values = {"text": text, "echo": text, "prompt": prompt}
    parts: list[str] = [] if "prompt" in template.pieces[1::2] else [prompt]
    length = sum(map(len, parts))
    ranges: dict[str, tuple[int, int]] = {}
    for index, piece in enumerate(template.pieces):
        part = values[piece] if index % 2 else piece
        if index % 2:
            ranges[piece] = (length, length + len(part))
        parts.append(part)
        length += len(part)
    return Rendered("".join(parts), ranges["text"], ranges.get("echo"))


class TextTokenizer:
    """Tokenizes texts inside templates.

    Special tokens are parsed in templates and never in texts: ``<|eos|>`` typed by a user is four or five ordinary
    tokens.

    Args:
        tokenizer: a tokenizer backed by the ``tokenizers`` library, which reports character offsets.
        known: tells how many token ids the decoder has an embedding for; None where there is no decoder.

    Raises:
        UnsupportedModelError: the tokenizer reports no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, known: Callable[[], int] | None = None) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError(
                f"tokenizer {type(tokenizer).__name__} reports no character offsets, without which a text's tokens "
                "cannot be told from its prompt's; a tokenizer.json is needed"
            )
        self.tokenizer = tokenizer
        self.known = known
        self._plain: dict[tuple[str, int], None] = {}
        self._with_aliases: dict[tuple[str, int], tuple[PreTrainedTokenizerBase, Template, dict[int, int]]] = {}
        self._prefixes: dict[tuple[str, str], tuple[int, ...]] = {}
        flags = self._encode(tokenizer, ["a"])[0].special_tokens_mask
        content = [i for i, special in enumerate(flags) if not special] or [len(flags)]
        self._added_before = content[0]
        self._added_after = len(flags) - 1 - content[-1]

    def sequences(
        self,
        texts: Sequence[str],
        recipe: Recipe,
        role: str | None = None,
        prompt: str | None = None,
        *,
        max_tokens: int | None,
        prefixes: bool = False,
    ) -> list[list[TokenSequence]]:
        """Tokenize b texts in a recipe's templates, cleaned as it says.

        Args:
            texts, max_tokens: as in :meth:`rows`.
            recipe: whose templates and cleaning.
            role: ``"query"``, ``"document"`` or None: whose templates.
            prompt: an instruction, or None.
            prefixes: tell how many tokens at the beginning of each sequence are its template's own.

        Returns:
            For each of the k templates, b sequences.

        Raises:
            InputError, UnknownTokenError: an instruction that is no text; or as :meth:`rows` and :meth:`check`.
        """
        check_prompt(prompt)
        cleaned = list(map(CLEANINGS[recipe.cleaning], texts))
        found = []
        for template in recipe.templates_for(role):
            rows = self.rows(cleaned, template, prompt or "", max_tokens=max_tokens)
            self.check(rows, template)
            if prefixes and (prefix := list(self.prefix(template, prompt or ""))):
                p = len(prefix)
                rows = [replace(row, prefix=p) if p <= row.span[0] and row.ids[:p] == prefix else row for row in rows]
            found.append(rows)
        return found

    def check(self, rows: Sequence[TokenSequence], template: str) -> None:
        """Raise where tokens have no embedding.

        Args:
            rows: of b texts in one template.
            template: that they were tokenized with.

        Raises:
            InputError, UnknownTokenError: with the tokens.
        """
        if self.known and max((max(row.ids) for row in rows), default=-1) >= (known := self.known()):
            check_rows(rows, known, self, template)

    def rows(
        self, texts: Sequence[str], template: str, prompt: str = "", *, max_tokens: int | None
    ) -> list[TokenSequence]:
        """Tokenize texts in one template.

        Args:
            texts: b texts; a blank one is the template around nothing.
            template: a template string.
            prompt: an instruction, placed by the template.
            max_tokens: the longest sequence to feed; tokens are cut from the end of the text (of both copies, where
                the template has two), never from prompt, prefix or suffix.

        Raises:
            InputError: a blank text without template on a tokenizer without BOS and EOS.
            TemplateError: template and prompt alone leave no room for a single token of the text.
        """
        special, encoded = self._encoded(texts, template, prompt)
        rows = []
        for item, ids, offsets in encoded:
            row = self._row(item, ids, offsets, max_tokens, template, special)
            if special:
                row = replace(row, ids=[special.get(token, token) for token in row.ids])
            rows.append(row)
        return rows

    def placed(self, texts: Sequence[str], template: str, prompt: str = "") -> list[PlacedText]:
        """Tokenize texts as :meth:`rows` does without a limit, and say where the characters of each are.

        Args:
            texts, template, prompt: as in :meth:`rows`.

        Raises:
            InputError: as in :meth:`rows`.
        """
        special, encoded = self._encoded(texts, template, prompt)
        found = []
        for item, ids, offsets in encoded:
            ids = ids[: len(ids) - self._added_after]
            if not ids:
                found.append(PlacedText([self._blank_id()], (0, 0), (0, 0), (0, 0), [(0, 0)], 0))
                continue
            own, echo = self._own(item, ids, offsets, special), (0, 0)
            if item.echo:
                echo = _token_range(offsets, item.echo, self._added_before, len(ids), len(item.string))
                echo = within(offsets, echo, item.echo)
            low, high = item.text
            placed = [(start - low, end - low) for start, end in offsets[: len(ids)]]
            ids = [special.get(token, token) for token in ids]
            found.append(PlacedText(ids, own, within(offsets, own, item.text), echo, placed, high - low))
        return found

    def _encoded(
        self, texts: Sequence[str], template: str, prompt: str
    ) -> tuple[dict[int, int], Iterator[tuple[Rendered, list[int], list[tuple[int, int]]]]]:
        """Texts in a template, each with its ids and their characters; and what ids to put back afterwards."""
        tokenizer, parsed, originals = self._prepare(parse_template(template))
        rendered = [render(parsed, text if text.strip() else "", prompt) for text in texts]
        encodings = self._encode(tokenizer, [item.string for item in rendered])

        def encoded() -> Iterator[tuple[Rendered, list[int], list[tuple[int, int]]]]:
            for item, encoding in zip(rendered, encodings, strict=True):
                offsets = encoding.offsets
                if any(one == following and one[1] - one[0] > 1 for one, following in pairwise(offsets)):
                    offsets = by_character(offsets, item.string)
                yield item, encoding.ids, offsets

        return originals, encoded()

    def pieces(
        self, text: str, template: str, prompt: str = "", *, max_tokens: int | None
    ) -> tuple[TokenSequence, list[str]]:
        """Tokenize a text as :meth:`rows` does, and say which characters each token stands for.

        Args:
            text, template, prompt, max_tokens: as in :meth:`rows`.

        Returns:
            The row, and for each of its tokens the characters that it adds: joined, they are what is fed. A token that
            adds none has an empty string, such as BOS and the later bytes of a character.

        Raises:
            InputError, TemplateError: as in :meth:`rows`.
        """
        tokenizer, parsed, originals = self._prepare(parse_template(template))
        item = render(parsed, text if text.strip() else "", prompt)
        encoding = self._encode(tokenizer, [item.string])[0]
        if len(encoding.ids) == self._added_after:
            return TokenSequence([self._blank_id()], (0, 1)), [""]
        offsets = by_character(encoding.offsets, item.string)
        # Places in the uncut sequence are cut as ids are, and tell what is left of it.
        special = {place for place, token in enumerate(encoding.ids) if token in originals}
        kept = self._row(item, list(range(len(encoding.ids))), offsets, max_tokens, template, special)
        row = replace(kept, ids=[originals.get(encoding.ids[place], encoding.ids[place]) for place in kept.ids])
        aliases = {_token(tokenizer, alias): self._name(token) for alias, token in originals.items()}
        blanks = {place for place, name in enumerate(encoding.tokens) if name == METASPACE}
        pieces = pieces_of(item.string, without_leading_blanks(offsets, blanks), kept.ids)
        return row, [_replaced(piece, aliases) for piece in pieces]

    def names(self, ids: Sequence[int]) -> list[str]:
        """What tokens without characters may be called: special ones, such as ``<s>``, and :data:`METASPACE`.

        Args:
            ids: t token ids.

        Returns:
            t strings, empty for all other tokens.
        """
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return [name if name in {*special, METASPACE} else "" for name in map(self._name, ids)]

    def _name(self, number: int) -> str:
        return _token(self.tokenizer, number)

    def prefix(self, template: str, prompt: str = "") -> tuple[int, ...]:
        """Ids that every text in a template begins with, as far as a few very different texts tell.

        A text whose first letters melt into the template's last token has another prefix, so each sequence is
        still to be compared with it.
        """
        if (template, prompt) not in self._prefixes:
            rows = self.rows(_VARIED, template, prompt, max_tokens=None)
            alike = zip(*(row.ids[: row.span[0]] for row in rows), strict=False)
            shared = takewhile(lambda ids: len(set(ids)) == 1, alike)
            _forget_oldest(self._prefixes, _MOST_REMEMBERED)
            self._prefixes[template, prompt] = tuple(ids[0] for ids in shared)
        return self._prefixes[template, prompt]

    @staticmethod
    def _encode(tokenizer: PreTrainedTokenizerBase, strings: list[str]) -> list[Encoding]:
        if not strings:
            return []
        batch = tokenizer(
            strings,
            split_special_tokens=True,
            return_offsets_mapping=False,
            padding=False,
            truncation=False,
            verbose=False,
        )
        return batch.encodings or []

    def _row(
        self,
        item: Rendered,
        ids: list[int],
        offsets: list[tuple[int, int]],
        max_tokens: int | None,
        template: str,
        special: Container[int],
    ) -> TokenSequence:
        ids = ids[: len(ids) - self._added_after]
        if not ids:
            return TokenSequence([self._blank_id()], (0, 1))
        start, end = self._own(item, ids, offsets, special)
        excess = len(ids) - max_tokens if max_tokens is not None else 0
        if excess > 0:
            inner = without_suffix(offsets, (start, end), item.text[1])
            echo = (start, start)
            if item.echo:
                echo = _token_range(offsets, item.echo, self._added_before, len(ids), len(item.string))
                echo = without_suffix(offsets, echo, item.echo[1])
            row = cut_text(ids, inner, echo, excess, template)
            return replace(row, span=(row.span[0], row.span[1] + end - inner[1]))
        return TokenSequence(ids, (start, end) if end > start else (0, len(ids)))

    def _own(
        self,
        item: Rendered,
        ids: Sequence[int],
        offsets: Sequence[tuple[int, int]],
        special: Container[int],
    ) -> tuple[int, int]:
        """The tokens of a text itself, as a range, of ids that end before what the tokenizer adds behind them."""
        start, end = _token_range(offsets, item.text, self._added_before, len(ids), len(item.string))
        # A special token of the template may take in blanks of the text beside it, and is the template's all the same.
        while start < end and ids[start] in special:
            start += 1
        while start < end and ids[end - 1] in special:
            end -= 1
        return start, end

    def _blank_id(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise InputError(
            "a blank text without template is BOS, else EOS, and this tokenizer has neither; use a template or "
            "leave blanks out"
        )

    def _prepare(self, template: Template) -> tuple[PreTrainedTokenizerBase, Template, dict[int, int]]:
        """The tokenizer to use for a template, the template to render, and what ids to put back afterwards.

        Special tokens are parsed all or none in one call. Where a template holds some, a copy of the tokenizer knows
        each by an alias that is no special token, so that the whole string is tokenized with special tokens off.
        """
        # Looking all special tokens up takes longer than tokenizing a text, so it is done again only for new ones.
        place = (template.source, self.tokenizer.backend_tokenizer.get_vocab_size())
        if place in self._plain:
            return self.tokenizer, template, {}
        if place not in self._with_aliases:
            known = {token for token in self.tokenizer.added_tokens_decoder.values() if token.special}
            used = [token for token in known if any(token.content in literal for literal in template.literals)]
            if not used:
                _forget_oldest(self._plain, _MOST_REMEMBERED)
                self._plain[place] = None
                return self.tokenizer, template, {}
            used.sort(key=lambda token: len(token.content), reverse=True)
            copy = copy_tokenizer(self.tokenizer)
            literals = list(template.literals)
            originals: dict[int, int] = {}
            for index, token in enumerate(used):
                alias = _ALIAS.format(index)
                literals = [literal.replace(token.content, alias) for literal in literals]
                copy.add_tokens(AddedToken(alias, normalized=False, lstrip=token.lstrip, rstrip=token.rstrip))
                originals[_id(copy, alias)] = _id(self.tokenizer, token.content)
            _forget_oldest(self._with_aliases, _MOST_TOKENIZERS)
            self._with_aliases[place] = (copy, template.with_literals(literals), originals)
        return self._with_aliases[place]


def _forget_oldest(remembered: dict[Any, Any], most: int) -> None:
    """Make room for one more."""
    while len(remembered) >= most:
        del remembered[next(iter(remembered))]


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    number = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(number, int)
    return number


def _token(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    token = tokenizer.convert_ids_to_tokens(number)
    assert isinstance(token, str)
    return token


def _replaced(string: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        string = string.replace(old, new)
    return string


def _token_range(
    offsets: Sequence[tuple[int, int]], characters: tuple[int, int], first: int, stop: int, whole: int
) -> tuple[int, int]:
    """The tokens that hold at least one of the characters, as a range.

    A token that straddles the border of text and prompt belongs to the text. At the ends of the string the text takes
    every token, also those without characters of their own, such as the blank that Metaspace puts in front.
    """
    low, high = characters
    if low == high:
        start = next((i for i in range(first, stop) if offsets[i][0] >= low), stop)
        return start, start
    start = first if low == 0 else next((i for i in range(first, stop) if offsets[i][1] > low), stop)
    end = (
        stop if high == whole else next((i + 1 for i in range(stop - 1, start - 1, -1) if offsets[i][0] < high), start)
    )
    return start, max(start, end)
