"""One ONNX file with the decisions inside, beside the plain backbone: both in onnxruntime, one sample at a time.

python benchmarks/one_file.py [NETWORK ...] -> one_file.json

Networks are not trained: a time depends on where a sample leaves, not on what it is, so everybody is made to leave at
one exit after another, and then half of those inside at each. What each gives is compared with PyTorch first.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torchvision
from timing import hardware, interleaved, save
from torch import Tensor

import eestudy
from eestudy.evaluation import per_exit, scores, simulate
from eestudy.export import MANIFEST, Runner, export, one_file
from eestudy.models import MultiExit, build_backbone

SAMPLES = 32
NETWORKS: dict[str, Callable[[], MultiExit]] = {
    "resnet18, 224x224": lambda: eestudy.add_exits(torchvision.models.resnet18(), ["layer1", "layer2", "layer3"]),
    "resnet20, 32x32": lambda: MultiExit(build_backbone("resnet20", (3, 32, 32), 10), [3, 5, 7]),
    "vit-tiny, 32x32": lambda: MultiExit(build_backbone("vit-tiny", (3, 32, 32), 10), [3, 6, 9]),
}


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def over(run: Callable[[np.ndarray], Any], x: np.ndarray) -> Callable[[], None]:
    def all_samples() -> None:
        for sample in x:
            run(sample[None])

    return all_samples


def measure(network: MultiExit) -> dict[str, Any]:
    """Milliseconds of a sample, and ratios of the plain backbone's to them, measured in the same run."""
    x = torch.randn(SAMPLES, *network.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = torch.stack([torch.cat(each) for each in zip(*map(network, x.split(1)))])
    half = halves(scores(logits))
    folder = Path(tempfile.mkdtemp())
    export(network, folder, per_exit(half))
    plain = session(export(network.keeping(()), folder / "plain", per_exit([math.inf])) / "exit_1.onnx")
    facts = json.loads((folder / MANIFEST).read_text())
    count, array = network.num_exits, x.numpy()
    rules = {f"all leave at exit {k}": [-math.inf if exit == k else math.inf for exit in range(1, count + 1)]
             for k in range(1, count + 1)} | {"half leave at each exit": half}  # fmt: skip
    calls: dict[str, Callable[[], object]] = {
        "plain": over(lambda sample: plain.run(None, {"state_0": sample}), array),
        "Runner, half": over(Runner(folder, threads=1).predict, array),
        "torch plain": over(torch.no_grad()(lambda sample: network.backbone(torch.from_numpy(sample))), array),
    }
    for name, thresholds in rules.items():
        facts["rule"]["thresholds"] = thresholds
        one_file.build(folder, facts, "early")
        early = session(folder / one_file.FILES["early"])
        check(early, logits, thresholds, array)
        calls[name] = over(partial(lambda early, sample: early.run(None, {"x": sample}), early), array)
    times = interleaved(calls, blocks=7, seconds=5)
    plain_time = times["plain"]["median"]
    rows = {name: {"ms": 1000 * each["median"] / SAMPLES, "plain / this": plain_time / each["median"],
                   "others": each["others"]} for name, each in times.items()}  # fmt: skip
    costs = network.costs()
    return {"hardware": hardware(), "onnxruntime": onnxruntime.__version__, "rows": rows,
            "flops": [cost / costs.backbone for cost in costs.flops]}  # fmt: skip


def halves(score: np.ndarray) -> list[float]:
    """Thresholds at which half of those inside leave, in the middle between two scores."""
    inside, thresholds = np.ones(score.shape[1], dtype=bool), []
    for found in score.astype(np.float64):
        ordered = np.sort(found[inside])
        thresholds.append(float(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1].mean()))
        inside &= found <= thresholds[-1]
    return [*thresholds[:-1], math.inf]


def check(early: onnxruntime.InferenceSession, logits: Tensor, thresholds: list[float], x: np.ndarray) -> None:
    wanted = simulate(logits, per_exit(thresholds))
    found = [early.run(None, {"x": sample[None]}) for sample in x]
    assert [int(exit) for _, exit in found] == wanted.tolist(), "leaves elsewhere than PyTorch"
    right = logits[wanted - 1, np.arange(len(x))]
    difference = np.abs(np.concatenate([each for each, _ in found]) - right.numpy()).max()
    assert difference < 1e-3 * float(right.abs().max()), f"logits differ by {difference}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    torch.set_num_threads(1)
    for name in parser.parse_args().networks or NETWORKS:
        torch.manual_seed(0)
        save("one_file", {name: measure(NETWORKS[name]().eval())})
        print(name, flush=True)


if __name__ == "__main__":
    main()
