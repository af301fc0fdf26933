"""Every training of every complete cell of the study in one table, with a link to its page."""

from pathlib import Path

import pandas as pd
from IPython.display import HTML

from eestudy.config import check_name
from eestudy.report import statistics as st
from eestudy.report import study_cells, tables

SHOWN = {**{budget: f"{budget} %" for budget in ("25", "50", "100")}, study_cells.LAST: study_cells.LAST}
SORT = Path(tables.__file__).with_name("sort.js")
NAME = "all-runs"


def rows() -> pd.DataFrame:
    """One row per cell and training: its page, seeds, and accuracy (%) at 25, 50, 100 % and at the last exit."""
    found = []
    for cell in study_cells.CELLS:
        frame = study_cells.trained(cell)
        if frame is None:
            continue
        for training in study_cells.TRAININGS:
            here = frame[frame["training"] == training].pivot(index="seed", columns="budget", values="accuracy")
            if training == "plain 2E":
                here = here[[study_cells.LAST]]  # its heads are untrained
            page = f"../{Path(study_cells.PAGES).name}/{study_cells.page_name(cell.study, training)}.html"
            scores = {
                name: tables.percent(st.mean_interval(here[budget])) if budget in here else tables.DASH
                for budget, name in SHOWN.items()
            }
            names = {"cell": f'<a href="{page}">{cell.label}</a>', "training": training}
            found.append({**names, "samples": cell.size, "seeds": len(here), **scores})
    return pd.DataFrame(found)


def overview(training: str | None = None) -> HTML:
    """The table, of one training or all; a click on a column's name sorts it."""
    caption = (
        "Accuracy on test, %: mean ± half of the 95 % interval over seeds, at budgets of the plain backbone's FLOPs "
        "(thresholds from validation data) and at the last exit. A click on a column's name sorts."
    )
    frame = rows()
    if training is not None:
        frame = frame[frame["training"] == check_name("training", training, study_cells.TRAININGS)]
    table = tables.texts(frame, caption, NAME).hide(axis="index").format(escape=None)
    script = SORT.read_text(encoding="utf-8").replace("TABLE", f"T_eestudy-{NAME}")
    return HTML(f"{table.to_html()}<script>{script}</script>")
