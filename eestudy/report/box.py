"""A box of text that the book's theme knows, for what a chapter says first."""

from __future__ import annotations

import html
import re


class Box:
    """Sentences in a box; **bold** and new lines are Markdown's, all else is text."""

    def __init__(self, text: str, title: str = "In short") -> None:
        self.text, self.title = text, title

    def _repr_html_(self) -> str:
        bold = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(self.text))
        parts = "".join(f"<p>{line}</p>" for line in bold.splitlines() if line)
        return f'<div class="admonition tip"><p class="admonition-title">{html.escape(self.title)}</p>{parts}</div>'

    def __repr__(self) -> str:
        return f"{self.title}: {self.text}"
