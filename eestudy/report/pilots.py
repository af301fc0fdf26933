"""What the pilots of a study say: validation accuracy by length, rate and scale of training. Test data has no part."""

import pandas as pd

from eestudy.records import Record, Records, results_folder

KEYS = ["cell", "training", "epochs", "phase_split", "lr", "lr_scale"]
SCORES = ["last", "exits", "at_25", "at_100", "both"]


def pilots(study: str = "pilots") -> pd.DataFrame:
    """One row per cell and setting: KEYS, seeds, and the means over seeds of SCORES, all accuracies on validation data.

    training: "plain" is mixed with all epochs in phase 1, whose last exit alone means something. last: of the last
    exit; exits: mean over exits; at_25, at_100: at these budgets, thresholds shared and fitted on the same data; both:
    the mean of the two, by which rates and scales are chosen.
    """
    rows = pd.DataFrame([_row(record) for record in Records(results_folder(study)).read("runs")])
    grouped = rows.groupby(KEYS)
    means = grouped[SCORES].mean()
    means.insert(0, "seeds", grouped.size())
    return means.reset_index()


def _row(record: Record) -> dict[str, object]:
    facts, config = record.facts, record.facts["config"]
    split = config.get("phase_split", 0.5)
    plain = facts["strategy"] == "mixed" and split == 1
    size = f"-{config['train_size']}" if "train_size" in config else ""
    history = record.tables["history"].query("split == 'validation'")
    # Of the last phase that measured an exit: heads alone do not measure the last exit, which they leave as it is.
    ends = history.groupby("exit")["accuracy"].last()
    row = {
        "cell": f"{facts['architecture']} / {facts['dataset']}{size}",
        "training": "plain" if plain else facts["strategy"],
        "epochs": facts["epochs"],
        "phase_split": split,
        "lr": config.get("lr", 3e-3),
        "lr_scale": config.get("lr_scale", 1.0),
        "last": ends.iloc[-1],
        "exits": float("nan") if plain else ends.mean(),
    }
    chosen = record.tables["budgets"].query("rule == 'max-probability' and allocation == 'shared'").set_index("budget")
    at = {budget: float("nan") if plain else chosen.loc[budget, "validation_accuracy"] for budget in ("25", "100")}
    return {**row, "at_25": at["25"], "at_100": at["100"], "both": (at["25"] + at["100"]) / 2}
