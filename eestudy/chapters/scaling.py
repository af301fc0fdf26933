"""Loss and gradient scaling beside mixed training, from a study that varies them.

A scaling is a `weighting` of the exits' losses or a `gradient_scaling`, "plain" where there is neither. Accuracies are
those of the calibrated protocol at the study's exit rule, at each budget; seeds are paired.
"""

import json
from itertools import product

import pandas as pd

from eestudy.config import EestudyError, RunConfig
from eestudy.report import statistics as st
from eestudy.report.differences import at_own_rule, by_seed, tested
from eestudy.report.frames import Results
from eestudy.report.tables import BUDGETS, Table, by_budget, percent, table

PLAIN = "plain"
SETTINGS = ("weighting", "gradient_scaling")


def scaling_of(settings: str) -> str:
    """What a run's settings, the JSON of runs.csv, scale: such as "depth-linear", or "plain"."""
    given = json.loads(settings)
    plain = {name: RunConfig.model_fields[name].default for name in SETTINGS}
    names = [given[name] for name in SETTINGS if given.get(name, plain[name]) != plain[name]]
    return " + ".join([*names, *map(str, given.get("weights", []))]) or PLAIN


def by_scaling(results: Results) -> pd.DataFrame:
    """One row per run and budget: cell (architecture / data set), strategy, scaling, seed, budget, accuracy.

    Raises EestudyError for a study that varies something else too: its runs would be taken for each other's.
    """
    rows = at_own_rule(results).dropna(subset="accuracy")
    scaling = results.runs.set_index("run")["config"].map(scaling_of)
    cell = rows["architecture"] + " / " + rows["dataset"]
    rows = rows.assign(cell=cell, scaling=rows["run"].map(scaling))
    keys = ["cell", "strategy", "scaling", "seed", "budget"]
    for run in rows.loc[rows.duplicated(keys), "run"]:
        raise EestudyError(f"results: {run} differs from another run in more than {', '.join(SETTINGS)}")
    return rows[[*keys, "accuracy"]]


def accuracy_table(rows: pd.DataFrame) -> Table:
    """`by_scaling` for a reader: mean over seeds with half of the 95 % interval; columns budgets."""
    keys = ["cell", "strategy", "scaling"]
    rows = rows.sort_values(["cell", "strategy"], kind="stable")
    texts = rows.groupby([*keys, "budget"], sort=False)["accuracy"].agg(lambda x: percent(st.mean_interval(x)))
    caption = (
        "Accuracy on test, %, at budgets of the plain backbone's FLOPs, thresholds from validation data; "
        f"mean ± half of the 95 % interval over {rows['seed'].nunique()} seeds."
    )
    return table(by_budget(texts.rename("text").reset_index(), keys), caption, "scalings")


def gains(rows: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """`tested` of one strategy, each scaling less plain; the keys are cell and scaling."""
    mine = rows[rows["strategy"] == strategy]
    return _against(mine[mine["scaling"] != PLAIN], mine[mine["scaling"] == PLAIN])


def from_mixed(rows: pd.DataFrame) -> pd.DataFrame:
    """`tested` of joint with each scaling, plain among them, less plain mixed; without the budget "max"."""
    rows = rows[rows["budget"] != "max"]
    mixed = rows[(rows["strategy"] == "mixed") & (rows["scaling"] == PLAIN)]
    return _against(rows[rows["strategy"] == "joint"], mixed)


def _against(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """rows less reference, which has one value a cell, budget and seed."""
    base, found = by_seed(reference, ["cell", "budget"]), by_seed(rows, ["cell", "scaling", "budget"])
    scalings = rows[["cell", "scaling"]].drop_duplicates().itertuples(index=False, name=None)
    pairs = [
        (*key, budget, found[(*key, budget)], base[key[0], budget])
        for key, budget in product(scalings, BUDGETS)
        if (*key, budget) in found and (key[0], budget) in base
    ]
    return tested(("cell", "scaling"), pairs)
