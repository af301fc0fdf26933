from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from eestudy.book.run_pages import Page
from eestudy.config import EestudyError
from eestudy.study import load_study, read_yaml, request

ROOT = Path(__file__).parents[1]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_smoke_is_the_grid_it_says():
    study = load_study(ROOT / "params/smoke.yaml")
    assert len(study.configs) == 24
    assert {(c.architecture, c.dataset) for c in study.configs} == {
        ("mlp", "digits"), ("resnet-tiny", "digits"), ("resnet1d", "mnist1d"), ("vit1d", "mnist1d"),
    }  # fmt: skip
    assert [len(page) for page in study.pages()] == [2] * 12
    assert all({config.seed for config in page} == {0, 1} for page in study.pages())


def test_pages_that_share_a_phase_are_apart():
    """Disjoint and mixed share phase 1: with two workers they should not wait for each other."""
    pages = load_study(ROOT / "params/smoke.yaml").pages()
    for first, second in pairwise(pages):
        cells = [(page[0].architecture, page[0].dataset) for page in (first, second)]
        assert cells[0] != cells[1]


def test_a_flat_file_is_a_study_of_one(tmp_path):
    study = load_study(written(tmp_path, "architecture: mlp\ndataset: digits\nstrategy: joint\nseeds: [3, 4]\n"))
    assert [config.seed for config in study.configs] == [3, 4]
    study = load_study(written(tmp_path, "architecture: mlp\ndataset: digits\nstrategy: joint\nseed: 3\n"))
    assert [config.seed for config in study.configs] == [3]


GRID = "grid:\n  - architecture: mlp\n    dataset: digits\n    strategy: "


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("grid: []\n", "expected a list of blocks with at least one"),
        ("grid:\n", "expected a list of blocks"),
        ("", "expected a mapping of settings, found NoneType"),
        ("- 1\n", "found list"),
        (GRID + "[]\n", "strategy: the list is empty, so the grid holds no run"),
        (GRID + "jointt\n", "strategy: unknown name 'jointt'; nearest: joint, disjoint"),
        (GRID + "joint\nseedz: [1]\n", "unknown key 'seedz'; nearest: seeds"),
        (GRID + "joint\nseeds: []\n", "seeds: expected a list"),
        (GRID + "joint\nseeds: [1, 1]\n", "seeds: expected a list of different"),
        (GRID + "[joint, joint]\n", "is asked for twice"),
        (GRID + "joint\n    seed: 1\n", "give it in seeds"),
        (GRID + "joint\n    epochs: -3\n", "epochs: -3 is out of range"),
        ("a: 1\na: 2\n", "line 2: not valid YAML: key 'a' is given twice"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['touch hacked']\n", "line 1: not valid YAML"),
        ("a: 2024-99-99\n", "not valid YAML: month must be in 1..12"),
        ("architecture: {{arch}}\n", "line 1: not valid YAML: a key must be a single word"),
        ("a: \0\n", "not valid YAML"),
        (GRID + "joint\n    clip: .inf\n", "clip: inf is not valid; input should be a finite number"),
        (GRID + "joint\n    dataset_args: {noise: .nan}\n", "dataset_args: nan is not valid"),
        ("architecture: mlp\ndataset: digits\nstrategy: joint\nfoo: 1\n", "unknown key 'foo'"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_field(tmp_path, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EestudyError) as caught:
        load_study(written(tmp_path, text))
    assert "study.yaml" in str(caught.value)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hacked").exists()


def test_a_merge_key_brings_settings_along(tmp_path):
    text = "common: &both {epochs: 2, lr: 0.1}\n" + GRID.replace("- ", "- <<: *both\n    lr: 0.2\n    ") + "joint\n"
    (config,) = load_study(written(tmp_path, text)).configs
    assert (config.epochs, config.lr) == (2, 0.2)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "smoke.yaml").write_text("a: 1")
    with pytest.raises(EestudyError, match=r"smok.yaml: no such file; nearest: smoke.yaml"):
        read_yaml(tmp_path / "smok.yaml")
    with pytest.raises(EestudyError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EestudyError, match="cannot be read"):
        read_yaml(tmp_path / "binary.yaml")


PARAMETERS = 'architecture: str = "mlp"\ndataset: str = "digits"\nstrategy = "joint"\nseeds = [0, 1]\n'


def namespace(*cells: str) -> dict:
    names: dict = {"In": ["", *cells]}
    for cell in cells:
        exec(cell, names)
    return names


def test_a_notebook_request():
    asked = request(namespace("import eestudy", PARAMETERS, "# Parameters\nseeds = [5]\nlr = 0.1\n"))
    assert [(config.seed, config.lr) for config in asked.configs] == [(5, 0.1)]
    assert asked.store is None


def test_none_is_a_value():
    """clip: null means no clipping; it must not fall back to the default."""
    assert request(namespace(PARAMETERS, "# Parameters\nclip = None\n")).configs[0].clip is None


def test_what_a_page_passes_on_comes_back_as_the_same_runs():
    for configs in load_study(ROOT / "params/smoke.yaml").pages():
        changed = tuple(config.replace(clip=None, exits=[1, 2], lr=0.5) for config in configs)
        cell = "# Parameters\n" + "\n".join(
            f"{name} = {value!r}" for name, value in Page(changed, Path("x.ipynb")).parameters.items()
        )
        assert request(namespace(PARAMETERS, cell)).configs == changed


def test_lists_come_from_papermill_as_text():
    asked = request(namespace(PARAMETERS, '# Parameters\nseeds = "[5, 6]"\nexits = "[1, 2]"\n'))
    assert [config.seed for config in asked.configs] == [5, 6]
    assert asked.configs[0].exits == (1, 2)


@pytest.mark.parametrize("cell", ["# Parameters\nepochz = 5\n", PARAMETERS + "epochz = 5\n"])
def test_an_unknown_notebook_parameter_is_an_error(cell):
    with pytest.raises(EestudyError, match="unknown notebook parameter 'epochz'; nearest: epochs"):
        request(namespace(PARAMETERS, cell))


def test_variables_of_later_cells_are_no_parameters():
    names = namespace(PARAMETERS, "runs = [1]\nfigure = sum(runs)\n", "answer = 42\n")
    assert len(request(names).configs) == 2


def test_an_error_shows_as_one_line_in_a_notebook():
    assert EestudyError("epochs: no")._render_traceback_() == ["EestudyError: epochs: no"]
