"""What `adapt` made, on one page that needs nothing beside it: how good, how fast, who exits where, how to use it."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from eestudy.adapting.adapted import MODEL, PAGE, Adapted
from eestudy.config import EestudyError
from eestudy.store import write_atomically

STYLE = Path(__file__).with_name("page.css")
USE = """import eestudy

# by onnxruntime; x: float32 (B, {shape}), normalized as in training
network = eestudy.export.Deployed.load("{folder}")
logits, exit_index = network.predict(x)
labels = logits.argmax(-1)  # exit_index: where each sample exited, from 1"""


def write_page(made: Adapted, budget: str) -> Path:
    """Writes report.html into the folder and returns its path."""
    fitted, test = made.deployed, made.test
    change = f"{_points(test['accuracy'] - test['before'])} points [{_points(test['low'])}, {_points(test['high'])}]"
    before, now = made.latency
    lines = [
        f"<b>{test['accuracy']:.1%}</b> on {test['samples']:,} test samples at {test['cost']:.0%} of the model's own "
        f"cost; as it was given it has {test['before']:.1%}: {change}.",
        f"<b>{before / now:.2f} times as fast</b>, one sample at a time: {now:.3g} ms in the median, was {before:.3g} "
        f"({html.escape(made.hardware)}). The budget was {html.escape(budget)}.",
        "The interval is over test samples, 95 %. Thresholds were chosen on validation data; what they promised there: "
        f"{fitted.accuracy:.1%} for {fitted.cost:.3g} {fitted.unit}.",
    ]
    if now > before:
        lines.insert(
            2, "It is <b>slower</b> than the model without early exits: FLOPs mislead here. Give a budget in ms."
        )
    tried = [(name, f"{value:.1%}") for name, value in made.tried.items()]
    chosen = (
        f"<p>Trained: {made.run.config.strategy}, {made.run.config.epochs} epochs, from the weights it came with.</p>"
    )
    shape = ", ".join(map(str, fitted.network.input_shape))
    parts = [
        *(f"<p>{line}</p>" for line in lines),
        *_figure(made),
        "<h2>Who exits where</h2>",
        _table(("exit", "after", "threshold", f"cost, {fitted.unit}", "samples", "accuracy of these"), _exits(made)),
        "<h2>What was chosen</h2>",
        chosen,
        _table(("strategy", "accuracy on validation data at the budget"), tried),
        "<h2>How to use it</h2>",
        f"<pre>{html.escape(USE.format(folder=(made.folder / MODEL).as_posix(), shape=shape))}</pre>",
        f"<p>In {html.escape(MODEL)}/: exits.json, a torch.export program and an ONNX file for each exit, "
        "all_exits.onnx, early_exit.onnx (one file that stops by itself), weights.safetensors.</p>",
        f"<p>Run {html.escape(made.run.id)}. {html.escape(str(made.run.provenance['versions']))}</p>",
    ]
    title = "An early-exit network for your budget"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main><h1>{title}</h1>{''.join(parts)}</main></body></html>\n"
    )
    path = made.folder / PAGE
    write_atomically(path, page.encode())
    return path


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _exits(made: Adapted) -> Iterable[Sequence[str]]:
    fitted = made.deployed
    for exit, name in enumerate((*made.exits, "the model's own output"), 1):
        on = exit in fitted.exits
        accuracy = fitted.accuracies[exit - 1]
        yield (
            str(exit), name, f"{fitted.thresholds[exit - 1]:.4g}" if on and exit <= len(made.exits) else "",
            f"{fitted.costs[exit - 1]:.3g}" if on else "switched off", f"{fitted.share[exit - 1]:.0%}" if on else "",
            "" if math.isnan(accuracy) else f"{accuracy:.1%}",
        )  # fmt: skip


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(each)}</th>" for each in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(each)}</td>" for each in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(made: Adapted) -> list[str]:
    """Accuracy against cost, where the packages that draw are installed."""
    try:
        from eestudy.report import collect, plots
    except EestudyError as error:
        return [f"<p>No figure: {html.escape(str(error))}.</p>"]
    results = collect([made.run], made.run.budgets())
    figure = plots.tradeoff(results.tradeoff, results.exits, made.run.backbone_flops)
    axes = figure.axes[0]
    size = axes.lines[-1].get_xdata()[0] / made.run.backbone_flops  # the unit that the axis has
    axes.plot([made.test["cost"] * made.run.backbone_flops * size], [made.test["accuracy"]], "*", color="black", ms=12)
    image = base64.b64encode(figure.png()).decode()
    words = "Accuracy on test against mean cost of a sample; hollow: all samples take one exit; star: what is deployed"
    return [
        f'<figure><img alt="{words}" src="data:image/png;base64,{image}"><figcaption>{words}.</figcaption></figure>'
    ]
