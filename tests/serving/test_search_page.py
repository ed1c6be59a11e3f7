"""The page to search an index with, in a headless Chromium: by hand, by keys and by fingers."""

from __future__ import annotations

import itertools

import pytest
from browser import CHROMIUM, CONTRAST, browsing
from pages import KEY, PageEngine
from serving import running, until
from stored_map import PASSAGES, FakeIndex, FakeMap, map_of

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
]

DESKTOP, PHONE = (1280, 900), (390, 844)
SHIPS = PASSAGES["harbour.md"]
DONE = "!document.body.classList.contains('busy')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def index():
    return FakeIndex()


@pytest.fixture
def url(index):
    with running(PageEngine("fake/model"), index=index, index_map=FakeMap(index)) as (url, _):
        yield url


def opened(browser, url, width=DESKTOP, scheme="light", hash=""):
    tab = browser()
    tab.look(*width, scheme)
    tab.open(f"{url}/{hash}")
    tab.until("corpus.map !== null && finding.index !== null")
    return tab


def searched(tab, query):
    tab.fill("#query", query)
    tab.press("Enter")
    tab.until(f"finding.state.q === {query!r} && {DONE} && document.querySelectorAll('.hit').length")


def well(tab, url):
    """Nothing broke the layout or left this server, and nothing was complained of."""
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    assert tab.complaints == []
    assert {address[: len(url)] for address in tab.requests if not address.startswith("data:")} == {url}


def focused(tab):
    return tab.value("[...document.querySelectorAll('.hit')].indexOf(document.activeElement)")


def place(tab, number):
    """Where a point of the map is on the screen."""
    return tab.value(
        f"(() => {{ const box = document.querySelector('#map').getBoundingClientRect(); const [x, y] = "
        f"shownAt(corpus.points.x[{number}], corpus.points.y[{number}]); "
        "return [box.left + 1 + x, box.top + 1 + y]; })()"
    )


@pytest.mark.parametrize(("width", "scheme"), list(itertools.product((DESKTOP, PHONE), ("light", "dark"))))
def test_a_search(browser, url, width, scheme):
    tab = opened(browser, url, width, scheme)
    assert "6 passages from guide." in tab.text("#empty")
    searched(tab, "ships leave")
    assert tab.text("#status") == "6 passages, best first."
    assert tab.texts(".hit:first-child mark") == ["Ships", "leave"]
    assert tab.texts(".hit:first-child .passage") == [SHIPS[0]]
    assert tab.texts(".hit:first-child .file") == ["harbour.md line 1"]
    assert tab.texts(".hit:first-child .trail") == ["Harbour \u203a First \u203a Second"]
    assert "garden.pdf page 2" in tab.texts(".hit .file")
    worst = tab.value(CONTRAST)
    assert len(worst) > 30
    assert worst[0][0] >= 4.5, worst[:3]
    if width == PHONE:
        assert tab.value("document.querySelector('#map-part').checkVisibility()") is False
        tab.click("#show-map")
        assert tab.value("document.querySelector('#results').checkVisibility()") is False
    tab.until("corpus.hits.length === 6 && corpus.width > 0")
    tab.until("document.querySelector('#labels span').style.visibility === 'visible'")
    assert tab.value(CONTRAST)[0][0] >= 4.5
    well(tab, url)


def test_the_address_carries_what_is_asked(browser, url, index):
    tab = opened(browser, url)
    searched(tab, "ships")
    assert tab.value("location.hash") == "#q=ships"
    searched(tab, "herbs")
    tab.value("history.back()")
    tab.until(f"document.querySelector('#query').value === 'ships' && finding.state.q === 'ships' && {DONE}")
    assert tab.texts(".hit:first-child mark") == ["ships"]
    tab.value("history.forward()")
    tab.until(f"document.querySelector('#query').value === 'herbs' && {DONE}")
    other = opened(browser, url, hash="#q=sun&where=file+LIKE+%27garden%25%27&hybrid=1&k=2")
    other.until("document.querySelectorAll('.hit').length === 2")
    assert index.asked[-1] == {"query": "sun", "like": None, "k": 2, "where": "file LIKE 'garden%'", "hybrid": True}
    assert other.text("#options-told").strip() == "· filtered · also by words · 2 results"
    assert other.text("#status") == "2 passages, by meaning and words, filtered, best first."
    assert other.value("document.querySelector('#hybrid').checked")
    # What is asked never reaches a server's log by way of an address.
    assert all("sun" not in address.partition("#")[0] for address in other.requests)


def test_writing_asks_and_leaves_one_entry(browser, url, index):
    tab = opened(browser, url)
    before = tab.value("history.length")
    tab.fill("#query", "ship")
    tab.until("document.querySelectorAll('.hit').length")
    tab.fill("#query", "ships")
    tab.until(f"finding.state.q === 'ships' && {DONE}")
    assert tab.value("history.length") == before + 1
    tab.fill("#query", "")
    tab.until("!document.querySelectorAll('.hit').length")
    assert "6 passages" in tab.text("#empty")


def test_a_late_answer_is_dropped(browser, url, index):
    tab = opened(browser, url)
    index.open.clear()
    tab.fill("#query", "slow")
    tab.press("Enter")
    until(lambda: index.asked and index.asked[-1]["query"] == "slow")
    searched(tab, "herbs")
    assert tab.texts(".hit:first-child mark") == ["herbs"]
    index.open.set()
    tab.value("new Promise(done => setTimeout(done, 100))")
    assert tab.value("[finding.state.q, document.querySelectorAll('mark').length]") == ["herbs", 2]
    well(tab, url)


def test_without_a_mouse(browser, url):
    tab = opened(browser, url)
    tab.value("document.activeElement.blur()")
    tab.press("/")
    assert tab.value("[document.activeElement.id, document.querySelector('#query').value]") == ["query", ""]
    searched(tab, "ships")
    tab.until("corpus.hits.length")
    tab.press("ArrowDown")
    assert focused(tab) == 0
    tab.press("j")
    tab.press("ArrowDown")
    assert focused(tab) == 2
    tab.press("k")
    assert focused(tab) == 1
    assert tab.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert tab.value("corpus.lit") == tab.value("corpus.hits[1]")
    tab.press("Enter")
    assert tab.value("document.activeElement.querySelector('.whole').getAttribute('aria-expanded')") == "true"
    tab.press("s")
    tab.until(f"finding.state.like && {DONE} && document.querySelectorAll('.hit').length === 5")
    tab.until("document.activeElement.classList.contains('hit')")
    assert "Similar to harbour.md, line" in tab.text("#about")
    tab.press("Escape")
    tab.until(f"finding.state.q === 'ships' && {DONE} && document.querySelectorAll('.hit').length === 6")
    tab.press("j")
    tab.press("Escape")
    assert tab.value("document.activeElement.id") == "query"


def test_a_filter(browser, url, index):
    tab = opened(browser, url)
    searched(tab, "ships")
    tab.click("#options summary")
    assert tab.texts("#columns button") == ["source string", "file string", "text string", "label name string"]
    tab.click("#columns li:nth-child(4) button")
    assert tab.value("document.querySelector('#where').value") == '"label name"'
    tab.fill("#where", "weather > 3")
    tab.press("Enter")
    tab.until("document.querySelector('#where-wrong').textContent")
    assert tab.text("#where-wrong").startswith("The filter 'weather > 3' cannot be applied: no field named weather;")
    assert tab.text("#status") == "The filter cannot be applied."
    assert tab.value("document.querySelector('#where').getAttribute('aria-invalid')") == "true"
    assert tab.value("document.querySelectorAll('.hit').length") == 0, "what was found before is no answer"
    tab.fill("#where", "file LIKE 'garden%'")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.hit').length === 3")
    assert tab.text("#where-wrong") == ""
    tab.fill("#where", "file LIKE 'none%'")
    tab.press("Enter")
    tab.until("document.querySelector('#status').textContent === 'Nothing found.'")
    assert "The filter leaves no passages." in tab.text("#empty")
    tab.click("#empty button")
    tab.until("document.querySelectorAll('.hit').length === 6")


def test_errors_in_words(browser, url, index):
    tab = opened(browser, url, hash="#like=garden.pdf%239")
    tab.until("document.querySelector('#status').classList.contains('bad')")
    assert tab.text("#status") == "That passage is no longer in the index."
    tab.click("#options summary")
    tab.fill("#k", "500")
    tab.fill("#query", "untokenizable")
    tab.press("Enter")
    tab.until("document.querySelector('#status').textContent.startsWith('k: 500; at most 100')")
    tab.value("document.querySelector('#k').value = 10")
    tab.press("Enter")
    tab.until("document.querySelector('#status').textContent === 'query: it cannot be embedded: it is untokenizable'")


def test_the_key_stays_in_memory(browser, index):
    with running(PageEngine(), keys=[KEY], index=index, index_map=FakeMap(index)) as (url, _):
        tab = browser()
        tab.look(*PHONE)
        tab.open(f"{url}/#q=ships")
        tab.until("document.activeElement.id === 'key'")
        tab.fill("#key", "not this one")
        tab.press("Enter")
        tab.until("document.querySelector('#key-status').textContent === 'This key does not open the server.'")
        tab.fill("#key", KEY)
        tab.press("Enter")
        tab.until("document.querySelectorAll('.hit').length === 6 && corpus.map !== null")
        assert tab.value("[document.querySelector('#key-form').hidden, localStorage.length, document.cookie]") == [
            True, 0, "",
        ]  # fmt: skip
        assert KEY not in tab.value("location.href")


class TestMap:
    def test_a_point_tells_its_passage_and_finds_similar_ones(self, browser, url):
        tab = opened(browser, url)
        x, y = place(tab, 4)
        tab.mouse("mouseMoved", x, y)
        tab.until("!document.querySelector('#tip').hidden")
        assert tab.text("#tip").split() == ["garden.pdf,", "page", "2", "Tomatoes", "need", "the", "sun."]
        tab.mouse("mousePressed", x, y, button="left", clickCount=1)
        tab.mouse("mouseReleased", x, y, button="left", clickCount=1)
        tab.until("document.querySelectorAll('.hit').length === 5")
        assert tab.value("finding.state.like") == "garden.pdf#1"
        well(tab, url)

    def test_moves_and_zooms(self, browser, url):
        tab = opened(browser, url)
        before = place(tab, 0)
        x, y = tab.value("(() => { const box = $('map').getBoundingClientRect(); return [box.left + box.width / 2, "
                         "box.top + box.height / 2]; })()")  # fmt: skip
        tab.mouse("mousePressed", x, y, button="left", clickCount=1)
        tab.mouse("mouseMoved", x + 50, y + 20, button="left", buttons=1)
        tab.mouse("mouseReleased", x + 50, y + 20, button="left", clickCount=1)
        after = place(tab, 0)
        assert after == pytest.approx([before[0] + 50, before[1] + 20])
        tab.mouse("mouseWheel", *after, deltaX=0, deltaY=-100)
        tab.until("corpus.view.zoom > 1.3")
        assert place(tab, 0) == pytest.approx(after, abs=1), "what is under the mouse stays there"
        tab.value("document.querySelector('#map').focus()")
        tab.press("ArrowLeft")
        assert place(tab, 0) == pytest.approx([after[0] + 60, after[1]], abs=1)
        tab.press("0")
        tab.until("corpus.view.zoom === 1 && corpus.view.x === 0")
        assert place(tab, 0) == pytest.approx(before)

    def test_two_fingers(self, browser, url):
        tab = opened(browser, url, PHONE)
        tab.click("#show-map")
        tab.until("corpus.width > 0")
        x, y = tab.value(
            "(() => { const box = $('map').getBoundingClientRect(); return [box.left + 150, box.top + 250]; })()"
        )
        tab.touch((x - 50, y), (x + 50, y))
        tab.touch((x - 100, y), (x + 100, y))
        tab.touch()
        tab.until("Math.abs(corpus.view.zoom - 2) < .01")
        tab.click("#zoom-all")
        tab.until("corpus.view.zoom === 1")
        tab.touch(tuple(place(tab, 0)))
        tab.touch()
        tab.until("!document.querySelector('#picked').hidden")
        assert SHIPS[0] in tab.text("#picked")
        tab.click("#picked button")
        tab.until("document.querySelectorAll('.hit').length === 5")
        assert tab.value("document.querySelector('#results').checkVisibility()")
        well(tab, url)

    def test_areas_are_a_list_too(self, browser, url):
        tab = opened(browser, url)
        tab.click("#areas-part summary")
        assert tab.texts("#areas button") == ["harbour, ships3", "herbs, sun3"]
        tab.value("document.querySelector('#areas li:last-child button').focus()")
        tab.press("Enter")
        tab.until("!document.querySelector('#picked').hidden && corpus.view.x > .59")
        assert tab.texts("#picked p") == PASSAGES["garden.pdf"]
        assert tab.value("document.querySelector('#areas li:last-child button').getAttribute('aria-pressed')") == "true"
        tab.press("Escape")
        assert tab.value("[corpus.area, document.querySelector('#picked').hidden]") == [-1, True]

    def test_is_shown_once_it_is_made(self, browser, index):
        a_map = FakeMap(index)
        made, a_map.found = a_map.found, None
        a_map.told = {"state": "making", "step": "placing", "done": 0.5}
        with running(PageEngine(), index=index, index_map=a_map) as (url, _):
            tab = browser()
            tab.look(*DESKTOP)
            tab.open(f"{url}/#q=ships")
            tab.until("document.querySelector('#map-status progress')")
            assert tab.value("document.querySelector('#map-status progress').value") == 0.5
            assert tab.text("#map-status").strip() == "Placing the passages…"
            tab.until("document.querySelectorAll('.hit').length === 6")
            a_map.found, a_map.told = made, {"state": "ready", "step": None, "done": None}
            tab.until("corpus.hits.length === 6")
            assert tab.text("#map-status") == ""
            # Another map takes its place when somebody asks for what is on the old one.
            a_map.found = map_of(index.keys, "2:6")
            tab.fill("#query", "herbs")
            tab.press("Enter")
            tab.until(f"corpus.map.version === '{a_map.found.version}' && corpus.hits.length === 6")

    def test_draws_every_point(self, browser, url):
        tab = opened(browser, url)
        tab.until("corpus.wanted === 0 && corpus.width > 0")
        found = tab.value(
            "(() => { const { canvas, context } = corpus.points; return corpus.hits.length + "
            "[0, 1, 2, 3, 4, 5].filter(at => { "
            "const [x, y] = shownAt(corpus.points.x[at], corpus.points.y[at]); "
            "return context.getImageData(Math.round(x * corpus.ratio), Math.round(y * corpus.ratio), 1, 1).data[3] === "
            "255; "
            "}).length; })()"
        )
        assert found == 6


def test_texts_of_every_kind_stay_texts(browser, url, index, monkeypatch):
    odd = [
        "<img src=x onerror=alert(1)> ships & <b>bold</b>",
        "\N{FIRE}\N{FIRE} ships \N{FIRE}",
        "\u0645\u0631\u062d\u0628\u0627 ships " + "x" * 3000,
    ]
    monkeypatch.setitem(PASSAGES, "harbour.md", odd)
    tab = opened(browser, url, PHONE)
    searched(tab, "ships")
    shown = tab.texts(".hit .passage")
    assert [text for text in shown if text in odd] == [text for text in shown if "ships" in text]
    assert tab.texts("mark") == ["ships"] * 3, "places are counted in characters"
    assert not tab.value("document.querySelector('img, .passage b')")
    well(tab, url)


def test_the_page_to_try_the_model_with_is_there_too(browser, url):
    tab = opened(browser, url)
    tab.click("#playground")
    tab.until("location.pathname === '/playground' && typeof offer !== 'undefined' && offer !== null")
    assert tab.text("#model") == "Model: fake/model. Texts go to this server only."
