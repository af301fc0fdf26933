"""What each exit of each backbone costs, and what heads add. Frames: of `models.catalogue`."""

import pandas as pd

from eestudy.report import style
from eestudy.report.tables import Table, engineering, rows, table

KINDS = ("pooled", "token", "vector")  # the heads made for a kind of features


def head_table(catalogue: pd.DataFrame) -> Table:
    """What backbones cost, and what each head adds: rows architecture x input, from `models.catalogue`."""
    ends = catalogue.groupby(["architecture", "input", "head"], sort=False).last()
    found = {}
    for (name, shape), group in ends.groupby(level=[0, 1], sort=False):
        by_head = group.droplevel([0, 1])
        first = by_head.iloc[0]
        flops, params = first["flops"] - first["head_flops"], first["params"] - first["head_params"]
        row = {column: f"{first[column]:.0f}" for column in ("classes", "stage", "exit")}
        row |= {"params": engineering(params), "FLOPs": engineering(flops)}
        for head, values in by_head.iterrows():
            kind = str(head).replace("cascading-", "")
            column = str(head).replace(kind, "own kind") if kind in KINDS else str(head)
            shares = f"{_share(values['head_flops'], flops)} / {_share(values['head_params'], params)}"
            row[column] = f"{shares} (auto)" if values["default"] and kind not in KINDS else shares
        found[name, _input(shape)] = row
    frame = rows(found, "architecture", "input").fillna("")
    columns = ["classes", "stage", "exit", "params", "FLOPs", "own kind", "cascading-own kind"]
    frame = frame[[*columns, *(column for column in frame if column not in columns)]]
    frame = frame.rename(columns={"stage": "stages", "exit": "exits", "cascading-own kind": "cascading, own kind"})
    text = (
        "The plain backbone: parameters, FLOPs of one sample; then what all heads of a kind together add to it: % of "
        "its FLOPs / % of its parameters. Heads of one layer. Own kind: the head made for the features that the "
        "backbone has (pooled, token or vector), which head: auto takes where no other is marked. Empty: this head "
        "does not read them."
    )
    return table(frame, text, "heads")


def head_findings(catalogue: pd.DataFrame) -> str:
    """What all heads of a network together add to its FLOPs and parameters, over the backbones, as Markdown."""
    ends = catalogue.groupby(["architecture", "input", "head"], sort=False).last().reset_index()
    flops = 100 * ends["head_flops"] / (ends["flops"] - ends["head_flops"])
    params = 100 * ends["head_params"] / (ends["params"] - ends["head_params"])
    ends = ends.assign(flops_share=flops, params_share=params)
    lines = []
    names = dict.fromkeys(KINDS, "made for the backbone's features (pooled, token, vector)")
    names |= {f"cascading-{kind}": "cascading" for kind in KINDS} | {"msdnet": "msdnet", "msdnet-wide": "msdnet-wide"}
    groups = dict(list(ends.groupby(ends["head"].map(names))))
    for name, own in ((name, groups[name]) for name in dict.fromkeys(names.values()) if name in groups):
        most = own.loc[own["flops_share"].idxmax()]
        lines.append(
            f"- Heads {name}, in the median over {len(own)} networks, add {own['flops_share'].median():.2g} % to "
            f"the backbone's FLOPs and {own['params_share'].median():.2g} % to its parameters; at most "
            f"{most['flops_share']:.3g} % of the FLOPs ({most['architecture']}, {_input(most['input'])})."
        )
    return "\n".join(lines)


def exit_costs_table(catalogue: pd.DataFrame) -> Table:
    """The cumulative FLOPs at each exit with the heads that `auto` takes: rows architecture x input, columns exits."""
    frame = _default_heads(catalogue)
    texts = [_share(r.flops, r.backbone) for r in frame.itertuples()]
    frame = frame.assign(text=texts, input=frame["input"].map(_input)).set_index(["architecture", "input"])
    wide = frame.set_index("exit", append=True)["text"].unstack().loc[frame.index.unique()].fillna("")
    wide.columns = pd.Index([str(k) for k in wide.columns], name="leaving at exit")
    text = (
        "FLOPs of a sample that leaves there, backbone and heads so far, in % of the plain backbone's, with the heads "
        "that head: auto takes. The last exit of each row is above 100 % by what the heads cost."
    )
    return table(wide, text, "exit-costs")


@style.context()
def exit_costs(catalogue: pd.DataFrame) -> style.Plot:
    """`exit_costs_table` as a figure: a line a backbone, a mark an exit, a square for its own classifier."""
    frame = _default_heads(catalogue)
    shades = style.depth_colours(int(frame["exit"].max()))
    labels = list(dict.fromkeys(zip(frame["architecture"], frame["input"], strict=True)))
    figure = style.Plot(0.9 + 0.235 * len(labels), f"cost of leaving at each exit, {len(labels)} backbones")
    axes = figure.subplots()
    for row, (name, shape) in enumerate(labels):
        own = frame[(frame["architecture"] == name) & (frame["input"] == shape)]
        share = 100 * own["flops"] / own["backbone"]
        axes.plot([0, share.max()], [row, row], color="#d0d0d0", linewidth=1.0, zorder=1)
        for number, value in zip(own["exit"], share, strict=True):
            mark = "s" if number == own["exit"].max() else "o"
            shade = [shades[number - 1]]
            axes.scatter(value, row, s=30, marker=mark, color=shade, edgecolor=style.INK, linewidth=0.5, zorder=2)
    axes.set_yticks(range(len(labels)), [f"{name}, {_input(shape)}" for name, shape in labels])
    axes.axvline(100, color=style.FAINT, linestyle="--", linewidth=1.0, zorder=0)
    axes.set_xlim(left=0)
    axes.set_ylim(len(labels) - 0.3, -0.7)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("cost of a sample that leaves there, % of the plain backbone's FLOPs")
    return figure


def _default_heads(catalogue: pd.DataFrame) -> pd.DataFrame:
    """The rows with the heads that `auto` takes, and the plain backbone's FLOPs beside them."""
    rows = catalogue[catalogue["default"]]
    ends = rows.groupby(["architecture", "input"]).last()
    backbone = (ends["flops"] - ends["head_flops"]).rename("backbone")
    return rows.join(backbone, on=["architecture", "input"])


def _input(shape: str) -> str:
    """ "3x32x32" as it shall read."""
    return shape.replace("x", "×") if "x" in shape else f"{shape} tokens"


def _share(part: float, whole: float) -> str:
    value = 100 * part / whole
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}"
