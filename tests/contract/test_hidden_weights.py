"""Weights that only a module's code refers to are held, counted and held to the promises."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", exc_type=ModuleNotFoundError)

from support import odd_models
from support.odd_models import ALL_ELEMENTS, MLP_ELEMENTS, TABLES_BYTES

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.engines.transformers.effective import describe
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.observed.calls import watched_calls
from pytest_llmperf.engines.transformers.observed.holdings import held_tensors
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.strategies import parse, require_in_effect

MLPS = 4 * MLP_ELEMENTS
PLACES = ("in_slots", "in_deques", "in_defaults", "in_globals", "in_hooks")


def effective_of(strategy, name):
    parsed = parse(strategy)
    ref = ModelRef(name=name, kind="factory", location=f"support.hidden_weights:{name}")
    plan = parsed.apply(LoadPlan(model=ref))
    effective = describe(load(plan))
    require_in_effect(effective, parsed.promises(plan), "loaded")
    return effective


@pytest.mark.parametrize("name", PLACES)
def test_what_only_code_refers_to_is_counted(name):
    """fp32 is in effect; a step reads these weights beside the parameters."""
    effective = effective_of("fp32", name)
    assert effective.weights_bytes == ALL_ELEMENTS * 4 + TABLES_BYTES
    assert effective.also_read_bytes == MLPS * 4


@pytest.mark.parametrize("name", PLACES)
def test_what_only_code_refers_to_breaks_the_promise_of_another_dtype(name):
    """The MLPs are in float32 wherever they are."""
    with pytest.raises(NotInEffect, match=r"in float32.* not bfloat16"):
        effective_of("bf16", name)


def test_products_by_operators_of_torch_are_seen():
    """They are called `mm.default`, and the layer gives float32 whatever it computed in."""
    with pytest.raises(NotInEffect, match=r"12 .*bfloat16"):
        effective_of("fp32", "by_operators")


def test_functions_under_vmap_are_watched():
    """transformers' flex attention runs its masks so; tensors have no storage there."""
    model = odd_models.plain()

    def forward(hidden):
        return torch.vmap(lambda row: row * model.model.norm.weight)(hidden)

    with watched_calls(model, held_tensors(model)):
        assert forward(torch.ones(2, 3, 64)).shape == (2, 3, 64)
