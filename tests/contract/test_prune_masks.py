"""Masks and SparseGPT as pure functions: exact counts, and the lowest scores.

They equal naive implementations.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from pytest_llmperf.engines.transformers.prune import masks
from pytest_llmperf.engines.transformers.prune.sparsegpt import inverse_factor, sparsegpt
from pytest_llmperf.errors import LoadError

FEW_VALUES = (0.0, 0.5, 1.0, 2.0)
ANY_COLUMNS = st.integers(1, 24)


@st.composite
def score_matrices(draw, columns=ANY_COLUMNS):
    """Small matrices, of many different scores or of few: ties are common in 16-bit weights."""
    shape = draw(st.integers(1, 6)), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        return torch.rand(shape, generator=generator)
    return torch.tensor(FEW_VALUES)[torch.randint(len(FEW_VALUES), shape, generator=generator)]


def keeps_the_highest(scores, mask):
    """No dropped score of a row is above a kept one."""
    gone = scores.masked_fill(~mask, -1).amax(-1)
    kept = scores.masked_fill(mask, torch.inf).amin(-1)
    return bool((gone <= kept).all())


@given(score_matrices(), st.data())
def test_exactly_as_many_of_the_lowest_go_as_asked(scores, data):
    """Over the whole matrix, ties included."""
    count = data.draw(st.integers(0, scores.numel()))
    mask = masks.lowest(scores, count)
    assert int(mask.sum()) == count
    assert keeps_the_highest(scores.flatten(), mask.flatten())


@given(score_matrices(), st.floats(0.01, 0.99))
def test_rows_lose_the_same_share_and_their_lowest(scores, sparsity):
    """Rows differ by one weight at most, and together they lose the share that was asked for."""
    mask = masks.lowest_in_rows(scores, sparsity)
    counts = mask.sum(1)
    assert int(counts.max() - counts.min()) <= 1
    assert int(mask.sum()) == round(scores.numel() * sparsity)
    assert keeps_the_highest(scores, mask)


def test_sorting_in_slices_gives_the_same_mask(monkeypatch):
    """However little memory sorting may take."""
    scores = torch.rand(37, 50, generator=torch.Generator().manual_seed(0))
    whole = masks.lowest_in_rows(scores, 0.3)
    monkeypatch.setattr(masks, "SLICE_ELEMENTS", 150)
    assert torch.equal(masks.lowest_in_rows(scores, 0.3), whole)


@given(score_matrices(columns=st.integers(1, 6).map(lambda groups: 4 * groups)))
def test_two_of_every_four_stay(scores):
    """The two highest, and the check of the pattern agrees."""
    mask = masks.n_of_m(scores, 2, 4)
    assert bool((mask.unflatten(1, (-1, 4)).sum(-1) == 2).all())
    assert keeps_the_highest(scores.unflatten(1, (-1, 4)), mask.unflatten(1, (-1, 4)))
    weight = (scores + 1).masked_fill(mask, 0)
    assert masks.broken_groups(weight, 2, 4) == 0


def test_a_group_that_holds_three_weights_is_counted():
    """The negative control: one weight put back breaks one group.

    Half of the weights in the wrong places break many.
    """
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0]])
    assert masks.broken_groups(weight, 2, 4) == 0
    weight[0, 0] = weight[0, 2] = 5.0
    assert masks.broken_groups(weight, 2, 4) == 1
    scores = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    assert masks.broken_groups(scores.masked_fill(masks.lowest_in_rows(scores, 0.5), 0), 2, 4) > 100


def problem(outputs=12, inputs=24, tokens=200, seed=0):
    """A weight and correlated inputs [tokens, inputs]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(inputs) + torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    return torch.randn(outputs, inputs, generator=generator), torch.randn(
        tokens, inputs, generator=generator
    ) @ mixing


def naive_sparsegpt(weight, inputs, sparsity, pattern, block):
    """The paper's algorithm by the book, in float64.

    At each step the inverse is taken anew for the columns that remain.
    """
    moments = inputs.double().T @ inputs.double()
    moments += 0.01 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    out, gone = weight.double().clone(), torch.zeros_like(weight, dtype=torch.bool)
    width = block if pattern is None else pattern[1]
    for j in range(weight.shape[1]):
        if j % width == 0:
            gone[:, j : j + width] = naive_mask(out, moments, j, width, sparsity, pattern)
        inverse = torch.linalg.inv(moments[j:, j:])
        error = torch.where(gone[:, j], out[:, j], 0.0) / inverse[0, 0]
        out[:, j:] -= error[:, None] * inverse[0]
        out[gone[:, j], j] = 0.0
    return out


def naive_mask(out, moments, j, width, sparsity, pattern):
    """Scores w^2 / [H^-1]_kk, where the inverse is of the columns from k on."""
    last = min(j + width, out.shape[1])
    diagonal = torch.stack([torch.linalg.inv(moments[k:, k:])[0, 0] for k in range(j, last)])
    scores = out[:, j:last] ** 2 / diagonal
    if pattern is not None:
        order = scores.argsort(1)[:, : pattern[1] - pattern[0]]
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, value=True)
    order = scores.flatten().argsort()[: round(scores.numel() * sparsity)]
    return (
        torch.zeros(scores.numel(), dtype=torch.bool).scatter(0, order, value=True).view_as(scores)
    )


@pytest.mark.parametrize("pattern", [None, (2, 4)])
@pytest.mark.parametrize("block", [8, 128])
def test_sparsegpt_is_the_papers_algorithm(monkeypatch, pattern, block):
    """Against inverses taken anew at each column: the same mask, and the same corrected weights."""
    monkeypatch.setattr("pytest_llmperf.engines.transformers.prune.sparsegpt.BLOCK_COLUMNS", block)
    weight, inputs = problem()
    ours = sparsegpt(weight, inputs.T @ inputs, 0.5, pattern)
    naive = naive_sparsegpt(weight, inputs, 0.5, pattern, block)
    assert torch.equal(ours == 0, naive == 0)
    assert torch.allclose(ours.double(), naive, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_changes_the_outputs_less_than_what_it_is_for(seed):
    """Less than the same mask without corrections, and less than dropping the smallest.

    Neither argument is changed.
    """
    weight, inputs = problem(64, 256, 1000, seed)
    before, moments = weight.clone(), inputs.T @ inputs
    ours = sparsegpt(weight, moments, 0.5)
    assert torch.equal(weight, before)
    assert torch.equal(moments, inputs.T @ inputs)
    assert int((ours == 0).sum()) == weight.numel() // 2
    for other in (ours == 0, masks.lowest(weight.abs(), weight.numel() // 2)):
        dropped = weight.masked_fill(other, 0)
        assert (inputs @ (ours - weight).T).norm() < 0.95 * (inputs @ (dropped - weight).T).norm()


def test_an_input_that_is_always_zero_loses_its_weights():
    """They do nothing; and the moments stay invertible."""
    weight, inputs = problem()
    inputs[:, 3] = 0
    assert bool((sparsegpt(weight, inputs.T @ inputs, 0.5)[:, 3] == 0).all())


def test_moments_without_a_factor_are_an_error():
    """Not a matrix of moments at all: no dampening helps."""
    assert torch.allclose(
        inverse_factor(torch.eye(4) * 4.04 / 1.01), torch.eye(4) / 2 / 1.01**0.5, atol=1e-2
    )
    with pytest.raises(LoadError, match="no Cholesky factor"):
        inverse_factor(torch.tensor([[1.0, 1000.0], [1000.0, 1.0]]))
