"""Which weights go: masks from scores.

Pure functions of tensors; True marks a weight that is to become zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE_ELEMENTS = 1 << 24
"""Scores that are sorted at once: bounds the memory of sorting (12 bytes an element) for layers of any size."""


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` of the lowest scores of the whole tensor.

    Among equal ones the first in memory go.
    """
    flat = scores.flatten()
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view_as(scores)


def lowest_in_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Mask of the lowest scores of each row of [rows, columns]. Among equal ones the first go.

    A row loses the whole number of weights below or above `columns * sparsity`, so that all rows
    together lose `sparsity`.
    """
    columns = scores.shape[1]
    mask = torch.empty_like(scores, dtype=torch.bool)
    for rows in _slices(scores):
        index = torch.arange(rows.start, rows.stop + 1, device=scores.device, dtype=torch.float64)
        due = (index * columns * sparsity).round()
        order = scores[rows].argsort(dim=1, stable=True)
        ranks = torch.arange(columns, device=scores.device).expand_as(order)
        mask[rows] = torch.empty_like(mask[rows]).scatter_(1, order, ranks < due.diff()[:, None])
    return mask


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the `m - n` lowest scores of every group of `m` neighbours of a row: `n` stay.

    Columns divide by `m`.
    """
    grouped = scores.reshape(scores.shape[0], -1, m)
    gone = grouped.argsort(dim=-1, stable=True)[..., : m - n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, gone, value=True).flatten(1)


def broken_groups(weight: Tensor, n: int, m: int) -> int:
    """Groups of `m` neighbours of a row of [rows, columns] that hold more than `n` weights other than zero."""
    kept = (weight != 0).reshape(weight.shape[0], -1, m).sum(-1)
    return int((kept > n).sum())


def _slices(scores: Tensor) -> Iterator[slice]:
    rows, columns = scores.shape
    step = max(1, SLICE_ELEMENTS // columns)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
