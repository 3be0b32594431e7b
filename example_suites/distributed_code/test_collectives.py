"""Bodies that run once a rank: over gloo on a CPU, and over NCCL where each rank has a GPU."""

import os

import pytest


@pytest.mark.llmperf_ranks(2, timeout=120)
def test_the_sum_over_ranks_is_the_same_on_each(llmperf_rank):
    """Every rank adds its number; each sees the sum."""
    import torch
    import torch.distributed as dist

    device = llmperf_rank.init()
    mine = torch.tensor([float(llmperf_rank.rank + 1)], device=device)
    dist.all_reduce(mine)
    assert mine.item() == 3.0
    dist.destroy_process_group()


@pytest.mark.llmperf_ranks(2, timeout=120)
def test_a_column_split_product_is_the_whole_product(llmperf_rank):
    """Tensor parallelism in four lines: each rank multiplies its columns and gathers the parts."""
    import torch
    import torch.distributed as dist

    device = llmperf_rank.init()
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8), torch.randn(8, 6)
    part = (x @ weight.chunk(2, dim=1)[llmperf_rank.rank]).to(device)
    parts = [torch.empty_like(part) for _ in range(2)]
    dist.all_gather(parts, part)
    torch.testing.assert_close(torch.cat(parts, dim=1).cpu(), x @ weight)
    dist.destroy_process_group()


@pytest.mark.llmperf_isolated
def test_an_environment_variable_stays_inside():
    """The process is gone afterwards, and its environment with it."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_and_is_not_seen_here():
    """Runs in this process, after the isolated one."""
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") != ":4096:8"
