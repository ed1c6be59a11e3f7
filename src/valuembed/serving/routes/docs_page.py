"""A page at /docs that describes every route: made of the OpenAPI description, and fetching nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from valuembed.serving.playground.routes import page_headers

PATH = "/docs"

PAGE = (Path(__file__).parent / "docs.html").read_text(encoding="utf-8")

PLACE = "<!-- what the server describes -->"

HEADERS = page_headers(PAGE)

EXAMPLES = {
    "input": ["A cat sleeps.", "A kitten naps."],
    "inputs": ["A cat sleeps.", "A kitten naps."],
    "prompt": "A cat sleeps.",
    "query": "Where is the cat?",
}
"""What a field without a default holds in an example."""

LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "maxLength": "at most {} characters",
    "maxItems": "at most {} items",
}
"""Words for what a JSON schema asks of a value."""

SEVERAL = {"string": "strings", "integer": "integers", "number": "numbers"}

router = APIRouter()


@router.get(PATH, include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The page."""
    described = request.app.openapi()
    lines = describe(described, str(request.base_url).rstrip("/"), f"{request.scope.get('root_path', '')}/openapi.json")
    return HTMLResponse(PAGE.replace(PLACE, "\n".join(lines)), headers=HEADERS)


def describe(schema: Mapping[str, Any], url: str, source: str) -> Iterator[str]:
    """An OpenAPI description as lines of HTML, every text of it escaped.

    Args:
        schema: as FastAPI makes it.
        url: of the server, for its examples.
        source: where a program finds the description.
    """
    parts = schema.get("components", {}).get("schemas", {})
    locked = bool(schema.get("components", {}).get("securitySchemes"))
    info = schema["info"]
    yield f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
    yield f"<p>{escape(info.get('summary', ''))} Errors come in the shape of the API that a route belongs to.</p>"
    key = (
        "Routes that need a key take the header <code>Authorization: Bearer KEY</code>."
        if locked
        else "No key is needed."
    )
    yield f'<p>{key} The same for programs: <a href="{escape(source)}">{escape(source)}</a>.</p>'
    operations = [(method, path, operation) for path, of in schema["paths"].items() for method, operation in of.items()]
    yield "<ul>"
    for method, path, operation in operations:
        link = f'<a href="#{_anchor(method, path)}">{method.upper()} {escape(path)}</a>'
        yield f"<li>{link}: {_first_line(operation)}</li>"
    yield "</ul>"
    for method, path, operation in operations:
        yield from _operation(url, method, path, operation, parts)
    for name, part in parts.items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        yield from _fields(part)


def _operation(
    url: str, method: str, path: str, operation: Mapping[str, Any], parts: Mapping[str, Any]
) -> Iterator[str]:
    yield f'<h2 id="{_anchor(method, path)}">{method.upper()} <code>{escape(path)}</code></h2>'
    yield f"<p>{_first_line(operation)}</p>"
    if "security" in operation:
        yield '<p class="quiet">Needs a key.</p>'
    if parameters := operation.get("parameters"):
        yield "<h3>In the address</h3>"
        yield from _table(("name", "type"), ((_code(found["name"]), _kind(found["schema"])) for found in parameters))
    if "requestBody" in operation:
        body = next(iter(operation["requestBody"]["content"].values()))["schema"]
        part = parts.get(_name(body), body)
        yield f"<h3>Body: {_kind(body)}</h3>"
        yield from _fields(part)
        yield "<h3>Example</h3>"
        yield f"<pre>{escape(_curl(url + path, part, 'security' in operation))}</pre>"
    yield "<h3>Answers</h3>"
    yield from _table(("status", "", "body"), (_answer(*found) for found in operation["responses"].items()))


def _answer(status: str, response: Mapping[str, Any]) -> tuple[str, str, str]:
    content = response.get("content", {})
    kinds = [_kind(of["schema"]) if of.get("schema") else escape(media) for media, of in content.items()]
    return _code(status), escape(response.get("description", "")), ", ".join(kinds)


def _fields(part: Mapping[str, Any]) -> Iterator[str]:
    if part.get("description"):
        yield f"<p>{escape(part['description'])}</p>"
    required = part.get("required", ())
    rows = (
        (
            _code(name),
            _kind(field),
            "required" if name in required else _code(json.dumps(field["default"])) if "default" in field else "",
            escape(field.get("description", "")),
        )
        for name, field in part.get("properties", {}).items()
    )
    yield from _table(("field", "type", "default", ""), rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table; its cells are HTML already."""
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(f"<th>{head}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for first, *others in rows:
        yield f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in others)}</tr>"
    yield "</tbody></table></div>"


def _kind(field: Mapping[str, Any]) -> str:
    """What a value may be, as HTML."""
    if name := _name(field):
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    if several := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_kind(one) for one in several)
    if "const" in field or "enum" in field:
        return " or ".join(_code(json.dumps(value)) for value in field.get("enum", [field.get("const")]))
    kind = str(field.get("type", "anything"))
    if kind == "array":
        items = field.get("items", {})
        several = SEVERAL.get(items.get("type"))
        kind = f"list of {several}{_limits(items)}" if several else f"list of {_kind(items)}"
    return kind + _limits(field)


def _limits(field: Mapping[str, Any]) -> str:
    said = [words.format(f"{field[name]:,.15g}") for name, words in LIMITS.items() if name in field]
    said += ["not empty" for name in ("minLength", "minItems") if field.get(name) == 1]
    return f" ({', '.join(said)})" if said else ""


def _name(field: Mapping[str, Any]) -> str:
    """The name of the part that a field refers to, or nothing."""
    return str(field.get("$ref", "")).rpartition("/")[2]


def _curl(url: str, part: Mapping[str, Any], locked: bool) -> str:
    fields = part.get("properties", {})
    body = {name: EXAMPLES.get(name, "") for name in part.get("required", ())}
    body.update(*part.get("examples", ())[:1])
    if fields.get("input", {}).get("type") == "string":
        body["input"] = EXAMPLES["input"][0]
    key = ' -H "Authorization: Bearer $VALUEMBED_API_KEY"' if locked else ""
    return f"curl {url}{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'"


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}{path}".replace("/", "-"))


def _first_line(operation: Mapping[str, Any]) -> str:
    return escape(operation.get("description") or operation.get("summary", ""))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
