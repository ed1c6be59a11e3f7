"""What an index would show of the package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture
def shown():
    """The README as the build makes a long description of it."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"][
        "fancy-pypi-readme"
    ]
    text = "".join((ROOT / fragment["path"]).read_text() for fragment in hook["fragments"])
    for substitution in hook["substitutions"]:
        text = re.sub(substitution["pattern"], substitution["replacement"], text)
    return text


def test_no_link_of_the_long_description_leads_nowhere(shown):
    assert [link for link in LINK.findall(shown) if not link.startswith(("https://", "http://", "#"))] == []


def test_the_words_of_links_and_all_code_stay(shown):
    readme = (ROOT / "README.md").read_text()
    assert "big corpora" in shown
    assert shown.count("```") == readme.count("```")
    for block in re.findall(r"^```.*?^```$", readme, re.MULTILINE | re.DOTALL):
        assert block in shown
    words = re.findall(r"\w+", LINK.sub("", readme))
    assert re.findall(r"\w+", LINK.sub("", shown)) == words
