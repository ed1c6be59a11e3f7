"""The documentation as a site: what is gathered, how links are rewritten, and what a broken site is told."""

from __future__ import annotations

import re
from pathlib import Path

import docs_site
import pytest

import valuembed

ROOT = Path(__file__).parents[2]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    files = {
        "README.md": "# Read me\n\n[guide](docs/guide.md#start)\n",
        "docs/index.md": "[readme](../README.md#read-me), [code](../run/go.py), [all](../run), [mail](mailto:a@b.c)\n",
        "docs/guide.md": "# Start\n\n[here](#start)\n\n```python no-run\n[no link](nowhere.md)\n```\n\n![p](p.png)\n",
        "run/go.py": 'LINK = "[a](b)"\n',
        "run/.hidden": "",
        "unlinked.md": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "docs" / "p.png").write_bytes(b"\x89PNG")
    return tmp_path


def pages_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md"))
    }


def test_what_is_linked_to_comes_along_and_nothing_else(repository: Path) -> None:
    pages = repository / "build" / "pages"
    assert docs_site.gather(repository, pages) == 5
    assert list(pages_of(pages)) == [
        "guide.md",
        "index.md",
        "repository/README.md",
        "repository/run/go.py.md",
        "repository/run/index.md",
    ]
    assert (pages / "p.png").read_bytes() == b"\x89PNG"


def test_links_lead_from_page_to_page(repository: Path) -> None:
    docs_site.gather(repository, repository / "pages")
    pages = pages_of(repository / "pages")
    assert pages["index.md"] == (
        "[readme](repository/README.md#read-me), [code](repository/run/go.py.md), [all](repository/run/index.md), "
        "[mail](mailto:a@b.c)\n"
    )
    assert pages["repository/README.md"] == "# Read me\n\n[guide](../guide.md#start)\n"
    assert pages["repository/run/index.md"] == "# run\n\n- [go.py](go.py.md)\n"


def test_code_stays_as_it_is_but_for_words_behind_the_fence(repository: Path) -> None:
    docs_site.gather(repository, repository / "pages")
    pages = pages_of(repository / "pages")
    assert "```python\n[no link](nowhere.md)\n```" in pages["guide.md"]
    assert pages["repository/run/go.py.md"] == '# run/go.py\n\n````python\nLINK = "[a](b)"\n````\n'


def test_gathering_starts_anew(repository: Path) -> None:
    docs_site.gather(repository, repository / "pages")
    (repository / "docs" / "guide.md").rename(repository / "docs" / "other.md")
    (repository / "README.md").write_text("", encoding="utf-8")
    docs_site.gather(repository, repository / "pages")
    assert "guide.md" not in pages_of(repository / "pages")


@pytest.mark.parametrize("target", ["gone.md", "../gone/", "../../outside.md"])
def test_a_link_to_nothing_is_an_error(repository: Path, target: str) -> None:
    (repository.parent / "outside.md").write_text("", encoding="utf-8")
    (repository / "docs" / "guide.md").write_text(f"[gone]({target})", encoding="utf-8")
    message = re.escape(f"docs/guide.md links to {target}, which is no file of the repository")
    with pytest.raises(docs_site.SiteError, match=f"^{message}$"):
        docs_site.gather(repository, repository / "pages")


def test_a_link_to_what_cannot_be_shown_is_an_error(repository: Path) -> None:
    (repository / "run" / "weights.bin").write_bytes(b"\xff\xfe\xff")
    (repository / "docs" / "guide.md").write_text("[weights](../run/weights.bin)", encoding="utf-8")
    with pytest.raises(
        docs_site.SiteError, match=r"^run/weights\.bin is linked to, and is neither text nor a picture$"
    ):
        docs_site.gather(repository, repository / "pages")


def site_of(folder: Path, **pages: str) -> Path:
    for name, html in pages.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="b.html#there">', None),
        ('<a href="/b.html">', None),
        ('<a href="#own"><p id="own">', None),
        ('<a href="https://example.com/x">', None),
        ('<img src="data:image/png;base64,AA==">', None),
        ('<a href="gone.html">', "a.html: links to gone.html, which does not exist"),
        ('<a href="b.html#gone">', "a.html: links to b.html#gone, and there is no such heading"),
        ('<img src="gone.png">', "a.html: shows gone.png, which does not exist"),
        ('<script src="https://cdn.example/x.js">', "a.html: fetches https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "a.html: fetches //fonts.example/x.css"),
    ],
)
def test_what_a_page_is_told(tmp_path: Path, html: str, problem: str | None) -> None:
    site = site_of(tmp_path, a=html, b='<h2 id="there">')
    assert docs_site.problems(site) == ([] if problem is None else [problem])


def test_style_sheets_fetch_nothing(tmp_path: Path) -> None:
    site = site_of(tmp_path, a="")
    (site / "s.css").write_text('@font-face{src:url("https://fonts.example/f.woff2")} a{b:url(own.png)}')
    assert docs_site.problems(site) == ["s.css: fetches https://fonts.example/f.woff2"]


def test_an_empty_site_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(docs_site.SiteError, match=r"holds no page$"):
        docs_site.problems(tmp_path)


def test_pages_run_our_own_script_where_they_would_fetch_one(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "deep").mkdir()
    site = site_of(tmp_path, a=f'<script src="{docs_site.FETCHED_WORKER}">')
    site_of(tmp_path / "deep", b=f'<script src="{docs_site.FETCHED_WORKER}">')
    docs_site.put_worker(site, ROOT / docs_site.OWN_WORKER)
    assert (site / "a.html").read_text(encoding="utf-8") == '<script src="assets/docs_worker.js">'
    assert (site / "deep" / "b.html").read_text(encoding="utf-8") == '<script src="../assets/docs_worker.js">'
    assert docs_site.problems(site) == []


# Our own pages


def test_our_pages_can_be_gathered(tmp_path: Path) -> None:
    docs_site.gather(ROOT, tmp_path)
    assert {"index.md", "reference/models.md", "repository/README.md"} <= set(pages_of(tmp_path))


def test_the_menu_lists_every_page(tmp_path: Path) -> None:
    docs_site.gather(ROOT, tmp_path)
    listed = re.findall(r'= "([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    own = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert own - set(listed) == set(), "zensical.toml needs a line for each page of docs/"
    assert [page for page in listed if not (tmp_path / page).is_file()] == []
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("As :func:`load`, see :data:`~a.b.C` and ``x``: `y`", "As `load`, see `a.b.C` and ``x``: `y`"),
        ("One, two: prose.", "One, two: prose."),
        (
            "Args:\n    a, b: as there,\n        and here.\n    c: alone.",
            "Args:\n    a: as there,\n        and here.\n    b: as there,\n        and here.\n    c: alone.",
        ),
        ("Args:\n    a, b, c,\n        d, e:\n        as there.", "Args:\n    a, b, c, d, e: as there."),
        ("Errors.\n\nA\n├── B\n└── C\n\nEnd.", "Errors.\n\n    A\n    ├── B\n    └── C\n\nEnd."),
    ],
)
def test_docstrings_are_made_readable(written: str, shown: str) -> None:
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    from docstrings import readable

    assert readable(written) == shown


def described() -> list[str]:
    text = "".join(path.read_text(encoding="utf-8") for path in REFERENCE)
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


def test_the_reference_has_every_public_name() -> None:
    assert {f"valuembed.{name}" for name in valuembed.__all__} - set(described()) - {
        "valuembed.ValuembedError",
        "valuembed.TruncationWarning",
    } == set()
    assert "valuembed.errors" in described(), "the two that are left out stand there"
    overview = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    assert [name for name in valuembed.__all__ if f"`{name}`" not in overview] == []


@pytest.mark.parametrize("name", described())
def test_the_reference_describes_what_exists(name: str) -> None:
    package, *parts = name.split(".")
    assert package == "valuembed"
    found = valuembed
    for part in parts:
        found = getattr(found, part, None) or __import__(f"{found.__name__}.{part}", fromlist=["_"])
    assert found.__doc__
