"""The cells of the study, and the differences that its plan asks for: in each cell, and over cells.

The plan was fixed before the runs; it is the book's page "The plan". Accuracy is that on test at a budget, a share of
the plain backbone's FLOPs: one max-probability threshold for all exits, from validation data. Seeds are paired.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from eestudy.config import EestudyError
from eestudy.records import Record, Records, results_folder
from eestudy.report import over_cells
from eestudy.report import statistics as st


@dataclass(frozen=True)
class Cell:
    """study: its records' folder; data, size: what it learns from, and how many samples; seeds: how many it has.

    family: of its network. majority: the share of the largest class in its test data.
    """

    study: str
    label: str
    data: str
    size: int
    seeds: int
    family: str
    majority: float = 0.1


CELLS = (
    Cell("vit1d-mnist1d-2k", "vit1d / mnist1d-2k", "MNIST-1D", 2000, 12, "vit"),
    Cell("vit1d-mnist1d-8k", "vit1d / mnist1d-8k", "MNIST-1D", 8000, 8, "vit"),
    Cell("resnet1d-mnist1d-1.5k-noisy", "resnet1d / mnist1d-1.5k-noisy", "MNIST-1D", 1500, 12, "resnet"),
    Cell("resnet1d-mnist1d-8k-noisy", "resnet1d / mnist1d-8k-noisy", "MNIST-1D", 8000, 8, "resnet"),
    Cell("mlp-mnist1d-4k", "mlp / mnist1d-4k", "MNIST-1D", 4000, 12, "mlp"),
    Cell("resnet-tiny-fashion-mnist-10k", "resnet-tiny / fashion-mnist-10k", "Fashion-MNIST", 10000, 10, "resnet"),
    Cell("resnet20-fashion-mnist-10k", "resnet20 / fashion-mnist-10k", "Fashion-MNIST", 10000, 6, "resnet"),
    Cell("resnet20-w8-fashion-mnist-20k", "resnet20, width 8 / fashion-mnist-20k", "Fashion-MNIST", 20000, 6, "resnet"),
    Cell("small-vit-fashion-mnist-10k", "small ViT / fashion-mnist-10k", "Fashion-MNIST", 10000, 8, "vit"),
    Cell("minilm-supersense-1k", "MiniLM / supersense-1k", "WordNet supersenses", 1000, 6, "encoder"),
)
# E epochs a phase: joint once and for twice as long, disjoint and mixed E + E, the plain backbone for 2E.
TRAININGS = ("joint E", "joint 2E", "disjoint", "mixed", "plain 2E")
QUESTIONS = {
    "Q1": (("mixed", "joint E"), ("mixed", "disjoint"), ("joint E", "disjoint")),
    "Q2": (("mixed", "joint 2E"), ("mixed", "disjoint"), ("joint 2E", "disjoint")),
    "Q3": (("plain 2E", "joint 2E"),),
}
"""The same length of each phase; the same length in all; the last exit, which needs no threshold."""
PRIMARY = ("25", "100")  # budgets of the tests; Q3 is about the budget LAST
LAST = "last exit"
FLOOR = 0.05  # of the largest class's share: a budget where every training is so near has nothing to compare
PAGES = "book/cells"  # where each training of a cell has its page


def studied(cells: Iterable[Cell] = CELLS) -> pd.DataFrame:
    """One row per run and budget of the cells that are complete: cell, data, size, family, epochs (2E), training, seed,
    budget, accuracy.

    EestudyError where none is. A cell that is under way is left out, so that nobody looks before it is done.
    """
    found = [frame for cell in cells if (frame := trained(cell)) is not None]
    if not found:
        raise EestudyError(
            "results: no cell of the study is complete; train one, as: eestudy train params/study/NAME.yaml"
        )
    return pd.concat(found, ignore_index=True)


def records_of(cell: Cell) -> list[Record]:
    """Those of its runs."""
    folder = results_folder(cell.study)
    return list(Records(folder).read("runs")) if folder.is_dir() else []


def trained(cell: Cell) -> pd.DataFrame | None:
    """The rows of a cell for `studied`, None until all its runs have their record."""
    records = records_of(cell)
    longest = max((record.facts["config"]["epochs"] for record in records), default=0)
    rows = []
    for record in records:
        named = {"cell": cell.label, "data": cell.data, "size": cell.size, "family": cell.family, "epochs": longest}
        named["training"] = training_of(record, longest)
        rows += [{**named, **row} for row in rows_of(record)]
    frame = pd.DataFrame(rows)
    whole = len(records) and frame.groupby("training")["seed"].nunique().reindex(TRAININGS, fill_value=0).min()
    return frame if whole and whole >= cell.seeds else None


def rows_of(record: Record) -> list[dict[str, object]]:
    """A run's accuracy on test at each budget, and that of its last exit: seed, budget, accuracy."""
    budgets = record.tables["budgets"]
    chosen = budgets[(budgets["rule"] == "max-probability") & (budgets["allocation"] == "shared")]
    reached = {**dict(zip(chosen["budget"], chosen["accuracy"])), LAST: record.tables["exits"]["accuracy"].iloc[-1]}
    seed = record.facts["seed"]
    return [{"seed": seed, "budget": budget, "accuracy": value} for budget, value in reached.items()]


def training_of(record: Record, longest: int) -> str:
    """Which of TRAININGS a run is; longest: epochs of the cell's longest, 2E."""
    config = record.facts["config"]
    if config["strategy"] == "mixed" and config.get("phase_split") == 1:
        return "plain 2E"
    if config["strategy"] == "joint":
        return "joint 2E" if config["epochs"] == longest else "joint E"
    return str(config["strategy"])


def page_name(study: str, training: str) -> str:
    """Of its file in PAGES, such as "vit1d-mnist1d-2k-joint-2e"."""
    return re.sub(r"\W+", "-", f"{study}-{training}").lower()


def differences(frame: pd.DataFrame, budgets: Sequence[str] = PRIMARY) -> pd.DataFrame:
    """Paired differences of `studied`: one row per question, pair, budget and cell.

    The columns of `statistics.corrected`, whose families are one pair at one budget over the cells; low_corrected,
    high_corrected: Bonferroni's limits of the same family. A cell where a budget is out of reach, or at the floor, has
    no row there.
    """
    families = []
    wide = frame.pivot(index=["cell", "data", "size", "seed"], columns=["training", "budget"], values="accuracy")
    at_floor = set(zip(*(floors(frame)[name] for name in ("cell", "budget"))))
    for question, pairs in QUESTIONS.items():
        for a, b in pairs:
            for budget in (LAST,) if question == "Q3" else budgets:
                if not {(a, budget), (b, budget)} <= set(wide.columns):
                    continue
                tests = []
                for (cell, data, size), here in (
                    wide[[(a, budget), (b, budget)]].dropna().groupby(level=[0, 1, 2], sort=False)
                ):
                    if (cell, budget) in at_floor:
                        continue
                    values = here.droplevel([0, 1, 2])
                    names = {"question": question, "a": a, "b": b, "pair": f"{a} − {b}", "budget": budget}
                    names |= {"cell": cell, "data": data, "size": size, "mean_b": values[b, budget].mean()}
                    tests.append((names, values[a, budget], values[b, budget]))
                families.append(_limits(st.tested((), tests)) if tests else pd.DataFrame())
    return pd.concat(families, ignore_index=True)


def floors(frame: pd.DataFrame) -> pd.DataFrame:
    """Of `studied`: cell and budget where every training's mean is within FLOOR of the largest class's share."""
    best = frame.groupby(["cell", "training", "budget"])["accuracy"].mean().groupby(["cell", "budget"]).max()
    shares = {cell.label: cell.majority for cell in CELLS}
    largest = best.index.get_level_values("cell").map(shares).to_numpy(float)
    return best[best.to_numpy() <= largest + FLOOR].reset_index()[["cell", "budget"]]


def _limits(family: pd.DataFrame) -> pd.DataFrame:
    """The family with Bonferroni's limits: t intervals of a level 1 - 0.05 / rows."""
    level = 1 - st.ALPHA / (2 * len(family))
    half = [
        stats.t.ppf(level, n - 1) * sd / math.sqrt(n) if n > 1 else math.nan for n, sd in zip(family["n"], family["sd"])
    ]
    return family.assign(low_corrected=family["mean"] - half, high_corrected=family["mean"] + half)


def means(found: pd.DataFrame) -> pd.DataFrame:
    """`over_cells.means` of `differences`, by question, pair and budget; and p_holm over a question's rows.

    Mixed - disjoint does not count in Q2: it is of Q1's runs.
    """
    frame = over_cells.means(found, ("question", "pair", "budget")).assign(p_holm=math.nan)
    counted = (frame["question"] != "Q2") | (frame["pair"] != "mixed − disjoint")
    for _, here in frame[counted].groupby("question"):
        frame.loc[here.index, "p_holm"] = st.holm(here["p"])
    return frame


def without_each(found: pd.DataFrame) -> pd.DataFrame:
    """The means of `differences` with each data set left out: question, pair, budget, without, and as `means`."""
    kept = [found[found["data"] != data].assign(without=data) for data in dict.fromkeys(found["data"])]
    rows = pd.concat(kept, ignore_index=True)
    return over_cells.means(rows, ("question", "pair", "budget", "without")) if len(rows) else rows


def c7(cells: pd.DataFrame) -> tuple[st.OverCells, pd.DataFrame]:
    """Of `differences`. Plain - joint at the last exit: its mean over the largest cell of each data set, and its slope.

    Slopes: within vit1d and resnet1d, the larger cell's difference less the smaller one's, whose seeds are not paired:
    label, mean, low, high (95 %, Welch), note.
    """
    here = cells[cells["question"] == "Q3"]
    largest = here[here["size"] == here.groupby("data")["size"].transform("max")]
    slopes = []
    for network in ("vit1d", "resnet1d"):
        two = here[here["cell"].str.startswith(f"{network} ")].sort_values("size")
        if len(two) == 2:
            (small, large), parts = two.to_dict("records"), two["sd"] ** 2 / two["n"]
            freedom = parts.sum() ** 2 / (parts**2 / (two["n"] - 1)).sum()
            mean, half = large["mean"] - small["mean"], stats.t.ppf(1 - st.ALPHA / 2, freedom) * parts.sum() ** 0.5
            slopes.append({"label": network, "mean": mean, "low": mean - half, "high": mean + half, "note": ""})
    return over_cells.over(largest), pd.DataFrame(slopes, columns=["label", "mean", "low", "high", "note"])


def c1(found: pd.DataFrame, question: str) -> str:
    """Of `means`. Joint and disjoint each lose at one end: joint - disjoint above 0 at 25 %, below it at 100 %."""
    here = found[(found["question"] == question) & found["pair"].str.startswith("joint")].set_index("budget")
    return "supported" if here.loc["25", "low"] > 0 and here.loc["100", "high"] < 0 else "not supported"


def c2(found: pd.DataFrame, cells: pd.DataFrame, question: str) -> str:
    """Of `means` and `differences`. Mixed gains over joint and over disjoint, at 25 and at 100 %."""
    over = found[(found["question"] == question) & found["pair"].str.startswith("mixed")]
    each = cells[(cells["question"] == question) & (cells["a"] == "mixed")]
    if (over["low"] > 0).all() and not (each["high_corrected"] < -0.005).any():
        return "supported"
    if (over["high"] < 0).any():
        return "contradicted"
    decided = set(each["decision"])
    return "mixed evidence" if {"better", "worse"} <= decided else "not supported"
