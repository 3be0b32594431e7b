"""The fixture of a test body with ranks: its place among them, and torch.distributed's start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from pytest_llmperf.engines import rendezvous


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process of `@pytest.mark.llmperf_ranks(n)`.

    The launcher's variables (RANK, MASTER_ADDR, …) are set as torchrun's.
    """

    rank: int
    world_size: int

    @classmethod
    def of_environment(cls) -> Rank:
        """Read RANK and WORLD_SIZE; a single rank has none of them."""
        rank = int(os.environ.get("RANK", "0"))
        return cls(rank=rank, world_size=int(os.environ.get("WORLD_SIZE", "1")))

    def init(self, backend: str | None = None, *, timeout_s: float = 600) -> Any:
        """Start torch.distributed's default process group, and return the device of this rank.

        Args:
            backend: "gloo", "nccl" or another of torch's; None takes nccl where there is a GPU for
                each rank, else gloo.
            timeout_s: of a collective. torch raises when it is over, which names the rank that
                waited; the test's own deadline (`llmperf_ranks(n, timeout=…)`) shows the stacks of
                all ranks.

        Raises:
            RuntimeError, ValueError: as torch.distributed.init_process_group.
        """
        # By name: only a body's process has torch.
        torch, dist = import_module("torch"), import_module("torch.distributed")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        backend_name = backend or ("nccl" if gpus >= self.world_size else "gloo")
        device = torch.device("cpu")
        if backend_name == "nccl":
            device = torch.device("cuda", self.rank % gpus)
            torch.cuda.set_device(device)
        timeout = timedelta(seconds=timeout_s)
        dist.init_process_group(backend_name, timeout=timeout, **self._store(dist, timeout))
        return device

    def _store(self, dist: Any, timeout: timedelta) -> dict[str, Any]:
        """Return where the ranks meet; a single one has no launcher and nobody to meet."""
        if self.world_size > 1:
            return rendezvous.store(dist, timeout)
        return {"rank": 0, "world_size": 1, "store": dist.HashStore()}
