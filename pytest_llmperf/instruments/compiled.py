"""What torch's compiler has done in this process."""

from __future__ import annotations

import torch
import torch._dynamo.utils
import torch._inductor.config


def graphs_compiled() -> int:
    """Return the number of graphs that dynamo has compiled in this process so far."""
    # The only count of them.
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])  # noqa: SLF001
