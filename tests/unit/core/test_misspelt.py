"""Suggestions leave what Python and pytest ask of an object as it is."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from pytest_llmperf.core.metrics.latencies import Latencies
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.misspelt import MEANINGS, Suggests
from pytest_llmperf.errors import UnknownAttribute, UsageError
from pytest_llmperf.session.model import Model
from pytest_llmperf.workloads import Decode

RUN = RunResult.unmeasured("nothing ran")


def test_an_unknown_attribute_is_an_error_of_both_kinds():
    """So `hasattr` and `getattr` with a default work as ever."""
    assert not hasattr(RUN, "thruput")
    assert getattr(RUN, "thruput", 5) == 5
    with pytest.raises(UsageError, match="Did you mean 'throughput'"):
        RUN.thruput  # noqa: B018
    with pytest.raises(AttributeError) as caught:
        RUN._private  # noqa: B018
    assert not isinstance(caught.value, UnknownAttribute)


def test_results_are_copied_and_pickled():
    """Both ask for special methods that are not there."""
    times = Latencies("ttft", (1.0, 2.0, 3.0, 4.0))
    assert copy.deepcopy(times).samples == times.samples
    assert pickle.loads(pickle.dumps(times)).samples == times.samples  # noqa: S301 - our own bytes
    assert copy.copy(RUN).subject == RUN.subject


def test_the_error_inside_of_a_property_is_its_own():
    """It is not said to be an attribute that is missing."""

    class Broken(Suggests):
        @property
        def whole(self):
            return None.missing

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'missing'"):
        Broken().whole  # noqa: B018


@pytest.mark.parametrize("meant", sorted(set(MEANINGS.values())))
def test_what_is_suggested_exists(meant):
    """No suggestion is itself unknown."""
    if meant in ("p50", "mean", "max"):
        assert hasattr(Latencies, meant)
        return
    value = RUN
    for part in meant.split("."):
        assert part in dir(type(value))
        value = getattr(value, part)


@pytest.mark.parametrize("other_name", MEANINGS)
def test_a_name_from_elsewhere_is_no_attribute(other_name):
    """Else its row would never be looked at."""
    assert not hasattr(RunResult, other_name)
    assert not hasattr(Latencies, other_name)


def test_signatures_are_what_they_were():
    """An editor shows the parameters and not those of a wrapper."""
    assert list(inspect.signature(Model.run).parameters) == ["self", "workload", "processes"]
    assert "prompt_tokens" in inspect.signature(Decode).parameters
    assert Decode(prompt_tokens=8).prompt_tokens == 8
