"""The built book in Chromium: every page at the width of a desk and of a phone, the search, the explorer, the links.

`make book` makes the pages, and .ci/run makes them before it runs the tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from . import browser

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build" / "html"
FAULTS = (ROOT / "tests" / "faults.js").read_text(encoding="utf-8")
DESK, PHONE = 1280, 390
# What may be scrolled inside its own box, the page standing still.
MAY_SCROLL = {DESK: {"figure"}, PHONE: {"code", "table", "figure"}}
PAGES = sorted(path.relative_to(HTML).as_posix() for path in (HTML / "book").rglob("*.html"))
EXPLORER = "book/chapters/thresholds.html"

pytestmark = [
    pytest.mark.skipif(browser.PROGRAM is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.skipif(not PAGES, reason="no built pages in _build/html: make book"),
]


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Browser]:
    opened = browser.Browser(HTML)
    yield opened
    opened.close()


def look(tab: browser.Browser, width: int) -> list[str]:
    """What is wrong with the open page at this width."""
    tab.resize(width)
    found = tab.run(FAULTS)
    return [f"{width} px, {each['kind']}: {each['what']}" for each in found if each["kind"] not in MAY_SCROLL[width]]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole_at_every_width_and_needs_nobody_else(tab: browser.Browser, page: str) -> None:
    tab.open(page, DESK)
    faults = [*look(tab, DESK), *look(tab, PHONE), *tab.troubles]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("<div style='width: 2000px'>wide</div>", "page"),
        ("<div style='width: 50px; overflow: hidden; white-space: nowrap'>a long text that is cut off</div>", "cut"),
        ("<div style='height: 9px; overflow: hidden'>one line<br>and another</div>", "cut"),
        ("<svg width='90' height='40'><text x='60' y='20'>a label beyond the edge</text></svg>", "cut"),
        (f"<pre style='overflow: auto'>{'code ' * 60}</pre>", "code"),
        (
            f"<div style='overflow: auto'><table><tr>{'<td>cell&nbsp;of&nbsp;a&nbsp;table</td>' * 30}</table></div>",
            "table",
        ),
        ("<p style='position: absolute; left: -80px'>out</p>", "out"),
    ],
)
def test_what_is_broken_is_found(tab: browser.Browser, broken: str, kind: str) -> None:
    tab.open("book/references.html", DESK)
    assert not look(tab, DESK)
    tab.run(f"document.querySelector('article').insertAdjacentHTML('beforeend', {broken!r})")
    assert f"{DESK} px, {kind}: " in "".join(look(tab, DESK))


def test_errors_and_foreign_requests_are_heard(tab: browser.Browser) -> None:
    tab.open("book/references.html", DESK)
    tab.run("setTimeout(() => { console.error('said'); throw Error('thrown'); })")
    tab.run("fetch('https://elsewhere.example/x.js').catch(() => new Promise((done) => setTimeout(done, 50)))")
    heard = "\n".join(tab.troubles)
    for each in ("console: ['said']", "exception: Error: thrown", "foreign request: https://elsewhere.example/x.js"):
        assert each in heard


CHAPTER_OF = {"speedup": "latency", "speed-up": "latency", "calibration": "calibration"}


@pytest.mark.parametrize("words", ["speedup", "speed-up", "early exit", "calibration"])
def test_search_finds(tab: browser.Browser, words: str) -> None:
    tab.open(f"search.html?q={words.replace(' ', '+')}", DESK)
    tab.wait("/finished|did not match/.test((document.querySelector('.search-summary') || {}).textContent || '')")
    found = tab.run("[...document.querySelectorAll('ul.search li a')].map((each) => each.getAttribute('href'))")
    assert found, f"nothing for {words!r}"
    assert any(CHAPTER_OF.get(words, "") in each for each in found), found
    assert not tab.troubles


def test_search_does_not_find_everything(tab: browser.Browser) -> None:
    tab.open("search.html?q=zweisprachigkeitsfrage", DESK)
    tab.wait("/did not match/.test((document.querySelector('.search-summary') || {}).textContent || '')")
    assert not tab.run("document.querySelectorAll('ul.search li a').length")


SHOWN = "[...document.querySelectorAll('.ee-live output, .ee-live svg')].map((each) => each.outerHTML).join()"


def test_the_explorer_moves(tab: browser.Browser) -> None:
    tab.open(EXPLORER, DESK)
    seen = {tab.run(SHOWN)}
    tab.run("document.querySelector('.ee-live input').focus()")
    for key in ("ArrowRight", "Home"):
        for event in ("keyDown", "keyUp"):
            tab.command("Input.dispatchKeyEvent", type=event, key=key, code=key, windowsVirtualKeyCode=KEYS[key])
        seen.add(tab.run(SHOWN))
    for number in range(3):
        tab.run(
            f"(() => {{ const each = document.querySelectorAll('.ee-live select')[{number}];"
            "each.selectedIndex = (each.selectedIndex + 1) % each.length;"
            "each.dispatchEvent(new Event('change')); })()"
        )
        seen.add(tab.run(SHOWN))
    assert len(seen) == 6, "a control changed nothing"
    assert not look(tab, DESK)
    assert not tab.troubles


KEYS = {"ArrowRight": 39, "Home": 36}


def test_the_explorer_has_round_ticks_and_is_seen_in_the_dark(tab: browser.Browser) -> None:
    tab.open(EXPLORER, DESK, dark=True)
    tab.run("document.documentElement.dataset.theme = 'dark'")
    ticks = tab.run(
        "[...document.querySelectorAll('.ee-live svg text[text-anchor=end]')].map((each) => each.textContent)"
    )
    assert ticks
    assert all(re.fullmatch(r"\d+(\.[05])?", tick) for tick in ticks), ticks
    contrasts = tab.run(CONTRASTS)
    assert contrasts
    assert min(contrasts) >= 3, "WCAG 2.2 asks for 3 to 1 of what must be seen to understand a drawing"


# The contrast of every curve, by its colour as it is seen, against what lies behind it.
CONTRASTS = """[...document.querySelectorAll('.ee-live polyline')].map((line) => {
  const light = (text) => {
    const parts = text.match(/[0-9.]+/g).map(Number), [r, g, b] = parts.slice(0, 3).map((each) => {
      const share = each / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return parts[3] === 0 ? null : 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let below = line, behind = null;
  while (behind === null && (below = below.parentElement)) behind = light(getComputedStyle(below).backgroundColor);
  const share = Number(getComputedStyle(line).opacity);
  const seen = share * light(getComputedStyle(line).stroke) + (1 - share) * behind;
  return (Math.max(seen, behind) + 0.05) / (Math.min(seen, behind) + 0.05);
})"""


class _Links(HTMLParser):
    """The addresses a page links to, and the names within it that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names = {"", "top"}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names.add(given.get("id", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


def dead_links(html: Path) -> list[str]:
    """Links between the pages below a folder that lead nowhere, a place within a page included."""
    pages = {
        path.relative_to(html).as_posix(): _Links(path) for path in html.rglob("*.html") if "_static" not in str(path)
    }
    found = []
    for page, read in pages.items():
        for link in read.links:
            parts = urlsplit(urljoin(f"//book/{page}", link))
            if parts.scheme in ("http", "https", "mailto", "javascript") or parts.netloc != "book":
                continue
            target = unquote(parts.path).lstrip("/")
            whole = target in pages or (html / target).is_file()
            if not whole or (target in pages and unquote(parts.fragment) not in pages[target].names):
                found.append(f"{page}: {link}")
    return found


def test_links_resolve() -> None:
    assert dead_links(HTML) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a><a href="b.html#not">y</a><a href="c.html">z</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="https://elsewhere.example">e</a><a href="#">top</a></p>')
    assert dead_links(tmp_path) == ["a.html: b.html#not", "a.html: c.html"]
