"""A Sphinx math renderer that writes MathML: a page needs no script and no other host to show an equation.

latex2mathml translates; this file repairs what browsers would show wrong (`repair`) and turns what it did not
understand into a warning, which fails a build run with -W. Select it with `html_math_renderer: mathml`.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

LIMITS = {"max", "min", "sup", "inf", "lim", "arg\u2009max", "arg\u2009min"}
FUNCTIONS = {"log", "ln", "exp", "det", "tanh", "cos", "sin", "argmin", "argmax", "softmax"}
PARTS = {"mfrac": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
# \bar, \hat, \tilde: the spacing characters sit at the right height; the ASCII ones touch the letter.
ACCENTS = {"\u00af": "\u203e", "^": "\u02c6", "~": "\u02dc"}
# Browsers know no mathvariant but "normal": the letters of the other alphabets are characters of their own.
# variant -> first code point of A-Z, a-z, alpha-omega, 0-9 (None: latex2mathml writes the character itself).
ALPHABETS: dict[str, tuple[int, int, int | None, int | None]] = {
    "bold": (0x1D400, 0x1D41A, 0x1D6C2, 0x1D7CE),
    "bold-italic": (0x1D468, 0x1D482, 0x1D736, None),
    "double-struck": (0x1D538, 0x1D552, None, 0x1D7D8),
}
ARG = re.compile(r"\\arg\s*(?:\\,)?\s*\\(max|min)(?![A-Za-z])|\\operatorname\*?\{\s*arg\s*\\,\s*(max|min)\s*\}")


def mathml(latex: str, display: bool) -> str:
    """One formula as a `<math>` element. ValueError names the part latex2mathml does not know."""
    latex = ARG.sub(lambda found: rf"\arg{found[1] or found[2]}", latex.strip())
    latex = re.sub(r"\{(align|gather|multline)ed\}|\{(?:align|gather|equation)\*?\}", "{split}", latex)
    # Sphinx's own convention: \\ outside an environment breaks lines that are aligned at &.
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    try:
        # The library leaves a bare "&" of the source unescaped.
        text = convert(latex, display="block" if display else "inline")
        root = ElementTree.fromstring(re.sub(r"&(?![#\w]+;)", "&amp;", text))
    except Exception as error:  # the library's parser has a dozen exception classes without a common one
        raise ValueError(f"cannot translate {latex!r}: {type(error).__name__} {error}") from error
    for element in root.iter():
        repair(element)
        tag = element.tag.rpartition("}")[2]
        if len(element) != PARTS.get(tag, len(element)):
            raise ValueError(f"cannot translate {latex!r}: {tag} needs {PARTS[tag]} parts, {len(element)} are given")
        if (element.text or "").startswith("\\") or element.text == "&":
            raise ValueError(f"unknown command {element.text!r} in {latex!r}")
    return ElementTree.tostring(root, encoding="unicode").replace("ns0:", "").replace("xmlns:ns0", "xmlns")


def repair(element: ElementTree.Element) -> None:
    """In place: what latex2mathml writes in a way that browsers (MathML Core) ignore."""
    tag = element.tag.rpartition("}")[2]
    prefix = element.tag[: -len(tag)]
    if element.text in (r"\{", r"\}", r"\|"):
        element.text = {"{": "{", "}": "}", "|": "\u2016"}[element.text[1]]
    if tag == "mover" and (element[1].text or "") in ACCENTS:
        element[1].text = ACCENTS[element[1].text or ""]
        element[1].attrib.update({"stretchy": "false", "accent": "true"})
    if tag == "mi" and element.text == ":":
        element.tag = prefix + "mo"
        element.attrib.update({"lspace": "0.278em", "rspace": "0.278em"})  # a relation
    if tag in ("mi", "mo") and (element.text or "") in LIMITS | FUNCTIONS:
        element.tag = prefix + "mo"
        element.attrib.update({"form": "prefix", "lspace": "0.167em", "rspace": "0.167em"})
    if tag in ("msub", "msubsup") and len(element) and (element[0].text or "") in LIMITS:
        element.tag = prefix + {"msub": "munder", "msubsup": "munderover"}[tag]
        element[0].set("movablelimits", "true")
    variant = element.get("mathvariant", "")
    if variant in ALPHABETS and element.text:
        element.text = "".join(in_alphabet(letter, variant) for letter in element.text)
        del element.attrib["mathvariant"]
    if element.text in ("|", "\u2016") and not element.attrib:
        element.set("stretchy", "false")  # only \\left and \\right stretch
    if tag == "mtable" and element.get("columnspacing", "").startswith("0em"):
        element.set("class", "aligned")
    if "columnalign" in element.attrib:
        element.set("style", f"text-align: {element.attrib.pop('columnalign')}")


def in_alphabet(letter: str, variant: str) -> str:
    """The character of `letter` in the mathematical alphabet `variant`; `letter` itself where it has none."""
    starts = ALPHABETS[variant]
    for start, first, last in zip(starts, "Aa\u03b10", "Zz\u03c99", strict=True):
        if start is not None and first <= letter <= last:
            return chr(start + ord(letter) - ord(first))
    return letter


def render(self: Any, node: nodes.Element, display: bool) -> str:
    try:
        return mathml(node.astext(), display)
    except ValueError as error:
        logger.warning("math: %s", error, location=node)
        return f"<code>{html.escape(node.astext())}</code>"


def visit_inline(self: Any, node: nodes.math) -> None:
    self.body.append(f'<span class="math notranslate">{render(self, node, display=False)}</span>')
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(f'<div class="formula">{render(self, node, display=True)}</div>')
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
