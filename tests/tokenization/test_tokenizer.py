"""Ids as published code feeds them, and where the text stands among them.

Where a token's characters are is worked out here from the bytes that each token spells, never from the offsets that
the library reads.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from valuembed.errors import InputError, TemplateError, UnsupportedModelError
from valuembed.recipes.templates import TEMPLATES, parse_template
from valuembed.testing import TOKENIZERS, tiny_tokenizer
from valuembed.testing.tokenizers import SENTENCES
from valuembed.tokenization.tokenizer import TextTokenizer, TokenSequence, render

ADDS_BOS = {"byte_level_bos", "metaspace_bos", "bos_eos"}
ADDS_EOS = {"adds_eos", "bos_eos"}
EVERY_SPECIAL = {"<s>", "</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>"}
EOS = {kind: "<|im_end|>" if kind == "chat" else "</s>" for kind in TOKENIZERS}
CHATML = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"

PLAIN = {name: TEMPLATES[name] for name in ("none", "prompt_eol", "echo", "future_eol")}
PLAIN["with_prompt"] = "Task: {prompt}\nText: {text}\nAnswer:"
PLAIN["text_first"] = "{text} <- {prompt}"
PROMPT = 'Find "it".'

TEXTS = (
    "A good map is worth more than a fast car.",
    'It\'s "Come in," she said.',
    "Snow fell all night?",
    "x",
    ".",
    '"',
    " a leading blank",
    "two trailing blanks  ",
    "\tlines\nand\n\nblank ones\n",
    "Café owners in Zürich paid 3 € more",
    "\U0001f469\u200d\U0001f467 family \U0001f600",
    "e\u0301 combining a\u0308",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "no{thing} special",
)

kinds = pytest.mark.parametrize("kind", TOKENIZERS)
templates = pytest.mark.parametrize("name", PLAIN)


@cache
def ours(kind: str) -> TextTokenizer:
    return TextTokenizer(tiny_tokenizer(kind))


def special(kind: str) -> str:
    """A template that holds special tokens, in front, in the middle and at a text's border."""
    return CHATML if kind == "chat" else "</s>User: {text}</s> Bot:"


def published(tokenizer, string: str, **kwargs) -> list[int]:
    """What code around a model feeds: the whole string, less an EOS that the tokenizer puts last."""
    ids = tokenizer(string, **kwargs)["input_ids"]
    return ids[:-1] if tokenizer("x")["input_ids"][-1] == tokenizer.eos_token_id else ids


@cache
def spelled(kind: str) -> list[bytes]:
    """The bytes that each token stands for."""
    tokenizer = ours(kind).tokenizer
    back = {character: byte for byte, character in bytes_to_unicode().items()}
    spellings = []
    for word in tokenizer.convert_ids_to_tokens(range(len(tokenizer))):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", word)
        if word in EVERY_SPECIAL:
            spellings.append(word.encode())
        elif "metaspace" not in kind:
            spellings.append(bytes(back[character] for character in word))
        else:
            spellings.append(bytes.fromhex(byte[1]) if byte else word.replace("\u2581", " ").encode())
    return spellings


def places(kind: str, ids: list[int], string: str) -> list[tuple[int, int]]:
    """Byte range of each token in the string, all of it. A blank that Metaspace puts in front takes no room."""
    whole, position, found = string.encode(), 0, []
    for index, token in enumerate(ids):
        part = spelled(kind)[token]
        if index == 0 and kind in ADDS_BOS:
            part = b""
        elif not whole.startswith(part, position):
            part = part.removeprefix(b" ")
        assert whole.startswith(part, position), (part, whole[position:])
        found.append((position, position + len(part)))
        position += len(part)
    assert position == len(whole)
    return found


def covering(kind: str, ids: list[int], string: str, characters: tuple[int, int]) -> tuple[int, int]:
    """The smallest range of tokens that holds the characters; at the string's start with what takes no room there."""
    low, high = (len(string[:index].encode()) for index in characters)
    inside = [i for i, (start, end) in enumerate(places(kind, ids, string)) if start < high and end > low]
    return (int(kind in ADDS_BOS) if low == 0 else inside[0]), inside[-1] + 1


class TestIds:
    @kinds
    @templates
    def test_are_those_of_the_whole_string(self, kind, name):
        template, tokenizer = parse_template(PLAIN[name]), ours(kind).tokenizer
        rows = ours(kind).rows(TEXTS, PLAIN[name], PROMPT, max_tokens=None)
        for text, row in zip(TEXTS, rows, strict=True):
            rendered = render(template, text, PROMPT)
            assert row.ids == published(tokenizer, rendered.string)
            assert row.span == covering(kind, row.ids, rendered.string, rendered.text)
            assert not row.truncated
            assert (row.ids[0] == tokenizer.bos_token_id) == (kind in ADDS_BOS)
            assert tokenizer.eos_token_id not in row.ids

    @kinds
    def test_with_special_tokens_in_the_template(self, kind):
        template, tokenizer = parse_template(special(kind)), ours(kind).tokenizer
        rows = ours(kind).rows(TEXTS, special(kind), max_tokens=None)
        for text, row in zip(TEXTS, rows, strict=True):
            rendered = render(template, text)
            assert row.ids == published(tokenizer, rendered.string)
            assert row.ids.count(tokenizer.eos_token_id) == special(kind).count(EOS[kind]) > 0
            decoded = tokenizer.decode(row.ids[slice(*row.span)])
            assert text.strip() in decoded
            assert EOS[kind] not in decoded

    @pytest.mark.parametrize("kind", ["byte_level", "metaspace_bos", "metaspace_first"])
    @given(
        text=st.text(
            st.sampled_from('ab .,"\n\u2581\u00e9\u05e9\U0001f600<>/s|') | st.characters(exclude_categories=["Cs"])
        )
    )
    def test_of_any_text(self, kind, text):
        for name in ("none", "prompt_eol", "echo"):
            rendered = render(parse_template(PLAIN[name]), text if text.strip() else "")
            (row,) = ours(kind).rows([text], PLAIN[name], max_tokens=None)
            assert 0 <= row.span[0] < row.span[1] <= len(row.ids)
            if rendered.string:
                assert row.ids == published(ours(kind).tokenizer, rendered.string, split_special_tokens=True)

    @kinds
    def test_of_a_text_depend_on_no_other_text(self, kind):
        together = ours(kind).rows(TEXTS, PLAIN["prompt_eol"], max_tokens=20)
        assert together == [ours(kind).rows([text], PLAIN["prompt_eol"], max_tokens=20)[0] for text in TEXTS]
        assert ours(kind).rows([], PLAIN["prompt_eol"], max_tokens=20) == []

    @pytest.mark.parametrize("kind", ["byte_level", "metaspace_bos", "metaspace_first"])
    def test_piecewise_would_give_others(self, kind):
        """The trap: prefix, text and suffix tokenized apart."""
        tokenizer, differ = ours(kind).tokenizer, 0
        sentences = SENTENCES.splitlines()
        prefix, suffix = PLAIN["prompt_eol"].split("{text}")
        for sentence in sentences:
            (row,) = ours(kind).rows([sentence], PLAIN["prompt_eol"], max_tokens=None)
            pieces = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (prefix, sentence, suffix)]
            differ += [*pieces[0], *pieces[1], *pieces[2]] != [
                token for token in row.ids if token != tokenizer.bos_token_id
            ]
        # A byte-level tokenizer joins the full stop and the closing quotation mark, Metaspace begins each piece anew.
        assert differ == (sum(s.endswith(".") for s in sentences) if kind == "byte_level" else len(sentences)) > 20

    def test_do_not_follow_settings_that_came_with_the_tokenizer(self):
        tokenizer = tiny_tokenizer("bos_eos")
        expected = TextTokenizer(tokenizer).rows(TEXTS, "{text}", max_tokens=None)
        tokenizer.backend_tokenizer.enable_truncation(3)
        tokenizer.backend_tokenizer.enable_padding(length=50)
        assert TextTokenizer(tokenizer).rows(TEXTS, "{text}", max_tokens=None) == expected

    def test_a_tokenizer_without_offsets_is_refused(self):
        with pytest.raises(
            UnsupportedModelError, match=r"ByT5Tokenizer reports no character offsets.*tokenizer.json is needed"
        ):
            TextTokenizer(ByT5Tokenizer())


class TestPieces:
    """Which characters each token stands for."""

    @kinds
    @templates
    def test_joined_are_what_is_fed(self, kind, name):
        template = parse_template(PLAIN[name])
        for text, row in zip(TEXTS, ours(kind).rows(TEXTS, PLAIN[name], PROMPT, max_tokens=None), strict=True):
            rendered = render(template, text, PROMPT)
            found, pieces = ours(kind).pieces(text, PLAIN[name], PROMPT, max_tokens=None)
            assert found == row
            assert "".join(pieces) == rendered.string
            if rendered.string.isascii():
                words = [spelled(kind)[token].decode().strip() for token in row.ids]
                assert [piece.strip() for piece in pieces] == ["" if word == "<s>" else word for word in words]

    def test_of_characters_that_take_several_tokens(self):
        for kind in ("byte_level", "metaspace_bos"):
            _, pieces = ours(kind).pieces("a\u05e9\U0001f600b", "{text}", max_tokens=None)
            assert [piece for piece in pieces if piece] == ["a", "\u05e9", "\U0001f600", "b"]
            # Two and four bytes, of which the first has the character.
            assert pieces[pieces.index("\u05e9") + 1] == ""
            assert pieces[pieces.index("\U0001f600") + 1 :][:3] == ["", "", ""]

    @kinds
    def test_with_special_tokens_in_the_template(self, kind):
        row, pieces = ours(kind).pieces(" A text. ", special(kind), max_tokens=None)
        assert row == ours(kind).rows([" A text. "], special(kind), max_tokens=None)[0]
        assert "".join(pieces) == special(kind).replace("{text}", " A text. ")
        assert EOS[kind] in [piece.strip() for piece in pieces]
        assert "".join(pieces[slice(*row.span)]).strip() == "A text."

    @kinds
    @templates
    def test_of_a_text_that_is_cut(self, kind, name):
        text = TestTruncation.FOREIGN
        (full,) = ours(kind).rows([text], PLAIN[name], PROMPT, max_tokens=None)
        rendered = render(parse_template(PLAIN[name]), text, PROMPT)
        prefix, suffix = rendered.string[: (rendered.echo or rendered.text)[0]], rendered.string[rendered.text[1] :]
        for excess in (4, 7):
            limit = len(full.ids) - excess
            row, pieces = ours(kind).pieces(text, PLAIN[name], PROMPT, max_tokens=limit)
            assert row == ours(kind).rows([text], PLAIN[name], PROMPT, max_tokens=limit)[0]
            assert row.truncated
            fed = "".join(pieces)
            assert fed.startswith(prefix)
            assert fed.endswith(suffix)
            assert len(fed) < len(rendered.string)
            assert text.startswith("".join(pieces[row.span[0] : row.span[1] - 2]).strip())

    def test_of_nothing(self):
        for kind in ("byte_level_bos", "adds_eos"):
            row, pieces = ours(kind).pieces(" ", "{text}", max_tokens=None)
            assert row == ours(kind).rows([" "], "{text}", max_tokens=None)[0]
            assert pieces == [""]

    def test_a_blank_that_a_tokenizer_puts_in_front_takes_no_character(self):
        reader = ours("metaspace_bos")
        row, pieces = reader.pieces("F F", "{text}", max_tokens=None)
        assert reader.tokenizer.convert_ids_to_tokens(row.ids) == ["<s>", "\u2581", "<0x46>", "\u2581", "<0x46>"]
        assert pieces == ["", "", "F", " ", "F"]

    def test_names_of_tokens_that_may_have_no_characters(self):
        reader = ours("metaspace_bos")
        assert reader.names(reader.tokenizer.convert_tokens_to_ids(["<s>", "\u2581", "a"])) == ["<s>", "\u2581", ""]


class TestTruncation:
    TEXT = 'The wind "turned", and the smoke \U0001f600 went out to the sea.'
    # Unknown to Metaspace at both borders, where a line break of the template is unknown to it as well.
    FOREIGN = "\u05e9\u05dc\u05d5\u05dd said the smoke \U0001f600 \u05e9\u05dc"

    @kinds
    @templates
    @pytest.mark.parametrize("text", [TEXT, FOREIGN], ids=["plain", "foreign"])
    def test_at_every_length_takes_the_end_of_the_text_and_nothing_else(self, kind, name, text):
        reader = ours(kind)
        rendered = render(parse_template(PLAIN[name]), text, PROMPT)
        (full,) = reader.rows([text], PLAIN[name], PROMPT, max_tokens=None)
        where = places(kind, full.ids, rendered.string)
        copies = []
        for characters in filter(None, (rendered.echo, rendered.text)):
            start, end = covering(kind, full.ids, rendered.string, characters)
            high = len(rendered.string[: characters[1]].encode())
            # A token that also spells a part of the suffix stays.
            copies.append((start, sum(stop <= high for _, stop in where[:end])))
        room = min(end - start for start, end in copies)
        possible = 0
        for max_tokens in range(1, len(full.ids) + 2):
            drop = max(0, -(-(len(full.ids) - max_tokens) // len(copies)))
            if drop >= room:
                with pytest.raises(
                    TemplateError, match=f"of {max_tokens} allowed .max_tokens.: no room is left for the text"
                ):
                    reader.rows([text], PLAIN[name], PROMPT, max_tokens=max_tokens)
                continue
            (row,) = reader.rows([text], PLAIN[name], PROMPT, max_tokens=max_tokens)
            cut = {i for _, end in copies for i in range(end - drop, end)}
            assert row.ids == [token for i, token in enumerate(full.ids) if i not in cut]
            assert len(row.ids) <= max_tokens
            assert row.truncated == (drop > 0)
            before = sum(i < full.span[0] for i in cut)
            assert row.span == (full.span[0] - before, full.span[1] - before - drop)
            possible += drop > 0
        assert possible >= room - 1 > 10

    @kinds
    @templates
    @pytest.mark.parametrize("text", [TEXT, FOREIGN], ids=["plain", "foreign"])
    def test_keeps_every_character_of_prefix_and_suffix(self, kind, name, text):
        reader = ours(kind)
        parsed = parse_template(PLAIN[name])
        rendered = render(parsed, text, PROMPT)
        first = min(characters[0] for characters in (rendered.echo, rendered.text) if characters)
        prefix, suffix = rendered.string[:first].encode(), rendered.string[rendered.text[1] :].encode()
        between = rendered.string[rendered.echo[1] : rendered.text[0]].encode() if rendered.echo else b""
        (full,) = reader.rows([text], PLAIN[name], PROMPT, max_tokens=None)
        for max_tokens in range(len(full.ids) - 12, len(full.ids)):
            (row,) = reader.rows([text], PLAIN[name], PROMPT, max_tokens=max_tokens)
            ids = row.ids[1:] if kind in ADDS_BOS else row.ids
            fed = b"".join(spelled(kind)[token] for token in ids)
            # A blank in front of the string is Metaspace's.
            fed = fed.removeprefix(b" ") if kind.startswith("metaspace") else fed
            assert fed.startswith(prefix + text[:3].encode())
            assert fed.endswith(suffix)
            assert between in fed
            assert len(fed) < len(rendered.string.encode())

    def test_a_token_that_joins_text_and_suffix_stays(self):
        # In full it ends in: sea." means in one word:", where ." is one token. Cutting it would leave a quotation open.
        (row,) = ours("byte_level").rows([self.TEXT], PLAIN["prompt_eol"], max_tokens=25)
        assert ours("byte_level").tokenizer.decode(row.ids).endswith('." means in one word:"')
        assert ours("byte_level").tokenizer.decode(row.ids[slice(*row.span)]).endswith('."')

    def test_of_echo_cuts_both_copies(self):
        (row,) = ours("byte_level").rows(["one two three four five six"], PLAIN["echo"], max_tokens=40)
        (full,) = ours("byte_level").rows(["one two three four five six"], PLAIN["echo"], max_tokens=None)
        fed = ours("byte_level").tokenizer.decode(row.ids)
        copies = re.fullmatch("Rewrite the sentence: (.*), rewritten sentence: (.*)", fed)
        assert copies[1] == copies[2] == "one two three four five six"[: len(copies[1])]
        assert 38 < len(row.ids) <= 40 < len(full.ids)

    def test_offsets_trimmed_of_blanks_lose_nothing(self):
        """Some byte-level tokenizers report a token's place without the blank in front of it."""
        tokenizer = tiny_tokenizer("byte_level")
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        for name, template in PLAIN.items():
            expected = ours("byte_level").rows(TEXTS[:4], template, PROMPT, max_tokens=None)
            assert TextTokenizer(tokenizer).rows(TEXTS[:4], template, PROMPT, max_tokens=None) == expected, name
            for text in TEXTS[:1]:
                limit = len(expected[0].ids) - 4
                same = ours("byte_level").rows([text], template, PROMPT, max_tokens=limit)
                assert TextTokenizer(tokenizer).rows([text], template, PROMPT, max_tokens=limit) == same

    def test_an_instruction_that_leaves_no_room(self):
        with pytest.raises(TemplateError) as caught:
            ours("byte_level").rows(["some text"], "{prompt}|{text}|", "word " * 30, max_tokens=20)
        message = str(caught.value)
        fixed = len(published(ours("byte_level").tokenizer, "word " * 30 + "|")) + 1
        assert f"template '{{prompt}}|{{text}}|' and prompt take {fixed} tokens by themselves, of 20 allowed" in message
        assert "raise max_tokens or shorten the prompt" in message

    def test_a_blank_text_in_a_template_that_is_too_long(self):
        with pytest.raises(TemplateError, match="of 5 allowed"):
            ours("byte_level").rows([""], PLAIN["prompt_eol"], max_tokens=5)


class TestBlank:
    BLANKS = ("", " ", "\n\t ", "\u3000\u2003")

    @kinds
    def test_without_template_is_bos_else_eos(self, kind):
        tokenizer = ours(kind).tokenizer
        token = tokenizer.bos_token_id if kind in ADDS_BOS else tokenizer.eos_token_id
        assert ours(kind).rows(self.BLANKS, "{text}", max_tokens=1) == [TokenSequence([token], (0, 1))] * 4

    def test_bos_that_is_not_added_by_itself_comes_before_eos(self):
        tokenizer = tiny_tokenizer("byte_level")
        tokenizer.bos_token = "<pad>"
        assert tokenizer.bos_token_id != tokenizer.eos_token_id
        assert TextTokenizer(tokenizer).rows([""], "{text}", max_tokens=None)[0].ids == [tokenizer.bos_token_id]

    def test_without_either_is_an_error(self):
        tokenizer = tiny_tokenizer("byte_level")
        tokenizer.eos_token = None
        with pytest.raises(InputError, match="BOS, else EOS, and this tokenizer has neither; use a template"):
            TextTokenizer(tokenizer).rows(["text", " "], "{text}", max_tokens=None)
        assert len(TextTokenizer(tokenizer).rows(["", "text"], PLAIN["prompt_eol"], max_tokens=None)) == 2

    @kinds
    @pytest.mark.parametrize("name", ["prompt_eol", "echo", "with_prompt"])
    def test_in_a_template_is_the_template_around_nothing(self, kind, name):
        string = render(parse_template(PLAIN[name]), "", PROMPT).string
        for row in ours(kind).rows(self.BLANKS, PLAIN[name], PROMPT, max_tokens=None):
            assert row.ids == published(ours(kind).tokenizer, string)
            # There is no token of the text to average: the mean covers all.
            assert row.span == (0, len(row.ids))

    def test_invisible_is_not_blank(self):
        (row,) = ours("byte_level").rows(["\u200b"], PLAIN["prompt_eol"], max_tokens=None)
        assert row.ids != ours("byte_level").rows([""], PLAIN["prompt_eol"], max_tokens=None)[0].ids
        assert ours("byte_level").tokenizer.decode(row.ids[slice(*row.span)]) == "\u200b"


class TestSpecialTokensInTexts:
    @kinds
    @pytest.mark.parametrize("name", PLAIN)
    def test_stay_ordinary_tokens(self, kind, name):
        tokenizer = ours(kind).tokenizer
        # A Unigram model's own vocabulary holds its unknown token, which no setting keeps it from finding.
        typed = [token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token]
        text = " and ".join(["a", *typed, "b"])
        (row,) = ours(kind).rows([text], PLAIN[name], text, max_tokens=None)
        fed = row.ids[1:] if kind in ADDS_BOS else row.ids
        assert not set(fed) & set(tokenizer.all_special_ids)
        assert text in tokenizer.decode(fed)

    @kinds
    def test_also_where_the_template_holds_the_same_one(self, kind):
        tokenizer, eos = ours(kind).tokenizer, EOS[kind]
        text = f"{eos}a {eos} b{eos}"
        (row,) = ours(kind).rows([text], special(kind), max_tokens=None)
        assert row.ids.count(tokenizer.eos_token_id) == special(kind).count(eos)
        assert tokenizer.decode(row.ids[slice(*row.span)]).count(eos) == 3
        if "metaspace" not in kind:
            # Special tokens split the string; what lies between is tokenized whole, the text with its neighbours.
            expected = [tokenizer.bos_token_id] if kind in ADDS_BOS else []
            pieces = re.split(r"(<\|im_start\|>|<\|im_end\|>|</s>)", special(kind))
            for piece in pieces:
                split = "{text}" in piece or not piece.startswith("<")
                words = tokenizer(piece.replace("{text}", text), add_special_tokens=False, split_special_tokens=split)[
                    "input_ids"
                ]
                expected += words
            assert row.ids == expected

    def test_truncation_keeps_those_of_the_template(self):
        tokenizer = ours("chat").tokenizer
        long = "a <|im_end|> b " * 20
        (row,) = ours("chat").rows([long], CHATML, max_tokens=40)
        assert (len(row.ids), row.truncated) == (40, True)
        fed = tokenizer.decode(row.ids)
        assert fed.startswith("<|im_start|>user\na <|im_end|> b ")
        assert fed.endswith("<|im_end|>\n<|im_start|>assistant\n")
        starts, ends = (row.ids.count(tokenizer.convert_tokens_to_ids(t)) for t in ("<|im_start|>", "<|im_end|>"))
        assert (starts, ends) == (2, 1)

    def test_the_users_own_tokenizer_is_left_as_it_was(self):
        tokenizer = tiny_tokenizer("chat")
        size, before = len(tokenizer), tokenizer("<|im_start|>a")["input_ids"]
        TextTokenizer(tokenizer).rows(["<|im_end|>"], CHATML, max_tokens=None)
        assert (len(tokenizer), tokenizer("<|im_start|>a")["input_ids"]) == (size, before)


def test_templates_from_many_clients_are_not_all_remembered() -> None:
    """Those with special tokens cost a tokenizer each; a template that is forgotten gives the same ids again."""
    texts = TextTokenizer(tiny_tokenizer("chat"))
    templates = [f"<|im_start|>{number}: {{text}}<|im_end|>" for number in range(20)]
    rows = [texts.rows(["a text"], template, max_tokens=None) for template in templates]
    assert len(texts._with_aliases) == 16
    assert rows == [texts.rows(["a text"], template, max_tokens=None) for template in templates]
    prefixes = [texts.prefix("{prompt} : {text}", f"number {number}") for number in range(300)]
    assert len(texts._prefixes) == 256
    assert prefixes[0] == texts.prefix("{prompt} : {text}", "number 0")
