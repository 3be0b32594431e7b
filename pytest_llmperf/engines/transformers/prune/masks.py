"""Masks of the weights to prune, from their scores.

Pure functions of tensors; True marks a weight that is to become zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SLICE_ELEMENTS = 1 << 24
"""How many scores are sorted at once.

It bounds the memory of sorting (12 bytes an element) for layers of any size.
"""


def lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` of the lowest scores of the whole tensor.

    Of equal scores the first in memory are masked.
    """
    if count <= 0 or count >= scores.numel():
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    flat = scores.flatten()
    threshold = flat.kthvalue(count).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view_as(scores)


def lowest_share(scores: Tensor, share: float) -> Tensor:
    """Return a mask of this share of the whole tensor, the lowest scores."""
    return lowest(scores, round(scores.numel() * share))


def lowest_in_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Return a mask of the lowest scores of each row of [rows, columns], the first of equal ones.

    A row loses the whole number of weights below or above `columns * sparsity`, so that all rows
    together lose `sparsity`.
    """
    mask = torch.empty_like(scores, dtype=torch.bool)
    columns = scores.shape[1]
    for rows in _row_slices(scores):
        bounds = torch.arange(rows.start, rows.stop + 1, device=scores.device, dtype=torch.float64)
        counts = (bounds * columns * sparsity).round().diff()
        mask[rows] = _lowest_of_each_row(scores[rows], counts)
    return mask


def _lowest_of_each_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Return a mask of the `counts[i]` lowest scores of row i."""
    order = scores.argsort(dim=1, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    mask = torch.empty_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order, ranks < counts[:, None])


def n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Return a mask of the `m - n` lowest scores of every group of `m` neighbours of a row.

    The other `n` weights of a group stay. Columns must divide by `m`.
    """
    groups = _groups(scores, m)
    lowest_places = groups.argsort(dim=-1, stable=True)[..., : m - n]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter_(-1, lowest_places, value=True).flatten(1)


def broken_groups(weight: Tensor, n: int, m: int) -> int:
    """Count groups of `m` neighbours of a row that hold more than `n` weights other than zero.

    `weight` is [rows, columns].
    """
    nonzeros = _groups(weight != 0, m).sum(-1)
    return int((nonzeros > n).sum())


def _groups(rows: Tensor, m: int) -> Tensor:
    """Return [rows, columns] as [rows, groups, m]."""
    return rows.reshape(rows.shape[0], -1, m)


def _row_slices(scores: Tensor) -> Iterator[slice]:
    """Yield slices of rows that hold about SLICE_ELEMENTS together, or one row."""
    rows, columns = scores.shape
    step = max(1, SLICE_ELEMENTS // columns)
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
