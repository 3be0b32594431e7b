"""A worker whose rank 1 does something wrong, as the environment says (`FAULT`).

It is the program of the tests of broken ranks.
"""

from __future__ import annotations

import os
import time

RANK = int(os.environ.get("RANK", "0"))
FAULT = os.environ.get("FAULT", "")


def zero_a_shard() -> None:
    """Rank 1's part of every row-cut matrix is lost."""
    from pytest_llmperf.engines.transformers.parallel import tensor

    keep = tensor._keep_columns

    def lost(module, grid) -> None:
        keep(module, grid)
        module.weight.data.mul_(0 if RANK == 1 else 1)

    tensor._keep_columns = lost


def load_everything() -> None:
    """Nothing is cut: each rank keeps the whole model."""
    from pytest_llmperf.engines.transformers.parallel import tensor

    tensor.TensorCut.after_fill = lambda *_arguments: None
    tensor.TensorCut.finish = lambda *_arguments: None


def swap_codes() -> None:
    """Each way of tensor parallelism is carried out by the other's code."""
    from pytest_llmperf.engines.transformers.parallel import library

    library.is_by_library = lambda plan: plan.tp_by == "own"


def load_without_plan() -> None:
    """transformers reads the whole model on each rank."""
    from pytest_llmperf.engines.transformers.parallel import library

    read = library.read_folder
    library.read_folder = lambda *arguments, **_options: read(*arguments)


def disturb_run(disturbance) -> None:
    """Rank 1 does `disturbance` when it is to decode; the others wait for it in a collective."""
    from pytest_llmperf.engines.transformers.runner import Runner

    decode = Runner.decode

    def disturbed(self, *arguments):
        if RANK == 1:
            disturbance()
        return decode(self, *arguments)

    Runner.decode = disturbed


def fail() -> None:
    """As a kernel that fails on one device."""
    raise ArithmeticError("rank 1 has miscounted")


FAULTS = {
    "zero": zero_a_shard,
    "whole": load_everything,
    "swap": swap_codes,
    "unplanned": load_without_plan,
    "raise": lambda: disturb_run(fail),
    "hang": lambda: disturb_run(lambda: time.sleep(600)),
    "exit": lambda: disturb_run(lambda: os._exit(7)),
}

if __name__ == "__main__":
    for fault in FAULT.split("+"):
        FAULTS[fault]()
    from pytest_llmperf.worker.__main__ import main

    main()
