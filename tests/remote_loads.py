"""What built pages would load from another host: python -m tests.remote_loads _build/html, status 1 if there is any."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path


def remote_loads(html: Path) -> list[str]:
    """What the pages under `html` would load from another host when looked at: "page: tag address", sorted.

    Links that a reader may click are no loads. Scripts are trusted to load nothing themselves.
    """
    found = []
    for path in sorted(html.rglob("*")):
        if path.suffix == ".html":
            loads = _Loads()
            loads.feed(path.read_text(encoding="utf-8", errors="replace"))
            found += [f"{path.relative_to(html)}: {load}" for load in loads.found]
        elif path.suffix == ".css":
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [f"{path.relative_to(html)}: {load}" for load in _css_loads(text)]
    return found


class _Loads(HTMLParser):
    """Collects addresses on other hosts that a browser fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_style = tag == "style"
        given = {name: value or "" for name, value in attrs}
        names = ["src", "srcset", "poster", "data"] + (["href"] if tag in ("link", "image", "use") else [])
        if tag == "link" and not {"canonical", "next", "prev", "author", "license"}.isdisjoint(
            given.get("rel", "").split()
        ):
            return
        self.found += [f"{tag} {given[name]}" for name in names if _elsewhere(given.get(name, ""))]
        self.found += _css_loads(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.found += _css_loads(data)

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False


def _elsewhere(address: str) -> bool:
    return re.match(r"\s*(https?:)?//", address, re.IGNORECASE) is not None


def _css_loads(text: str) -> list[str]:
    addresses = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)", text)
    return [f"css {address}" for address in addresses if _elsewhere(address)]


if __name__ == "__main__":
    pages = Path(sys.argv[1])
    sys.exit("\n".join(remote_loads(pages)) or 0 if (pages / "index.html").is_file() else f"{pages}: no pages")
