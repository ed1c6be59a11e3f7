"""The page to search an index with, at /."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from valuembed.serving.playground.routes import page_headers

PATH = "/"

_HERE = Path(__file__).parent


def assemble(folder: Path = _HERE) -> str:
    """The page as one file: each ``<!-- name.js -->`` and ``<!-- name.css -->`` of ``index.html`` is that file."""

    def filled(match: re.Match[str]) -> str:
        tag = "style" if match[1].endswith(".css") else "script"
        return f"<{tag}>\n{(folder / match[1]).read_text(encoding='utf-8')}</{tag}>"

    return re.sub(r"<!-- (\w+\.(?:css|js)) -->", filled, (folder / "index.html").read_text(encoding="utf-8"))


PAGE = assemble()

HEADERS = page_headers(PAGE)

router = APIRouter()


@router.get(PATH, include_in_schema=False)
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE, headers=HEADERS)
