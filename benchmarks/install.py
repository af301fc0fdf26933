"""Is a wheel of this checkout enough? Installs it alone, with the newest or the lowest versions it allows, and uses it.

    .venv/bin/python benchmarks/install.py [--lowest]

In a new environment, without the checkout: trains and evaluates a model of one's own, and asks for a part whose extra
is missing. Downloads torch once for each set of versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import json, sys, tempfile
from importlib.metadata import version
import eestudy
from torch import nn

block = lambda: nn.Sequential(nn.Linear(32, 32), nn.ReLU())
own = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU()), block(), block(), nn.Linear(32, 10))
config = eestudy.RunConfig(architecture="own", dataset="digits", strategy="mixed", epochs=6)
run = eestudy.run(config, tempfile.mkdtemp(), model=eestudy.add_exits(own, after=["0", "1"], input_shape=(1, 8, 8)))
rule = eestudy.evaluation.max_probability(0.9)
logits, exits = run.model().predict(run.data().test.inputs(), rule)
try:
    import eestudy.report
except eestudy.EestudyError as error:
    missing = str(error)
names = ("torch", "torchvision", "numpy", "pandas", "pydantic", "scikit-learn", "scipy", "pyarrow")
print(json.dumps({
    "accuracy": run.exits()["accuracy"].round(3).tolist(), "budgets": len(run.budgets()), "left": len(exits),
    "missing": missing, "versions": {name: version(name) for name in names},
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowest", action="store_true", help="the lowest versions that pyproject.toml allows")
    lowest = parser.parse_args().lowest
    uv = [sys.executable, "-m", "uv"]
    with tempfile.TemporaryDirectory() as folder:
        wheels, environment = Path(folder, "wheels"), Path(folder, "environment")
        _do([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT])
        (wheel,) = wheels.glob("*.whl")
        python = environment / "bin" / "python"
        _do([*uv, "venv", "--quiet", "--python", sys.executable, environment])
        install = [*uv, "pip", "install", "--quiet", "--python", python]
        if lowest:
            _do([*install, "--resolution", "lowest-direct", *_dependencies(wheel)])
        _do([*install, *(["--no-deps"] if lowest else []), wheel])
        said = subprocess.run([python, "-c", USE], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(json.dumps(json.loads(said.splitlines()[-1]), indent=1))


def _do(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


def _dependencies(wheel: Path) -> list[str]:
    """What the wheel says it requires, without what its extras do."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        required = Parser().parsestr(opened.read(name).decode()).get_all("Requires-Dist", [])
    return [line for line in required if "extra ==" not in line]


if __name__ == "__main__":
    main()
