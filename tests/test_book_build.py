"""The book: equations, the copy that is built, what pages may load, and the checks Sphinx does not make."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from eestudy.book import build, inputs, notebooks, run_pages
from eestudy.chapters.early_exits import early_exits
from eestudy.chapters.strategies import drawing
from eestudy.config import EestudyError, RunConfig
from eestudy.registry import STRATEGIES
from eestudy.store import Store
from eestudy.study import Study
from eestudy.training.phases import Phase

from .remote_loads import remote_loads

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("mathml", ROOT / "book" / "_ext" / "mathml.py")
assert _spec is not None
assert _spec.loader is not None
mathml = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mathml)


def tags(latex: str, display: bool = True) -> list[tuple[str, str]]:
    """(tag, text) of every element of a formula."""
    root = ElementTree.fromstring(mathml.mathml(latex, display))
    return [(element.tag.rpartition("}")[2], element.text or "") for element in root.iter()]


def write_notebook(path: Path, *cells: tuple[str, str], outputs: list | None = None) -> Path:
    """A notebook of (kind, source) cells; `outputs` go to the last code cell."""
    content = [
        {"cell_type": kind, "id": f"c{place}", "metadata": {}, "source": source}
        | ({"outputs": outputs or [], "execution_count": 1} if kind == "code" else {})
        for place, (kind, source) in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> build.Stage:
    """A small checkout: two pages, the committed configuration, style and extension."""
    for name in ("_config.yml", "book/references.bib"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    for folder in ("_static", "_ext"):
        for path in (ROOT / "book" / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = tmp_path / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    (tmp_path / "book" / "index.md").write_text(
        "# Start\n\nEquation {eq}`eq-cost` and {cite:t}`kaya2019`.\n\n$$\nc_k = \\sum_{l=1}^{l_k} F_l\n$$ (eq-cost)\n"
    )
    (tmp_path / "book" / "references.md").write_text("# References\n\n```{bibliography}\n```\n")
    write_notebook(tmp_path / "book" / "chapters" / "one.ipynb", ("markdown", "# One"), ("code", "1 + 1"))
    toc = {
        "format": "jb-book",
        "root": "book/index",
        "parts": [
            {"caption": "The study", "chapters": [{"file": "book/chapters/one"}]},
            {"caption": "Back matter", "chapters": [{"file": "book/references"}]},
        ],
    }
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    return build.Stage(tmp_path)


@pytest.fixture
def study() -> Study:
    settings = [("vit1d", "mnist1d", "mixed"), ("mlp", "digits", "joint"), ("resnet1d", "mnist1d", "joint")]
    return Study(
        "tiny",
        tuple(
            RunConfig(architecture=architecture, dataset=dataset, strategy=strategy, seed=seed, epochs=2)
            for architecture, dataset, strategy in settings
            for seed in (0, 1)
        ),
    )


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "_build" not in path.relative_to(root).parts
    }


def test_limits_stand_under_max_and_arg_max() -> None:
    for latex in (r"\max_c p_c", r"\arg\max_c p_c", r"\operatorname*{arg\,max}_c p_c", r"\argmax_c p_c"):
        names = [tag for tag, _ in tags(latex)]
        assert "munder" in names, latex
        assert "msub" in names, latex  # p_c stays a plain index


def test_lines_are_aligned_in_every_way_to_write_them() -> None:
    for latex in (
        r"\begin{aligned} a &= b \\ c &= d \end{aligned}",
        r"\begin{align*} a &= b \\ c &= d \end{align*}",
        r"a &= b \\ c &= d",
    ):
        names = [tag for tag, _ in tags(latex)]
        assert names.count("mtr") == 2, latex
        assert names.count("mtd") == 4, latex
        assert 'class="aligned"' in mathml.mathml(latex, True)


def test_bold_and_double_struck_are_characters_because_browsers_ignore_mathvariant() -> None:
    # Unicode, Mathematical Alphanumeric Symbols: bold one, bold italic x, double-struck one.
    for latex, character in (
        (r"\mathbf{1}", "\U0001d7cf"),
        (r"\boldsymbol{x}", "\U0001d499"),
        (r"\mathbb{1}", "\U0001d7d9"),
    ):
        assert character in mathml.mathml(latex, False)
        assert "mathvariant" not in mathml.mathml(latex, False)


def test_functions_and_colons_are_operators_with_room() -> None:
    assert ("mo", "log") in tags(r"p \log p")
    assert ("mo", ":") in tags(r"\{ k : k < K \}")
    assert ("mi", "p") in tags(r"p \log p")


def test_display_style_follows_the_kind_of_formula() -> None:
    assert 'display="block"' in mathml.mathml("x", True)
    assert 'display="inline"' in mathml.mathml("x", False)


@pytest.mark.parametrize("latex", [r"\nosuchcommand{x}", "x & y", r"\frac{1}", r"\left( x"])
def test_what_is_not_understood_is_an_error(latex: str) -> None:
    with pytest.raises(ValueError, match=r"unknown command|cannot translate"):
        mathml.mathml(latex, True)


def test_copy_holds_sources_and_touches_nothing_else(checkout: build.Stage) -> None:
    write_notebook(checkout.root / "book" / "runs" / "tiny" / "old.ipynb", ("markdown", "# Old"))
    (checkout.root / "book" / "results" / "tiny").mkdir(parents=True)
    (checkout.root / "book" / "results" / "tiny" / "runs.csv").write_text("run\n")
    (checkout.root / "book" / "results" / "large").mkdir()
    (checkout.root / "book" / "results" / "large" / "runs.csv").write_text("run\n")
    before = snapshot(checkout.root)
    assert build.copy_sources(checkout) > 0
    assert build.copy_sources(checkout) == 0
    assert snapshot(checkout.root) == before
    copied = set(snapshot(checkout.folder))
    results = {"book/results/tiny/runs.csv", "book/results/large/runs.csv"}
    assert {"_config.yml", "book/index.md", "book/_ext/mathml.py", *results} <= copied
    made_elsewhere = {"book/chapters/one.ipynb", "book/runs/tiny/old.ipynb"}
    assert not copied & made_elsewhere


def test_copy_follows_changes_and_keeps_what_was_made(checkout: build.Stage) -> None:
    build.copy_sources(checkout)
    page = write_notebook(checkout.book / "runs" / "tiny" / "a.ipynb", ("markdown", "# A"))
    chapter = write_notebook(checkout.book / "chapters" / "one.ipynb", ("markdown", "# One, executed"))
    (checkout.root / "book" / "index.md").write_text("# Changed\n")
    (checkout.root / "book" / "references.md").unlink()
    assert build.copy_sources(checkout) == 2
    assert (checkout.book / "index.md").read_text() == "# Changed\n"
    assert not (checkout.book / "references.md").exists()
    assert page.is_file()
    assert chapter.is_file()


def test_toc_has_run_pages_by_data_set_before_the_last_part(checkout: build.Stage, study: Study) -> None:
    build.write_toc(checkout, study)
    toc = yaml.safe_load((checkout.folder / "_toc.yml").read_text())
    assert [part["caption"] for part in toc["parts"]] == [
        "The study", "Runs on MNIST-1D", "Runs on digits", "Back matter",
    ]  # fmt: skip
    assert toc["parts"][1]["chapters"] == [
        {"file": "book/runs/tiny/vit1d-mnist1d-mixed", "title": "ViT-1D, mixed"},
        {"file": "book/runs/tiny/resnet1d-mnist1d-joint", "title": "ResNet-1D, joint"},
    ]
    assert len(yaml.safe_load((checkout.root / "_toc.yml").read_text())["parts"]) == 2


def test_pages_of_one_combination_are_told_apart_in_the_toc(checkout: build.Stage, study: Study) -> None:
    other = Study("tiny", (study.configs[0], study.configs[0].replace(epochs=3)))
    pages = run_pages.pages(other, checkout.book / "runs" / "tiny")
    titles = [chapter["title"] for chapter in build.run_parts(checkout, pages)[0]["chapters"]]
    assert titles == ["ViT-1D, mixed", "ViT-1D, mixed (2)"]


def test_heading_of_a_run_page_is_rewritten(study: Study, tmp_path: Path) -> None:
    notebook = json.loads(
        write_notebook(tmp_path / "a.ipynb", ("code", "# no heading"), ("markdown", "# A run\n\n# B")).read_text()
    )
    notebooks.set_title(notebook, run_pages.pages(study, tmp_path)[0].title)
    assert notebook["cells"][0]["source"] == "# no heading"
    assert "".join(notebook["cells"][1]["source"]) == "# ViT-1D on MNIST-1D, mixed\n\n# B"


def test_an_error_output_is_found_although_sphinx_says_nothing(checkout: build.Stage) -> None:
    build.copy_sources(checkout)
    build.write_toc(checkout, Study("tiny", ()))
    cells = (("markdown", "# One"), ("code", "1 / 0"))
    write_notebook(checkout.book / "chapters" / "one.ipynb", *cells)
    build.check_notebooks(checkout)
    error = {
        "output_type": "error",
        "ename": "ZeroDivisionError",
        "evalue": "division by zero",
        "traceback": [],
    }
    write_notebook(checkout.book / "chapters" / "one.ipynb", *cells, outputs=[error])
    with pytest.raises(EestudyError, match=r"one\.ipynb, cell 2: ZeroDivisionError: division by zero"):
        build.check_notebooks(checkout)


def test_remote_loads_are_found_in_every_place_and_links_are_not(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<link rel="stylesheet" href="https://a.example/x.css"><link rel="canonical" href="https://b.example">'
        '<script src="//c.example/x.js"></script><img src="_images/y.png" srcset="http://d.example/2x.png 2x">'
        '<a href="https://e.example">link</a><p style="background: url(https://f.example/z.png)">https://g.example</p>'
        "<style>@import 'https://h.example/x.css';</style><iframe src='https://i.example'></iframe>"
    )
    (tmp_path / "x.css").write_text("@font-face { src: url('https://j.example/f.woff2'), url(fonts/f.woff2) }")
    found = " ".join(remote_loads(tmp_path))
    assert [letter for letter in "abcdefghij" if f"{letter}.example" in found] == list("acdfhij")


def test_a_book_is_built_offline_once_and_warnings_stop_it(checkout: build.Stage) -> None:
    build.copy_sources(checkout)
    write_notebook(checkout.book / "chapters" / "one.ipynb", ("markdown", "# One"), ("code", "1 + 1"))
    build.write_toc(checkout, Study("tiny", ()))
    build.build_pages(checkout)
    page = (checkout.html / "book" / "index.html").read_text()
    assert "<munderover>" in page
    assert '<span class="eqno">(1)<a class="headerlink" href="#equation-eq-cost"' in page
    assert 'href="#equation-eq-cost">(1)</a>' in page  # the reference to it
    assert "Kaya" in page
    assert '<script src="https' not in page
    assert remote_loads(checkout.html) == []
    # Nothing changed: the pages are not written again.
    written = (checkout.html / "book" / "index.html").stat().st_mtime_ns
    build.build_pages(checkout)
    assert (checkout.html / "book" / "index.html").stat().st_mtime_ns == written
    # A warning is an error, and the pages of before stay.
    (checkout.book / "index.md").write_text("# Start\n\nSee [nowhere](nowhere.md) and $\\nosuchcommand$.\n")
    with pytest.raises(EestudyError, match=r"^Sphinx: .*WARNING"):
        build.build_pages(checkout)
    assert (checkout.html / "book" / "index.html").stat().st_mtime_ns == written
    assert "nosuchcommand" in (checkout.folder / "sphinx.log").read_text()


def test_drawing_of_exits_refuses_shares_that_do_not_add_up() -> None:
    assert "40 %, 60 %" in early_exits([0.4, 0.6]).shows
    for shares in ([0.5, 0.6], [1.0], [1.2, -0.2]):
        with pytest.raises(EestudyError, match="shares"):
            early_exits(shares)


def test_drawing_of_strategies_shows_what_each_phase_trains() -> None:
    drawn = drawing({name: STRATEGIES[name](0.25) for name in ("disjoint", "joint", "mixed")})
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert texts.count("backbone: frozen") == 1  # disjoint's second phase
    assert texts.count("heads: not used yet") == 2  # disjoint and mixed, first phase
    assert texts.count("backbone: trains") == 4
    widths = [patch.get_width() for patch in drawn.axes[0].patches]
    assert min(widths) == pytest.approx(0.25, abs=0.01)
    alone = drawing({"new": (Phase("heads", ("heads",), "internal", 1.0),)})
    assert "heads: loss of the internal exits" in [text.get_text() for text in alone.axes[0].texts]


def test_committed_outputs_are_taken_where_they_were_made_from_what_is_there(checkout: build.Stage) -> None:
    """The chapter fails when it is executed: so it was not, until something that it names changes."""
    (checkout.root / "book" / "chapters").mkdir(parents=True, exist_ok=True)
    for each in (checkout.root / "book" / "chapters").iterdir():
        each.unlink()
    (checkout.results / "counted").mkdir(parents=True)
    page = write_notebook(checkout.root / "book" / "chapters" / "page.ipynb", ("code", 'raise ValueError("counted")'))
    content = json.loads(page.read_text())
    made = inputs.chapter_identity(page, checkout.results, checkout.root / "benchmarks", None)
    content["metadata"]["eestudy"] = {"identity": made}
    page.write_text(json.dumps(content))
    store = Store(checkout.root / "store")
    assert build.execute_chapters(checkout, "smoke", 1, store) == []
    assert (checkout.book / "chapters" / "page.ipynb").read_bytes() == page.read_bytes()
    (checkout.results / "counted" / "record").write_text("1")
    (failure,) = build.execute_chapters(checkout, "smoke", 1, store)
    assert "counted" in failure.reason
