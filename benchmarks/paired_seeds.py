"""Is accuracy the same without the compiled step? Seeds of a cell trained eagerly, paired with its committed records.

OMP_NUM_THREADS=1 python benchmarks/paired_seeds.py [CELL ...] -> paired_seeds.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from timing import hardware, save

import eestudy
from eestudy.records import Records
from eestudy.study import load_study

ROOT = Path(__file__).parents[1]
CELLS = ("mlp-mnist1d-4k", "resnet1d-mnist1d-1.5k-noisy", "vit1d-mnist1d-2k")
SEEDS = 6
BUDGETS = ("25", "100")


def accuracies(budgets: Any) -> dict[str, float]:
    """Test accuracy in % by budget: one threshold for all exits, of the largest probability."""
    chosen = budgets[(budgets["rule"] == "max-probability") & (budgets["protocol"] == "calibrated")]
    if "allocation" in chosen:
        chosen = chosen[chosen["allocation"] == "shared"]
    return {row.budget: 100 * row.accuracy for row in chosen.itertuples() if row.budget in BUDGETS}


def compared(cell: str, store: Path) -> dict[str, Any]:
    """Points, eager less compiled, of joint training for E epochs: mean and 95 % interval over the paired seeds."""
    configs = load_study(ROOT / "params/study" / f"{cell}.yaml").configs
    joint = [config for config in configs if config.strategy == "joint"]
    shortest = min(config.epochs for config in joint)
    joint = [config for config in joint if config.epochs == shortest and config.seed < SEEDS]
    records, rows = Records(ROOT / "book/results" / cell), []
    for config in joint:
        run = eestudy.run(config, store=store, device="cpu", compile="never")
        eager, record = accuracies(run.budgets()), records.one("runs", run.id)
        compiled = accuracies(record.tables["budgets"])
        rows.append([eager[budget] - compiled[budget] for budget in BUDGETS])
        print(f"{cell} seed {config.seed}: " + ", ".join(f"{x:+.2f}" for x in rows[-1]), flush=True)
    differences = np.asarray(rows)
    half = stats.t.ppf(0.975, len(rows) - 1) * differences.std(axis=0, ddof=1) / np.sqrt(len(rows))
    means = differences.mean(axis=0)
    return {
        budget: {"mean": mean, "low": mean - wide, "high": mean + wide, "seeds": len(rows)}
        for budget, mean, wide in zip(BUDGETS, means.tolist(), half.tolist(), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=", ".join(CELLS))
    with tempfile.TemporaryDirectory() as folder:
        for cell in parser.parse_args().cells or CELLS:
            save(
                "paired_seeds",
                {cell: {"hardware": hardware(), "points, eager less compiled": compared(cell, Path(folder))}},
            )


if __name__ == "__main__":
    main()
