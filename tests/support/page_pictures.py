"""Make the documentation's pictures of the pages, with Chromium.

``python tests/support/page_pictures.py`` makes those of the page to try a model with, and with the address of an index
those of the page to search it with.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import browsing
from PIL import Image
from serving import running

import valuembed
from valuembed.cli.served_index import load_with_index, map_of

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = {"page.png": (1180, 900, "light", None), "page-phone.png": (360, 780, "dark", 1500)}
"""Width and height of the screen, colours, and how much of the page from its top."""


SEARCHES = {"search-page.png": (1280, 800, "light", False), "search-page-phone.png": (390, 780, "dark", False),
            "search-map-phone.png": (390, 780, "light", True)}  # fmt: skip
"""Width and height of the screen, colours, and whether a phone shows the map."""

QUERY = "how do I keep an index up to date"


def search(address):
    """Write those of the page to search an index with, which is about this project's documentation."""
    live, model = load_with_index(address, {})
    with (
        running(model, index=live, index_map=map_of(live)) as (url, _),
        TemporaryDirectory() as profile,
        browsing(profile) as new_tab,
    ):
        for name, (width, height, scheme, shows_map) in SEARCHES.items():
            tab = new_tab()
            tab.look(width, height, scheme)
            tab.open(f"{url}/")
            tab.until("corpus.map !== null && finding.index !== null", 300)
            tab.fill("#query", QUERY)
            tab.press("Enter")
            tab.until("corpus.hits.length && !document.body.classList.contains('busy')")
            if shows_map:
                tab.click("#show-map")
                tab.until("corpus.width > 0")
            tab.value("document.activeElement.blur(), new Promise(done => setTimeout(done, 500))")
            tab.picture(DOCS / name, height)
            _shrink(DOCS / name)


def _shrink(path):
    """Plain areas and text: few colours do, in a third of the bytes."""
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main():
    """Write those of the page to try a model with into ``docs/``."""
    with (
        running(valuembed.load("bundled")) as (url, _),
        TemporaryDirectory() as profile,
        browsing(profile) as new_tab,
    ):
        for name, (width, height, scheme, shown) in PICTURES.items():
            tab = new_tab()
            tab.look(width, height, scheme)
            tab.open(f"{url}/")
            tab.until("offer !== null")
            for part, says in (("compare", "Compared"), ("weights", "Most weight"), ("search", "Searched")):
                tab.click(f"#{part}-form button")
                tab.until(f"document.querySelector('#{part}-status').textContent.startsWith('{says}')")
            tab.picture(DOCS / name, shown)
            _shrink(DOCS / name)


if __name__ == "__main__":
    search(sys.argv[1]) if len(sys.argv) > 1 else main()
