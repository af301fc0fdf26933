"""Tables, statistics and figures from tidy frames. Nothing here trains, and nothing here loads torch."""

from eestudy.extras import needed

needed("matplotlib", "book")  # before anything here imports it: then one line says what is missing

from eestudy.report import claims, plots, statistics, style, tables  # noqa: E402
from eestudy.report.frames import Results, collect, load, results_folder  # noqa: E402

__all__ = ["Results", "claims", "collect", "load", "plots", "results_folder", "statistics", "style", "tables"]
