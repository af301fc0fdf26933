"""Q4 and Q5 of the study: what may stand in for mixed training, and how mixed should divide its epochs.

Their runs have the cells' data, networks and seeds, so they are paired with the cells' own runs.
"""

from __future__ import annotations

import pandas as pd

from eestudy.records import Record, Records, results_folder
from eestudy.report import statistics as st
from eestudy.report.study_cells import CELLS, LAST, PRIMARY, records_of, rows_of, trained

SUBSTITUTES, SPLITS = "q4-substitutes", "q5-splits"
SCALED = ("depth-linear", "sdn-ramp", "equilibrium")
EACH = 3  # variants of a cell, in either


def variants(study: str) -> pd.DataFrame:
    """One row per run and budget: cell, variant, seed, budget, accuracy; of the cells that are complete in both.

    variant: of Q4 one of SCALED; of Q5 the share of the epochs for the backbone alone.
    A cell counts when each of its variants has as many seeds as the others, and the cell's own runs are all in.
    """
    folder = results_folder(study)
    records = list(Records(folder).read("runs")) if folder.is_dir() else []
    rows = []
    for cell in CELLS:
        own = records_of(cell)
        if not own or trained(cell) is None:
            continue
        mine = [record for record in records if _network(record) == _network(own[0])]
        seeds = pd.Series([_variant(record) for record in mine]).value_counts()
        if mine and seeds.nunique() == 1 and len(seeds) == EACH:
            for record in mine:
                rows += [{"cell": cell.label, "variant": _variant(record), **row} for row in rows_of(record)]
    return pd.DataFrame(rows, columns=["cell", "variant", "seed", "budget", "accuracy"])


def _network(record: Record) -> tuple[str, ...]:
    """What a cell's runs have in common: network and data."""
    config = record.facts["config"]
    names = ("architecture", "architecture_args", "dataset", "dataset_args", "train_size")
    return tuple(str(config.get(name)) for name in names)


def _variant(record: Record) -> str:
    config = record.facts["config"]
    if config["strategy"] == "mixed":
        return f"{config['phase_split']:g}"
    scaled = config.get("gradient_scaling") or config.get("weighting")
    return scaled or "0, mixed's rate"


def against(rows: pd.DataFrame, frame: pd.DataFrame, training: str, budgets: tuple[str, ...] = PRIMARY) -> pd.DataFrame:
    """Each variant less a training of `studied`, paired by seed: variant, cell, budget and as `statistics.corrected`.

    A family of tests is one variant at one budget over the cells.
    """
    families = []
    base = frame[frame["training"] == training].set_index(["cell", "budget", "seed"])["accuracy"]
    for (variant, budget), here in rows[rows["budget"].isin(budgets)].groupby(["variant", "budget"], sort=False):
        tests = []
        for cell, own in here.groupby("cell", sort=False):
            names = {"variant": variant, "budget": budget, "cell": cell}
            tests.append((names, own.set_index("seed")["accuracy"], base[cell, budget]))
        families.append(st.tested((), tests))
    return pd.concat(families, ignore_index=True) if families else pd.DataFrame()


def c8(found: pd.DataFrame) -> str:
    """Of `against` mixed. No scaled joint training does as well as mixed, over the cells and budgets.

    Contradicted: one of SCALED is better than mixed or equivalent to it in every cell and budget. Supported: each is
    worse somewhere and nowhere better.
    """
    words = {
        variant: {st.word(row).split()[0] for row in here.itertuples()} for variant, here in found.groupby("variant")
    }
    if any(said <= {"better", "equivalent"} for said in words.values()):
        return "contradicted"
    if all("worse" in said and "better" not in said for said in words.values()):
        return "supported"
    return "mixed evidence" if any("better" in said for said in words.values()) else "not supported"


def splits(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """`against` half and half, of each split; 0 is joint training at its own rate, from the cells' own runs."""
    joint = frame[frame["training"] == "joint 2E"].assign(variant="0")
    paired = joint.merge(rows[["cell", "seed"]].drop_duplicates())  # a cell has more seeds than Q5 asks for
    return against(pd.concat([paired[rows.columns], rows]), frame, "mixed", ("25", "50", "100", LAST))
