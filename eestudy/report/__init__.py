"""Tables, statistics and figures from tidy frames. Nothing here trains, and nothing here loads torch."""

from eestudy.extras import check_there

for package in ("matplotlib", "statsmodels"):  # before anything here imports them: one line says what is missing
    check_there(package, "book")

from eestudy.report import over_cells, plots, statistics, style, tables  # noqa: E402
from eestudy.report.frames import Results, collect, load, results_folder  # noqa: E402

__all__ = ["Results", "collect", "load", "over_cells", "plots", "results_folder", "statistics", "style", "tables"]
