"""The page in a headless Chromium: every function by hand, on a desktop and on a phone, in light and in dark."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from browser import CHROMIUM, CONTRAST, CONTROL, browsing
from pages import KEY, PageEngine, other_vector_of
from serving import running, until, vector_of

import valuembed
from valuembed._utils.text import decimals
from valuembed.serving.admission import Limits

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

DESKTOP, PHONE = (1280, 900), (360, 780)
TEXTS = ["a cat sleeps", "a kitten naps", "rates rise again"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def server():
    with running(PageEngine("fake/model")) as (url, app):
        yield url, app


def opened(browser, url, width=DESKTOP, scheme="light"):
    tab = browser()
    tab.look(*width, scheme)
    tab.open(f"{url}/")
    return tab


def done(tab, part, *, says):
    """Wait until a part is through with its work."""
    button = f"document.querySelector('#{part}-form button')"
    tab.until(f"!{button}.hasAttribute('aria-disabled') && {shown(part)}.startsWith({json.dumps(says)})")


def shown(part):
    return f"document.querySelector('#{part}-status').textContent"


def numbers(vectors):
    matrix = vectors @ vectors.T
    others = matrix[~np.eye(len(matrix), dtype=bool)]
    digits = decimals(others.min(), others.max())
    zero = f"{0:.{digits}f}"
    return [[f"{value:.{digits}f}".replace(f"-{zero}", zero) for value in row] for row in matrix]


def cells(tab, side):
    return tab.value(
        f"Array.from(document.querySelectorAll('#compared section:nth-child({side}) tbody tr'), row => "
        "Array.from(row.querySelectorAll('td'), cell => cell.textContent))"
    )


def well(tab, url):
    """Nothing broke the layout or left this server, and nothing was complained of."""
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.complaints == []
    assert {address[: len(url)] for address in tab.requests if not address.startswith("data:")} == {url}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), list(itertools.product((DESKTOP, PHONE), ("light", "dark"))))
def test_every_function(browser, server, width, scheme):
    url, _ = server
    tab = opened(browser, url, width, scheme)
    tab.until("document.querySelector('#model').textContent.startsWith('Model: fake/model')")
    assert tab.texts("#left option") == ["letters (as served)", "letters backwards"]
    assert tab.value("[document.querySelector('#left').value, document.querySelector('#right').value]") == [
        "served", "backwards",
    ]  # fmt: skip

    tab.fill("#texts", "\n".join(TEXTS))
    tab.click("#compare-form button")
    done(tab, "compare", says="Compared 3 sentences.")
    assert cells(tab, 1) == numbers(np.stack([vector_of(text) for text in TEXTS]))
    assert cells(tab, 2) == numbers(np.stack([other_vector_of(text) for text in TEXTS]))
    assert tab.texts("#compared h3") == ["letters (as served)", "letters backwards"]
    assert tab.texts("#compared section:first-child tbody bdi") == TEXTS
    assert len(tab.texts("#compared svg circle")) == 6
    assert tab.texts("#compared section:first-child svg .number") == ["1", "2", "3"]
    boxes = tab.value(
        "Array.from(document.querySelectorAll('#compared svg text'), node => [node, node.ownerSVGElement]"
        ".map(one => one.getBoundingClientRect())).map(([box, frame]) => "
        "box.left >= frame.left && box.right <= frame.right)"
    )
    assert all(boxes)

    # With the comparison come the weights of the chosen sentence: of its three words the longest weighs most.
    done(tab, "weights", says="Most weight in the text: “sleeps”")
    assert tab.texts("#weighed .tokens span") == ["<s>", "a", " cat", " sleeps", " so"]
    assert tab.texts("#weighed .tokens .frame") == ["<s>", " so"]
    shades = tab.value(
        "Array.from(document.querySelectorAll('#weighed .tokens span'), node => getComputedStyle(node).backgroundColor)"
    )
    assert shades[0] == shades[3], "beyond full colour nothing is stronger"
    assert len(set(shades)) == 4
    tab.value("document.querySelector('#chosen').focus()")
    tab.press("ArrowDown")
    done(tab, "weights", says="Most weight in the text: “kitten”")
    tab.click("#weighed summary")
    tab.until("document.querySelector('#weighed details table')")
    assert tab.texts("#weighed details td") == ["60.00 %", "2.50 %", "15.00 %", "10.00 %", "5.00 %"]

    tab.fill("#list", "\n".join(reversed(TEXTS)))
    tab.fill("#query", "a cat sleeps")
    tab.click("#search-form button")
    done(tab, "search", says="Searched 3 texts.")
    (first, second) = (tab.texts(f"#found section:nth-child({side}) li") for side in (1, 2))
    for found, vector in ((first, vector_of), (second, other_vector_of)):
        scores = {text: float(vector(f"document{text}") @ vector("querya cat sleeps")) for text in TEXTS}
        assert found == [f"{scores[text]:.2f}{text}" for text in sorted(TEXTS, key=scores.get, reverse=True)]

    worst = tab.value(CONTRAST)
    assert len(worst) > 50
    assert worst[0][0] >= 4.5, worst[:3]
    well(tab, url)

    # Another method on one side: what is shown follows.
    tab.value("document.querySelector('#left').focus()")
    tab.press("ArrowDown")
    tab.until("document.querySelector('#compared h3').textContent === 'letters backwards'")
    tab.until("document.querySelector('#found h3').textContent === 'letters backwards'")
    done(tab, "compare", says="Compared 3 sentences.")
    assert cells(tab, 1) == cells(tab, 2)
    well(tab, url)


def test_one_key_shows_something(browser, server):
    tab = opened(browser, server[0])
    tab.until("offer !== null")
    tab.press("Enter", CONTROL)
    done(tab, "compare", says="Compared 6 sentences.")
    done(tab, "weights", says="Most weight")
    well(tab, server[0])


def test_without_a_mouse(browser, server):
    tab = opened(browser, server[0])
    tab.until("offer !== null")
    order = []
    for _ in range(9):
        tab.press("Tab")
        order.append(tab.value("document.activeElement.id || document.activeElement.textContent"))
        # What has the focus shows it.
        assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert order == ["texts", "left", "right", "Compare", "chosen", "Show weights", "list", "query", "Search"]
    tab.press("Enter")
    done(tab, "search", says="Searched 7 texts.")
    assert not tab.value("document.querySelector('#compare-status').textContent")
    tab.fill("#query", "flat tyre")
    tab.press("Enter")
    done(tab, "search", says="Searched 7 texts.")
    tab.value("document.querySelector('#list').focus()")
    tab.press("Enter", CONTROL)
    done(tab, "search", says="Searched 7 texts.")
    assert tab.value("document.querySelector('#list').value.split('\\n').length") == 7, "the key adds no line"


def test_everything_has_a_name(browser, server):
    tab = opened(browser, server[0])
    unnamed = tab.value(
        "Array.from(document.querySelectorAll('textarea, input, select'))"
        ".filter(node => node.labels.length !== 1).length"
    )
    assert unnamed == 0
    assert tab.texts("[role=status]") == [""] * 4
    assert tab.value("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_texts_of_every_kind_stay_texts(browser, server, width):
    url, _ = server
    odd = [
        "<img src=x onerror=alert(1)> & <b>bold</b>",
        "</textarea><script>document.title = 'taken'</script>",
        "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
        "\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d\u3002" * 20,
        "\N{FAMILY}\u200d\N{FIRE}" * 80,
        "x" * 5000,
        "a\tb",
        "same",
        "same",
    ]
    tab = opened(browser, url, width)
    tab.until("offer !== null")
    # Blank lines are no sentences.
    tab.fill("#texts", "\n\n  \n".join(odd) + "\n\n")
    tab.fill("#list", "\n".join(odd))
    tab.click("#compare-form button")
    done(tab, "compare", says="Compared 9 sentences. 1 text was too long for the model and cut.")
    tab.click("#search-form button")
    done(tab, "search", says="Searched 9 texts. 1 text was too long")
    assert sorted(tab.texts("#found section:first-child li span:last-child")) == sorted(odd)
    assert tab.texts("#compared section:first-child tbody bdi")[0] == odd[0]
    long = tab.texts("#compared section:first-child tbody bdi")[4]
    assert long.endswith("\N{FAMILY}\u200d\N{FIRE}\u2026"), "what is one to the eye is not cut through"
    assert not tab.value("document.querySelector('img, b:not(.named b)')")
    assert tab.value("document.title") == "valuembed"
    well(tab, url)


@pytest.mark.slow
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_many_texts(browser, server, width):
    url, _ = server
    tab = opened(browser, url, width)
    tab.until("offer !== null")
    tab.put("#texts", "\n".join(f"sentence {number}" for number in range(101)))
    tab.click("#compare-form button")
    done(tab, "compare", says="101 sentences; at most 100 are compared at once. Search takes more.")
    assert tab.value("document.querySelector('#compare-status').classList.contains('wrong')")
    tab.put("#texts", "\n".join(f"sentence {number}" for number in range(100)))
    tab.click("#compare-form button")
    done(tab, "compare", says="Compared 100 sentences.")
    assert len(tab.texts("#compared td")) == 20_000
    tab.put("#list", "\n".join(f"sentence {number}" for number in range(700)))
    tab.click("#search-form button")
    done(tab, "search", says="Searched 700 texts; the first 100 are shown.")
    assert len(tab.texts("#found li")) == 200
    well(tab, url)


def test_nothing_to_do(browser, server):
    tab = opened(browser, server[0])
    tab.until("offer !== null")
    for field in ("#texts", "#list"):
        tab.fill(field, " ")
    for part, says in (
        ("compare", "Write a sentence first."),
        ("weights", "Write a sentence first, in the part above."),
        ("search", "Paste some texts first."),
    ):
        tab.click(f"#{part}-form button")
        done(tab, part, says=says)
    tab.fill("#list", "a text")
    tab.fill("#query", " ")
    tab.click("#search-form button")
    done(tab, "search", says="Write a query first.")
    tab.fill("#texts", "one")
    tab.click("#compare-form button")
    done(tab, "compare", says="Compared 1 sentence.")
    assert cells(tab, 1) == [["1.00"]]
    well(tab, server[0])


def test_errors_are_shown_where_they_belong(browser, server):
    tab = opened(browser, server[0])
    tab.until("offer !== null")
    tab.click("#compare-form button")
    done(tab, "compare", says="Compared 6 sentences.")
    tab.fill("#texts", "fine\nuntokenizable\nfine")
    tab.click("#compare-form button")
    done(tab, "compare", says="Line 2: cannot be embedded: it is untokenizable")
    assert tab.value("document.querySelector('#compared').hidden"), "what was found before is no answer"
    tab.value("document.querySelector('#right').value = 'served'")
    tab.fill("#list", "fine\npoison")
    tab.click("#search-form button")
    done(tab, "search", says="Line 2: the model failed on it")
    assert tab.value("document.querySelector('#found').hidden")
    assert all("Failed to load resource" in complaint for complaint in tab.complaints)


def test_the_key_stays_in_memory(browser):
    with running(PageEngine(), keys=[KEY]) as (url, _):
        tab = opened(browser, url, PHONE)
        tab.until("!document.querySelector('#key-form').hidden")
        tab.until("document.activeElement.id === 'key'")
        assert tab.text("#key-status") == ""
        for wrong in ("not this one", "schl\u00fcssel"):
            tab.fill("#key", wrong)
            tab.press("Enter")
            tab.until("document.querySelector('#key-status').textContent === 'This key does not open the server.'")
        tab.fill("#key", KEY)
        tab.press("Enter")
        tab.until("document.querySelector('#key-form').hidden && offer !== null")
        tab.click("#compare-form button")
        done(tab, "compare", says="Compared 6 sentences.")
        assert tab.value("[localStorage.length, sessionStorage.length, document.cookie, location.search]") == [
            0, 0, "", "",
        ]  # fmt: skip
        tab.open(f"{url}/")
        tab.until("!document.querySelector('#key-form').hidden")
        # Asked for something without a key, it asks for the key first.
        tab.click("#compare-form button")
        done(tab, "compare", says="the key is missing or wrong")
        assert tab.value("document.activeElement.id") == "key"


def test_a_server_that_is_gone_and_back(browser):
    engine = PageEngine()
    with running(engine, limits=Limits(answer_seconds=0.2)) as (url, _):
        tab = opened(browser, url)
        tab.until("offer !== null")
        engine.hold()
        tab.click("#compare-form button")
        tab.until(f"{shown('compare')} === 'Working\u2026'")
        done(tab, "compare", says="no answer was found in 0.2 s")
        engine.open.set()
        tab.click("#compare-form button")
        done(tab, "compare", says="Compared 6 sentences.")
    tab.click("#search-form button")
    done(tab, "search", says="The server cannot be reached. Try again.")


def test_asking_again_ends_what_was_asked_before(browser):
    engine = PageEngine()
    with running(engine) as (url, app):
        tab = opened(browser, url)
        tab.until("offer !== null")
        engine.hold()
        tab.fill("#texts", "the first")
        tab.click("#compare-form button")
        assert engine.entered.wait(10)
        tab.fill("#texts", "the\nsecond")
        tab.click("#compare-form button")
        until(lambda: app.state.serving.batcher.waiting()[0] == 1)
        engine.open.set()
        done(tab, "compare", says="Compared 2 sentences.")
        assert tab.texts("#compared section:first-child tbody bdi") == ["the", "second"]
        until(lambda: app.state.serving.admission.requests == 0)
        well(tab, url)


def test_a_screen_that_is_turned(browser, server):
    tab = opened(browser, server[0], DESKTOP)
    tab.until("offer !== null")
    tab.press("Enter", CONTROL)
    done(tab, "compare", says="Compared 6 sentences.")
    tab.look(*PHONE)
    fits = (
        "Array.from(document.querySelectorAll('#compared svg'))"
        ".every(map => map.viewBox.baseVal.width <= window.innerWidth)"
    )
    tab.until(fits)
    assert len(tab.texts("#compared svg circle")) == 12
    well(tab, server[0])


def test_other_scripts_do_not_run(browser, server):
    tab = opened(browser, server[0])
    tab.value(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.taken = 1' })), "
        "document.body.insertAdjacentHTML('beforeend', '<p onclick=\"window.taken = 2\" id=trap>trap</p>'), "
        "document.querySelector('#trap').click(), 0"
    )
    assert tab.value("window.taken") is None
    outside = tab.value("fetch('http://127.0.0.1:9/').then(() => 'went out', error => String(error))")
    assert outside == "TypeError: Failed to fetch"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.parametrize("method", ["va", "hidden_mean"])
def test_the_bundled_model(browser, method):
    with running(valuembed.load("bundled", method)) as (url, _):
        tab = opened(browser, url, PHONE)
        tab.until("offer !== null")
        tab.click("#compare-form button")
        done(tab, "compare", says="Compared 6 sentences.")
        done(tab, "weights", says="Most weight in the text:")
        tab.click("#search-form button")
        done(tab, "search", says="Searched 7 texts.")
        signals = tab.value("chosen().map(method => method.signal)")
        assert sorted(signals) == ["hidden", "value"], "values stand against hidden states"
        for side in (1, 2):
            found = np.array(cells(tab, side), float)
            np.testing.assert_allclose(found, found.T)
            np.testing.assert_allclose(found.diagonal(), 1)
        assert cells(tab, 1) != cells(tab, 2)
        well(tab, url)
