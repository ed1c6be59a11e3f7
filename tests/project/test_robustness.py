"""The page that says which test holds what names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "robustness.md"
NAMED = sorted(set(re.findall(r"`(\w+/test_\w+\.py(?:::\w+)*)`", PAGE.read_text(encoding="utf-8"))))


def definitions(nodes: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Functions and classes by name, each with what stands in it."""
    return {node.name: node.body for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_page_names_tests():
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_exists(name):
    file, *inside = name.split("::")
    body = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    for part in inside:
        found = definitions(body)
        assert part in found, f"{file} has no {part}"
        body = found[part]
