"""Make the documentation's pictures of the page: ``python tests/support/page_pictures.py``, with Chromium."""

from pathlib import Path
from tempfile import TemporaryDirectory

from browser import browsing
from PIL import Image
from serving import running

import valuembed

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = {"page.png": (1180, 900, "light", None), "page-phone.png": (360, 780, "dark", 1500)}
"""Width and height of the screen, colours, and how much of the page from its top."""


def main():
    """Write them into ``docs/``."""
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
            # Plain areas and text: few colours do, in a third of the bytes.
            with Image.open(DOCS / name) as picture:
                few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
            few.save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main()
