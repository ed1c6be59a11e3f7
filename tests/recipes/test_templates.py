"""The named templates to the letter, where the text stands in a rendered one, and what is no template."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from valuembed.errors import TemplateError
from valuembed.recipes.templates import META_EOL, TEMPLATES, Rendered, check_roles, parse_template, resolve_templates
from valuembed.tokenization.tokenizer import render

PROMPT_EOL = 'This sentence : "{text}" means in one word:"'
PUBLISHED = {
    "none": "{text}",
    "prompt_eol": PROMPT_EOL,
    "pretended_cot": 'After thinking step by step , this sentence : "{text}" means in one word:"',
    "knowledge": (
        "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms provide "
        "additional but less central details. With this in mind , this sentence : "
        '"{text}" means in one word:"'
    ),
    # The wording is ours, and has to stay what the results were made with.
    "future_eol": 'This sentence : "{text}" will be followed by , in one word:"',
}


class TestNamed:
    @pytest.mark.parametrize("name", PUBLISHED)
    def test_wording(self, name):
        assert resolve_templates(name) == (PUBLISHED[name],)

    def test_all_names(self):
        assert list(TEMPLATES) == [
            "none",
            "prompt_eol",
            "future_eol",
            "pretended_cot",
            "knowledge",
            "echo",
            "meta_eol",
        ]

    def test_echo_shows_the_text_twice_and_reads_the_second(self):
        (source,) = resolve_templates("echo")
        rendered = render(parse_template(source), "Snow.")
        assert rendered.string == "Rewrite the sentence: Snow., rewritten sentence: Snow."
        # "Rewrite the sentence: " has 22 characters; five of the first copy and 22 of ", rewritten sentence: " follow.
        assert (rendered.echo, rendered.text) == ((22, 27), (49, 54))

    def test_meta_eol_is_eight_task_prompts_in_prompt_eols_manner(self):
        assert resolve_templates("meta_eol") == META_EOL
        assert len(set(META_EOL)) == 8
        tasks = ("topic", "fact or an opinion", "rat", "emotion", "paraphrase", "synonym", "key fact", "entities")
        for task, source in zip(tasks, META_EOL, strict=True):
            assert task in source
            assert source.endswith(', this sentence : "{text}" means in one word:"')

    @pytest.mark.parametrize("source", [s for v in TEMPLATES.values() for s in ([v] if isinstance(v, str) else v)])
    def test_every_one_is_legal_and_holds_no_stray_brace(self, source):
        assert "".join(parse_template(source).literals).count("{") == 0


class TestRender:
    @pytest.mark.parametrize(
        ("source", "prompt", "string", "text"),
        [
            ("{text}", "", "a b", (0, 3)),
            ("<{text}>", "", "<a b>", (1, 4)),
            # Without a slot an instruction goes before the whole template, with one it goes there.
            ("<{text}>", "Find: ", "Find: <a b>", (7, 10)),
            ("{prompt}: {text}", "Find", "Find: a b", (6, 9)),
            ("{text} ({prompt})", "Find", "a b (Find)", (0, 3)),
            ("{prompt}: {text}", "", ": a b", (2, 5)),
            # Other braces are ordinary characters, doubled ones too.
            ("{{text}} {x} {}", "", "{a b} {x} {}", (1, 4)),
        ],
    )
    def test_slots(self, source, prompt, string, text):
        assert render(parse_template(source), "a b", prompt) == Rendered(string, text)

    def test_prompt_between_two_copies(self):
        rendered = render(parse_template("{echo}|{prompt}|{text}"), "ab", "xyz")
        assert rendered == Rendered("ab|xyz|ab", text=(7, 9), echo=(0, 2))

    @pytest.mark.parametrize(
        "text", ["{text}", "{prompt}", "{echo}{text}", "{", "}{", "{0}", "{text!r}", "%s", "\\1", ""]
    )
    def test_slots_typed_in_a_text_or_prompt_are_harmless(self, text):
        template = parse_template("<{echo}|{prompt}|{text}>")
        assert render(template, text, text).string == f"<{text}|{text}|{text}>"
        assert render(parse_template("<{text}>"), text, text).string == f"{text}<{text}>"

    @pytest.mark.slow
    @given(
        text=st.text(max_size=8),
        prompt=st.text(max_size=8),
        literals=st.lists(st.text("ab{}:", max_size=4), min_size=4, max_size=4),
    )
    def test_ranges_hold_exactly_the_text(self, text, prompt, literals):
        first, second, third, fourth = literals
        template = parse_template("{prompt}{echo}{text}").with_literals(literals)
        rendered = render(template, text, prompt)
        assert rendered.string == first + prompt + second + text + third + text + fourth
        assert rendered.string[slice(*rendered.text)] == text
        assert rendered.string[slice(*rendered.echo)] == text
        # The copy that is read is the later one.
        assert rendered.text[0] == len(first + prompt + second + text + third)


class TestResolve:
    @pytest.mark.parametrize(
        ("spec", "strings"),
        [
            (None, ("{text}",)),
            ("none", ("{text}",)),
            ("Q: {text}", ("Q: {text}",)),
            (["Q: {text}"], ("Q: {text}",)),
            (("prompt_eol", "A {text}", None), (PROMPT_EOL, "A {text}", "{text}")),
            (["meta_eol", "none"], (*META_EOL, "{text}")),
        ],
    )
    def test_forms(self, spec, strings):
        assert resolve_templates(spec) == strings

    @pytest.mark.parametrize("name", ["promtp_eol", "PROMPT_EOL", "", "This sentence means", "chat", "{txt}"])
    def test_unknown_name_lists_the_known_ones(self, name):
        known = "none, prompt_eol, future_eol, pretended_cot, knowledge, echo, meta_eol, chat"
        said = f"template {name!r} is unknown; give one of {known}"
        with pytest.raises(TemplateError, match=re.escape(said) + ".* or a string with one {text}"):
            resolve_templates(name)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("{prompt}: ", "template '{prompt}: ' holds 0 {text}; it needs exactly one"),
            ("{text} {text}", "template '{text} {text}' holds 2 {text}; it needs exactly one"),
            ("{prompt}{prompt}{text}", "holds 2 {prompt}; it needs at most one"),
            ("{echo}{echo}{text}", "holds 2 {echo}; it needs at most one"),
            ("{text}{echo}", "template '{text}{echo}': {echo} has to stand before {text}"),
        ],
    )
    @pytest.mark.parametrize("wrap", [lambda source: source, lambda source: ["none", source]])
    def test_wrong_slots(self, source, said, wrap):
        with pytest.raises(TemplateError, match=re.escape(said)):
            resolve_templates(wrap(source))

    @pytest.mark.parametrize("spec", [3, {"query": "none"}, {"none"}])
    def test_neither_name_nor_string_nor_list(self, spec):
        said = f"a template is a name, a string or a list of strings, got {type(spec).__name__}: {spec!r}"
        with pytest.raises(TemplateError, match=re.escape(said)):
            resolve_templates(spec)

    def test_empty_list(self):
        with pytest.raises(TemplateError, match=re.escape('template=[] holds no template; give "none"')):
            resolve_templates([])

    def test_parse_wants_a_string(self):
        with pytest.raises(TemplateError, match=r"a template is a string with one \{text\}, got int: 3"):
            parse_template(3)


def test_roles():
    check_roles({"query": "none", "document": None, "default": "echo"})
    check_roles({})
    with pytest.raises(TemplateError, match="role 'passage' is unknown; roles are query, document, default"):
        check_roles({"query": "none", "passage": "none"})
