"""SparseGPT: drop weights and correct those that follow.

It is a pure function of one layer's weight and its inputs' second moments, from Frantar and
Alistarh, 2023, https://arxiv.org/abs/2301.00774.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pytest_llmperf.engines.transformers.prune.masks import lowest_share, n_of_m
from pytest_llmperf.errors import LoadError

BLOCK_COLUMNS = 128
"""Columns whose mask is chosen at once; the paper's value."""

DAMPENING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean; the paper's value."""

_STRONGER = (1.0, 10.0, 100.0)


def sparsegpt(
    weight: Tensor, moments: Tensor, sparsity: float, pattern: tuple[int, int] | None = None
) -> Tensor:
    """Return the pruned weight, [outputs, inputs] float32; the arguments stay as they are.

    `moments` are the second moments X^T X of the inputs, [inputs, inputs].
    """
    columns = weight.shape[1]
    # As [inputs, outputs], what is updated together lies together.
    rows = weight.t().contiguous()
    moments = moments.clone()
    _drop_dead_inputs(moments, rows)
    factor = inverse_factor(moments)
    for first in range(0, columns, BLOCK_COLUMNS):
        last = min(first + BLOCK_COLUMNS, columns)
        errors = _prune_block(rows[first:last], factor[first:last, first:last], sparsity, pattern)
        rows[last:].addmm_(factor[first:last, last:].t(), errors, alpha=-1.0)
    return rows.t().contiguous()


def _drop_dead_inputs(moments: Tensor, rows: Tensor) -> None:
    """Zero the weights of inputs that were always zero, in place: moments then have an inverse."""
    dead = moments.diagonal() == 0
    moments.diagonal()[dead] = 1.0
    rows[dead] = 0.0


def inverse_factor(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor U of (moments + dampening)^-1 = U^T U.

    Raises LoadError if there is none.
    """
    for stronger in _STRONGER:
        dampened = moments.clone()
        dampened.diagonal().add_(DAMPENING * stronger * moments.diagonal().mean())
        lower = _cholesky(dampened)
        upper = _cholesky(torch.cholesky_inverse(lower), upper=True) if lower is not None else None
        if upper is not None:
            return upper
    raise LoadError(
        f"pruning sparsegpt: the second moments of {moments.shape[0]} inputs have no Cholesky "
        "factor even with the mean of the diagonal added to it. Use 'wanda', which needs none.",
    )


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor | None:
    """Return the Cholesky factor, or None for a matrix that is not positive definite."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix, upper=upper)
    return None if int(failed) else factor


def _prune_block(
    rows: Tensor, factor: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """Prune [columns, outputs] in place, each column by its mask, and correct the ones after it.

    Returns the scaled errors.
    """
    diagonal = factor.diagonal()
    width = rows.shape[0] if pattern is None else pattern[1]
    errors = torch.empty_like(rows)
    mask = torch.empty_like(rows, dtype=torch.bool)
    for j in range(rows.shape[0]):
        if j % width == 0:
            group = slice(j, j + width)
            mask[group] = _mask(rows[group], diagonal[group], sparsity, pattern)
        torch.mul(rows[j], mask[j], out=errors[j]).div_(diagonal[j])
        rows[j:].addr_(factor[j, j:], errors[j], alpha=-1.0)
    rows.masked_fill_(mask, 0.0)
    return errors


def _mask(
    rows: Tensor, diagonal: Tensor, sparsity: float, pattern: tuple[int, int] | None
) -> Tensor:
    """Return the mask of weights to drop, [columns, outputs], by weight^2 / [H^-1]^2."""
    scores = (rows / diagonal[:, None]).square()
    if pattern is None:
        return lowest_share(scores, sparsity)
    return n_of_m(scores.t(), *pattern).t()
