"""What samples of a data set look like."""

from collections.abc import Sequence

import numpy as np

from eestudy.config import EestudyError
from eestudy.report import style

ROW = 10  # samples side by side


@style.context()
def samples(x: np.ndarray, names: Sequence[str], title: str = "") -> style.Plot:
    """One picture a sample, `ROW` in a line, with its name above it.

    x: images (N, C, H, W) of one or three channels, of any range, or lines (N, 1, L). names: (N,).
    Raises EestudyError for other shapes.
    """
    if x.ndim not in (3, 4) or x.shape[1] not in ((1,) if x.ndim == 3 else (1, 3)) or len(x) != len(names):
        raise EestudyError(f"samples: inputs {x.shape} for {len(names)} names; expected (N, C, H, W) or (N, 1, L)")
    lines = -(-len(x) // ROW)
    figure = style.Plot(0.3 * bool(title) + 0.98 * lines, f"{title}: {', '.join(names)}")
    panels = figure.subplots(lines, ROW, squeeze=False, sharey=x.ndim == 3).flat
    for axes, sample, name in zip(panels, x, names, strict=False):
        if sample.ndim == 3:
            low, high = float(sample.min()), float(sample.max())
            shown = (sample.transpose(1, 2, 0) - low) / max(high - low, 1e-9)
            axes.imshow(shown.squeeze(), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        else:
            axes.plot(sample[0], color=style.INK, linewidth=1.2)
            axes.set_box_aspect(1)
        axes.set_title(name, fontsize=8.5, loc="center")
        axes.grid(visible=False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for axes in list(figure.axes)[len(x) :]:
        axes.remove()
    if title:
        figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    return figure
