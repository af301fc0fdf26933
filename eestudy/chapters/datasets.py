"""The data sets of the package as tables and in words, from `data.catalogue.catalogue()`."""

import pandas as pd

from eestudy.report.tables import Table, table, texts


def sizes_table(known: pd.DataFrame) -> Table:
    """Rows data sets: kind, task, classes, input, samples of each split."""
    inputs = [
        f"{s[0]} tokens" if k == "text" else "×".join(map(str, s)) for k, s in known[["kind", "input"]].to_numpy()
    ]
    counts = {split: known[split].map("{:,}".format) for split in ("train", "validation", "test")}
    classes = known["classes"].astype(str).replace("0", "a number")
    made = known[["name", "kind", "task"]].assign(classes=classes, input=inputs, **counts).set_index("name")
    return table(made, "Samples in each split, after validation was split off.", "datasets")


def sources_table(known: pd.DataFrame) -> Table:
    """Where data come from."""
    got = known.rename(columns={"got": "how to get it", "debian": "on Debian and Ubuntu also"}).set_index("name")
    return texts(got[["how to get it", "on Debian and Ubuntu also"]], "Where data come from.", "sources")


def in_short(known: pd.DataFrame) -> str:
    """How many there are, and which need no download."""
    kinds = ", ".join(f"{count} of {kind}" for kind, count in known["kind"].value_counts(sort=False).items())
    free = ", ".join(known.loc[known["got"].str.startswith("comes"), "name"])
    debian = ", ".join(known.loc[known["debian"] != "", "name"])
    return (
        f"**In short.** There are {len(known)} data sets: {kinds}. {free} need no download; {debian} come as Debian "
        f"packages too. Training splits hold from {known['train'].min():,} to {known['train'].max():,} samples."
    )
