"""Chat templates: used where a recipe names them, and nowhere else."""

from __future__ import annotations

import re

import pytest
from tokenizers import AddedToken

from valuembed.errors import TemplateError
from valuembed.recipes.templates import resolve_templates
from valuembed.testing import tiny_tokenizer
from valuembed.tokenization.chat import expand_chat
from valuembed.tokenization.tokenizer import TextTokenizer

OPEN, CLOSE = "<|im_start|>user\n{prompt}", "<|im_end|>\n<|im_start|>assistant\n"
PROMPT_EOL = 'This sentence : "{text}" means in one word:"'
WITH_BOS = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("chat", OPEN + "{text}" + CLOSE),
        ("chat:none", OPEN + "{text}" + CLOSE),
        ("chat:prompt_eol", OPEN + PROMPT_EOL + CLOSE),
        (["chat", "none"], [OPEN + "{text}" + CLOSE, "none"]),
        ({"query": "chat", "document": ["none"]}, {"query": OPEN + "{text}" + CLOSE, "document": ["none"]}),
        ("prompt_eol", "prompt_eol"),
        ("chatty {text}", "chatty {text}"),
        ("auto", "auto"),
        (None, None),
    ],
)
def test_expand(spec, expected):
    assert expand_chat(spec, tiny_tokenizer("chat")) == expected


@pytest.mark.parametrize("prompt", ["", "Find: "])
def test_ids_are_those_of_a_chat_with_the_model(prompt):
    tokenizer = tiny_tokenizer("chat")
    (template,) = resolve_templates(expand_chat("chat:prompt_eol", tokenizer))
    (row,) = TextTokenizer(tokenizer).rows(["Snow fell."], template, prompt, max_tokens=None)
    turns = [{"role": "user", "content": prompt + PROMPT_EOL.replace("{text}", "Snow fell.")}]
    said = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert row.ids == tokenizer(said)["input_ids"]
    assert tokenizer.decode(row.ids[slice(*row.span)]) == 'Snow fell."'


@pytest.mark.parametrize("kind", ["byte_level_bos", "metaspace_bos", "bos_eos"])
def test_bos_is_fed_once_where_tokenizer_and_chat_template_both_put_one(kind):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.chat_template = WITH_BOS
    template = expand_chat("chat", tokenizer)
    assert template == "[INST] {prompt}{text} [/INST]"
    (row,) = TextTokenizer(tokenizer).rows(["Snow."], template, max_tokens=None)
    assert row.ids.count(tokenizer.bos_token_id) == 1
    assert row.ids[0] == tokenizer.bos_token_id


def test_bos_that_only_the_chat_template_puts_is_kept():
    tokenizer = tiny_tokenizer("byte_level")
    tokenizer.bos_token = "<pad>"
    tokenizer.chat_template = WITH_BOS
    template = expand_chat("chat", tokenizer)
    assert template == "<pad>[INST] {prompt}{text} [/INST]"
    (row,) = TextTokenizer(tokenizer).rows(["Snow."], template, max_tokens=None)
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("spec", ["chat", "chat:prompt_eol", ["chat"], {"query": "chat"}])
def test_a_model_without_chat_template(spec):
    with pytest.raises(
        TemplateError, match=r"template 'chat(:prompt_eol)?': this model's tokenizer has no chat template"
    ):
        expand_chat(spec, tiny_tokenizer("byte_level"))


@pytest.mark.parametrize("name", ["nosuch", "meta_eol", "chat", "{text}"])
def test_what_cannot_stand_in_a_chat(name):
    said = (
        f"template 'chat:{name}': {name!r} cannot stand in a chat; legal: none, prompt_eol, future_eol, pretended_cot"
    )
    with pytest.raises(TemplateError, match=re.escape(said)):
        expand_chat(f"chat:{name}", tiny_tokenizer("chat"))


def test_text_without_the_word_chat_stays_plain():
    tokenizer = tiny_tokenizer("chat")
    (row,) = TextTokenizer(tokenizer).rows(["Snow."], "{text}", max_tokens=None)
    assert tokenizer.decode(row.ids) == "Snow."


@pytest.mark.parametrize(("strips", "text"), [({"rstrip": True}, "  hello"), ({"lstrip": True}, "hello  ")])
def test_a_special_token_that_takes_in_blanks_of_the_text_is_not_the_texts(strips, text):
    tokenizer = tiny_tokenizer("byte_level")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|mark|>", special=True, **strips)]})
    (row,) = TextTokenizer(tokenizer).rows([text], "<|mark|>{text}<|mark|>", max_tokens=None)
    mark = tokenizer.convert_tokens_to_ids("<|mark|>")
    assert row.ids == tokenizer(f"<|mark|>{text}<|mark|>", add_special_tokens=False)["input_ids"]
    assert (row.ids[0], row.ids[-1]) == (mark, mark)
    assert row.span == (1, len(row.ids) - 1)
