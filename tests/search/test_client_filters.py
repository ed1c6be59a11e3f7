"""What clients may send as a filter."""

import pytest

from valuembed.errors import InputError
from valuembed.search.client_filters import MOST_TOKENS, check_client_filter


@pytest.mark.parametrize(
    "where",
    [
        "row < 100",
        "file LIKE 'news/%' AND length(text) > 80",
        "label = 'it''s repeat(x)' OR NOT (row = 3)",
        '"end" > 3 AND "my (odd) column" IS NULL',
        "cast(row AS varchar(10)) = '3' AND starts_with(lower(text), 'a')",
        "day > DATE '2026-01-01' AND day < now()",
        "text LIKE 'a\\_%'",
        "a IN (-1, 2.5) AND b >= -3",
        # Lists are as long as they are.
        f"row IN ({', '.join(map(str, range(1500)))})",
        "id IN ('" + "', '".join(map(str, range(900))) + "')",
        # Of 400 words and signs: "row", "=", "1", and so on, with 99 times "OR".
        " OR ".join(["row=1"] * 100) + " ",
    ],
)
def test_what_is_taken(where):
    check_client_filter(where)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("repeat(text, 9) = 'a'", "repeat cannot be called; legal: abs, btrim, cast, "),
        ("Lpad (text, 9) = 'a'", "Lpad cannot be called; legal: "),
        ("\"repeat\"(text, 9) = 'a'", '"repeat" cannot be called; legal: '),
        ("`repeat`(text, 9) = 'a'", "`repeat` cannot be called; legal: "),
        ("text IN (SELECT(1))", "SELECT cannot be called; legal: "),
        ("repeat/* */(text, 9) = 'a'", "it has a comment; leave that out"),
        ("row = 1 -- repeat", "it has a comment; leave that out"),
        # Were \' taken for a quote, what follows would stand outside of the text.
        ("E'\\'' = repeat(text, 9) || 'x'", "a letter stands before the text '"),
        ("U&'a' = text", "a letter stands before the text 'a'; write texts as 'text'"),
        ("$$a$$ = text", "$ stands outside of a text; write texts as 'text', with '' for one quote"),
        ("text = 'a", "' stands outside of a text; write texts as 'text', with '' for one quote"),
        ("row = 1" + "+1" * 200, f"it has 403 words and signs beside lists; at most {MOST_TOKENS} are taken"),
        # "row", "IN", "(", ")", and four for each item that is no constant.
        ("row IN (" + "row + 1, " * 120 + "1)", "it has 483 words and signs beside lists"),
    ],
)
def test_what_is_not(where, reason):
    with pytest.raises(InputError) as raised:
        check_client_filter(where)
    assert str(raised.value).startswith(f"the filter {where!r:.200} is not taken: {reason}")


def test_a_long_one():
    with pytest.raises(InputError, match=r"^the filter has 10,001 characters; at most 10,000 are taken$"):
        check_client_filter("x" * 10_001)
