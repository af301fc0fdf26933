"""What benchmarks/ measured, for the chapter on speed: tables and sentences from its JSON files."""

import pandas as pd

from eestudy.config import check_name
from eestudy.report.benchmarks import Measured, machine
from eestudy.report.tables import DASH, Table, table

# model -> times as fast as plain code, share of the matrix rate; of processors with bfloat16.
AIMS: dict[str, tuple[float, float | None]] = {
    "resnet34, 32x32": (2.5, 0.75), "resnet20, 28x28": (2.8, 0.35),
    "ViT of width 192, 32x32": (2.0, None), "ViT of width 96, 28x28": (1.5, None),
}  # fmt: skip
CURVE_AIM = 30  # ms of the exact trade-off curve


def hardware(step: Measured) -> str:
    """What the numbers belong to, as a sentence."""
    return f"{machine(next(iter(step.values()))['hardware'])[:-1]}; weights and batches in memory."


def steps(step: Measured, memory: Measured, baseline: str) -> pd.DataFrame:
    """One row per model and step: median, low, high (samples/s), ratio to `baseline`, share of the matrix rate."""
    frame = pd.DataFrame(
        {"model": model, "step": name, **row["samples_per_second"], "MiB": memory.get(model, {}).get(name),
         "share": row.get("share_of_float32_rate")}
        for model, found in step.items() for name, row in found["variants"].items()
    )  # fmt: skip
    check_name("baseline", baseline, set(frame["step"]))
    base = frame[frame["step"] == baseline].set_index("model")["median"]
    return frame.assign(ratio=frame["median"] / frame["model"].map(base))


def step_table(frame: pd.DataFrame, baseline: str) -> Table:
    """`steps` for a reader."""
    columns = {
        "samples/s": [f"{row.median:.0f} ({row.low:.0f} to {row.high:.0f})" for row in frame.itertuples()],
        f"x {baseline}": frame["ratio"].map("{:.2f}".format).to_list(),
        "of the matrix rate": [_known(share, "{:.0%}") for share in frame["share"]],
        "peak MiB": [_known(size, "{:.0f}") for size in frame["MiB"]],
    }
    shown = pd.DataFrame(columns, index=pd.MultiIndex.from_frame(frame[["model", "step"]]))
    return table(shown, "One training step, batch 128.", "step")


def aims_table(frame: pd.DataFrame) -> Table:
    """The package's own step in its faster precision, beside AIMS."""
    own = frame[frame["step"].isin(["float32", "bfloat16"])].sort_values("median").groupby("model").last()
    rows = {}
    for model, (ratio, share) in AIMS.items():
        row = own.loc[model]
        fast, full = row["ratio"] >= ratio, row["share"] >= (share or 0)
        rows[model] = {
            "faster precision": row["step"], "x baseline": f"{row['ratio']:.2f}", "aim": f"{ratio:.1f}",
            "of the matrix rate": f"{row['share']:.0%}", "its aim": _known(share, "{:.0%}"),
            "met": "both" if fast and full else "the share" if share and full else "no",
        }  # fmt: skip
    made = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table(made, "The package's own step, in its faster precision.", "aims")


def in_short(frame: pd.DataFrame, step: Measured) -> str:
    """The package's own step against plain code, and what the aims were set for."""
    own = frame[frame["step"].isin(["float32", "bfloat16"])].groupby("model")["ratio"].max()
    met = sum(own[model] >= aim for model, (aim, _) in AIMS.items())
    rates = [max(found["rates"][name] for found in step.values()) for name in ("float32", "bfloat16")]
    return (
        f"**In short.** A training step is {own.min():.2f} to {own.max():.2f} times as fast as plain code, and {met} "
        f"of {len(AIMS)} aims are met. They were set for processors with instructions for bfloat16; this one reaches "
        f"{rates[0]:.0f} GFLOP/s in float32 and {rates[1]:.1f} in bfloat16."
    )


def augmentation_table(overhead: Measured) -> Table:
    """What making a batch takes."""
    texts = {
        model: {n: f"{row['milliseconds']:.1f} ms, {row['share']:.1%}" for n, row in found.items() if "share" in row}
        for model, found in overhead["augmentation"].items()
        if model != "hardware"
    }
    made = pd.DataFrame(texts).rename_axis("augmentation")
    return table(made, "A batch of 128, and its share of a step.", "augmentation")


def loop_table(overhead: Measured) -> Table:
    """Milliseconds a step by part of the loop, and the share that is overhead."""
    loop = {model: found for model, found in overhead["loop"].items() if model != "hardware"}
    made = pd.DataFrame({model: found["milliseconds_a_step"] for model, found in loop.items()}).map("{:.2f}".format)
    text = "{median:.1%} ({low:.1%} to {high:.1%})"
    made.loc["overhead"] = {model: text.format(**found["overhead"]) for model, found in loop.items()}
    return table(made.rename_axis("part"), "Milliseconds a step.", "loop")


def metrics_table(dynamics: Measured) -> Table:
    """What one measurement of each metric of the training dynamics takes."""
    columns = {}
    for network, found in dynamics.items():
        more = f"MiB, {found['growth']} x the samples"
        for unit, key in (("seconds", "seconds"), ("MiB", "MiB"), (more, "MiB, more samples")):
            form = "{:.1f}" if key == "seconds" else "{:.0f}"
            columns[network, unit] = {name: _known(row.get(key), form) for name, row in found["metrics"].items()}
    shown = pd.DataFrame(columns).rename_axis("metric")
    return table(shown, "One measurement on one core, and the memory it adds to a process.", "metrics")


def curve_table(evaluation: Measured) -> Table:
    """What the exact trade-off curve takes by exit rule, beside CURVE_AIM and a loop over 100 thresholds."""
    rows = {
        rule: {
            "ms": f"{found['ms']['tradeoff_curve']:.1f}", "least": f"{found['ms, least']['tradeoff_curve']:.1f}",
            "of them scores": f"{found['ms']['scores']:.1f}", "aim": str(CURVE_AIM),
            "met": "yes" if found["ms"]["tradeoff_curve"] <= CURVE_AIM else "no", "rows": f"{found['rows']:,}",
            "loop / curve": f"{found['loop / tradeoff_curve']:.1f}",
        }
        for rule, found in evaluation.items() if isinstance(found, dict) and "rows" in found
    }  # fmt: skip
    exits, samples, classes = evaluation["exits, samples, classes"]
    title = f"The exact curve of {exits} exits, {samples:,} samples, {classes} classes on one core: median of blocks."
    return table(pd.DataFrame.from_dict(rows, orient="index").rename_axis("rule"), title, "tradeoff-time")


def rest(overhead: Measured) -> str:
    """Cached features and starting, in words."""
    cache, start = overhead["cache"], overhead["start"]
    return (
        f"**Cached features.** A step of phase 3 (heads alone, ResNet-20) takes {cache['cached_milliseconds']:.1f} ms "
        f"with the frozen backbone's features kept, {cache['not_cached_milliseconds']:.0f} without: "
        f"{cache['ratio']:.0f} times as long. Making them takes what one epoch's forward passes take.\n\n"
        f"**Starting.** `import eestudy`: {start['import eestudy']['median']:.2f} s (aim: under 0.2); "
        f"`eestudy --help`: {start['eestudy --help']['median']:.2f} (aim: under 0.5); Python itself: "
        f"{start['python alone']['median']:.2f}."
    )


def _known(value: float | None, form: str) -> str:
    return DASH if value is None or pd.isna(value) else form.format(value)
