"""Build the documentation as a site that needs no network, neither to be built nor to be read.

    python scripts/docs_site.py

The pages under ``docs/`` link to other files of the repository where they lie, so that they can be read as they are. A
site has nothing but its own pages. So every file that a page links to comes along: Markdown as a page, any other text
as a page that shows it, a folder as a list of its files. The links are rewritten to lead there. Then zensical makes
HTML of it all, and the result is checked: each link has to lead to a page and a heading that exist, and nothing may be
fetched from elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
PAGES = Path("build") / "pages"
SITE = Path("site")
REST = "repository"  # the folder of the site for what lies outside docs/
# For search in pages that are read from a disk, the theme fetches a script from elsewhere. Ours takes its place.
FETCHED_WORKER = "https://unpkg.com/iframe-worker/shim"
OWN_WORKER = Path("scripts") / "docs_worker.js"
IMAGES = {".png", ".svg", ".jpg", ".gif"}
LANGUAGES = {".py": "python", ".toml": "toml", ".jsonl": "json", "Dockerfile": "docker", "Makefile": "make"}

FENCE = re.compile(r"^```[^\n]*\n.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
# Our tests read a second word after a fence's language, such as no-run. Markdown knows of none.
SECOND_WORD = re.compile(r"^(```\w+) [\w -]+$", re.MULTILINE)


class SiteError(Exception):
    """The site cannot be built, or what was built is broken."""


def main() -> None:
    """Gather, build, check."""
    os.chdir(ROOT)
    count = gather(ROOT, ROOT / PAGES)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, env={**os.environ, "NO_COLOR": "1"}).returncode:
        raise SystemExit("zensical found something wrong, see above")
    put_worker(ROOT / SITE, ROOT / OWN_WORKER)
    if broken := problems(ROOT / SITE):
        raise SystemExit("\n".join([f"{len(broken)} broken:", *broken]))
    print(f"{count} pages, every link leads somewhere: {SITE / 'index.html'}")


# From the repository to pages


def gather(root: Path, pages: Path) -> int:
    """Copy the documentation, and what it links to, into ``pages``, which is emptied before; the number of pages."""
    shutil.rmtree(pages, ignore_errors=True)
    waiting = sorted(path for path in (root / "docs").rglob("*") if path.is_file())
    seen = set(waiting)
    written = 0

    def follow(path: Path) -> None:
        if path not in seen:
            seen.add(path)
            waiting.append(path)

    while waiting:
        path = waiting.pop()
        target = pages / place(root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in IMAGES:
            shutil.copyfile(path, target)
            continue
        text = page_text(root, path)
        if path.is_dir() or path.suffix == ".md":
            text = relinked(text, root, path, follow)
        target.write_text(text, encoding="utf-8")
        written += 1
    return written


def place(root: Path, path: Path) -> PurePosixPath:
    """Where a file or folder of the repository lies among the pages."""
    inside = PurePosixPath(path.relative_to(root).as_posix())
    inside = inside.relative_to("docs") if inside.is_relative_to("docs") else REST / inside
    if path.is_dir():
        return inside / "index.md"
    return inside if path.suffix in {".md", *IMAGES} else inside.with_name(f"{inside.name}.md")


def page_text(root: Path, path: Path) -> str:
    """The Markdown that shows a file or folder."""
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return "\n".join([f"# {path.relative_to(root).as_posix()}", "", *(f"- [{name}]({name})" for name in files), ""])
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SiteError(f"{path.relative_to(root)} is linked to, and is neither text nor a picture") from None
    if path.suffix == ".md":
        return SECOND_WORD.sub(r"\1", text)
    language = LANGUAGES.get(path.suffix or path.name, "text")
    return f"# {path.relative_to(root).as_posix()}\n\n````{language}\n{text.rstrip()}\n````\n"


def relinked(text: str, root: Path, path: Path, follow: Callable[[Path], None]) -> str:
    """A page's text with its relative links leading from page to page; ``follow`` is told what they lead to.

    Raises:
        SiteError: a link leads to nothing, or out of the repository.
    """
    folder = path if path.is_dir() else path.parent
    here = place(root, path).parent

    def moved(match: re.Match[str]) -> str:
        target, hash_sign, anchor = match[0].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        aim = (folder / target).resolve()
        if not aim.exists() or not aim.is_relative_to(root):
            raise SiteError(f"{path.relative_to(root)} links to {match[0]}, which is no file of the repository")
        follow(aim)
        return os.path.relpath(place(root, aim), here) + hash_sign + anchor

    return outside_code(text, lambda prose: LINK.sub(moved, prose))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change what stands between the fenced blocks."""
    done, parts = 0, []
    for block in FENCE.finditer(text):
        parts += [change(text[done : block.start()]), block[0]]
        done = block.end()
    return "".join([*parts, change(text[done:])])


# From HTML to what is wrong with it


def put_worker(site: Path, script: Path) -> None:
    """Let the pages run a script of their own where they would fetch one."""
    shutil.copyfile(script, site / "assets" / script.name)
    for page in site.rglob("*.html"):
        own = os.path.relpath(site / "assets" / script.name, page.parent)
        page.write_text(page.read_text(encoding="utf-8").replace(FETCHED_WORKER, own), encoding="utf-8")


class Page(HTMLParser):
    """What one page of the site links to, fetches, and can be linked to at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") in {"stylesheet", "icon", "preload"}:
            self.fetched.append(found.get("href", ""))
        elif "src" in found:
            self.fetched.append(found["src"])


def problems(site: Path) -> list[str]:
    """Everything on the built site that leads nowhere, and everything that a reader's browser would fetch elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        raise SiteError(f"{site} holds no page")
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        found += [f"{name}: {problem}" for problem in page_problems(site, path, page, pages)]
    for sheet in sorted(site.rglob("*.css")):
        style = sheet.read_text(encoding="utf-8")
        for address in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')\s]+)", style):
            found.append(f"{sheet.relative_to(site).as_posix()}: fetches {address}")
    return found


def page_problems(site: Path, path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    """What is wrong with one page."""
    for address in page.fetched:
        parts = urlsplit(address)
        if parts.netloc:
            yield f"fetches {address}"
        elif parts.scheme != "data" and not aim_of(site, path, parts.path).is_file():
            yield f"shows {address}, which does not exist"
    for address in page.links:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        aim = aim_of(site, path, parts.path)
        if not aim.is_file():
            yield f"links to {address}, which does not exist"
        elif parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].anchors | {"__top"}:
            yield f"links to {address}, and there is no such heading"


def aim_of(site: Path, path: Path, address: str) -> Path:
    """The file that an address on a page means."""
    if not address:
        return path
    start = site if address.startswith("/") else path.parent
    aim = Path(os.path.normpath(start / unquote(address).lstrip("/")))
    return aim / "index.html" if aim.is_dir() else aim


if __name__ == "__main__":
    try:
        main()
    except SiteError as error:
        raise SystemExit(str(error)) from None
