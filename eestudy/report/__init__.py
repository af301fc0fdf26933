"""Tables, statistics and figures from tidy frames. Nothing here trains, and nothing here loads torch."""

from eestudy.report import claims, plots, statistics, style, tables
from eestudy.report.frames import Results, collect, load, results_folder

__all__ = ["Results", "claims", "collect", "load", "plots", "results_folder", "statistics", "style", "tables"]
