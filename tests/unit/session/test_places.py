"""Where other programs are looked at: on this host's cores, where a model of ours works."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.session.places import allows_load, looks_at_load


def plan(engine: str, device: str = "cpu", **options: str) -> LoadPlan:
    model = ModelRef(name="m", kind="scripted" if engine == "scripted" else "hub", location="m")
    return LoadPlan(
        model=model, engine=engine, device=device, options=tuple(sorted(options.items())), seed=0
    )


@pytest.mark.parametrize(
    ("plans", "cluster", "looks"),
    [
        ([plan("transformers")], "", True),
        ([plan("server:vllm")], "", True),
        ([plan("transformers"), plan("scripted")], "", True),
        ([plan("scripted")], "", False),
        ([plan("transformers", device="cuda")], "", False),
        ([plan("transformers")], "auto", False),
        ([plan("server", url="http://127.0.0.1:1")], "", False),
        ([plan("measure 1")], "", False),
    ],
)
def test_where_other_programs_are_looked_at(plans, cluster, looks):
    assert looks_at_load(plans, SimpleNamespace(cluster=cluster)) is looks


@pytest.mark.parametrize(
    ("allow_load", "against", "allowed"),
    [(False, None, False), (True, None, True), (False, object(), True)],
)
def test_load_is_allowed_by_the_option_and_side_by_side(allow_load, against, allowed):
    """There pairs are compared, and only those that load hits alike."""
    assert allows_load(SimpleNamespace(allow_load=allow_load, against=against)) is allowed
