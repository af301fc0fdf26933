"""What this machine has for a study: versions, devices, the store and the data sets."""

from __future__ import annotations

import torch

from eestudy import data
from eestudy.config import EestudyError
from eestudy.data.sources import MissingData
from eestudy.environment import commit, hardware, versions
from eestudy.registry import DATASETS
from eestudy.store import Store
from eestudy.training.execution import fast_bfloat16


def doctor() -> int:
    """Prints it; returns 1 where a data set is damaged, else 0. EestudyError for a store that cannot be written."""
    print(f"versions  {versions()}; commit {commit()}")
    print(f"device    {hardware()}, {torch.get_num_threads()} threads")
    fast = ", ".join(fast_bfloat16())
    print(f"bfloat16  {f'fast on the processor: {fast}' if fast else 'slow on the processor'}")
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"gpu       {', '.join(gpus) or 'none'}")
    store = Store()
    store.check_writable()
    print(f"store     {store.path} (writable)")
    damaged = 0
    for name in DATASETS:
        try:
            print(f"data      {name}: {_facts(name)}")
        except MissingData as error:
            print(f"data      {str(error).removeprefix('dataset: ')}")
        except EestudyError as error:
            damaged = 1
            print(f"data      {name} is damaged: {error}")
    return damaged


def _facts(name: str) -> str:
    """Sizes of a data set, and where it is; big ones are not loaded, the sizes of their files have to do."""
    source = data.source_of(name)
    if source:
        folder = source.find()
        train, test = source.count(folder)
        source.confirm(folder, train, test)
        held_out = source.validation or -(-train // 10)  # a tenth, rounded up, as the split is made
        shape, classes, where = source.input_shape, source.classes, f", in {folder}"
    else:
        found = data.load(name)
        train, held_out, test = len(found.train) + len(found.validation), len(found.validation), len(found.test)
        shape, classes, where = found.input_shape, found.num_classes, ""
    sizes = f"{train - held_out} train, {held_out} validation, {test} test"
    return f"{sizes}, inputs {shape}, {classes} classes{where}"
