"""Whether a model can be loaded in a fresh process, and what stands in where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llmperf import engines
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.processes import KnownSpread

ADOPTED = "the test itself holds the model, which no other process can load"
ONE_WANTED = "one process was asked for"


def _nothing_to_renew() -> object:
    return None


def _nothing_known() -> Sequence[Mapping[str, KnownSpread]]:
    return [{}]


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """The fresh processes of one measurement.

    `renew` ends those that hold its models, so that their next use loads them anew. `why_one` says
    why it cannot; `alike` that processes do not differ (virtual time). `in_turn`: the models do not
    fit on the device together. `known` gives what is known of each one's spread, by metric.
    """

    renew: Callable[[], object] = _nothing_to_renew
    why_one: str = ""
    alike: bool = False
    in_turn: bool = False
    known: Callable[[], Sequence[Mapping[str, KnownSpread]]] = field(default=_nothing_known)


ALIKE = Renewal(alike=True)
"""Processes do not differ, and one is enough."""


def dear_text(load_s: float, budget_s: float) -> str:
    """Say that loading takes too long for three processes."""
    return (
        f"loading and warming up take {load_s:.3g} s, too long for three processes in the budget "
        f"of {budget_s:g} s (--llmperf-budget)"
    )


def are_alike(plans: Sequence[LoadPlan]) -> bool:
    """Whether processes with these models do not differ: their engine's time is virtual."""
    return not any(map(_differs, plans))


def _differs(plan: LoadPlan) -> bool:
    row = engines.TABLE.get(plan.engine)
    return row is None or row.load_capabilities().processes_differ(plan)


def why_not_renewed(plans: Sequence[LoadPlan], *, adopted: Callable[[LoadPlan], bool]) -> str:
    """Return why one of these models cannot be had in a fresh process; empty where all can."""
    for plan in plans:
        if adopted(plan):
            return ADOPTED
        if runs_by_itself(plan):
            return (
                f"the server at {plan.option('url')} runs by itself and cannot be started anew "
                "(without option 'restart')"
            )
    return ""


def runs_by_itself(plan: LoadPlan) -> bool:
    """Whether a plan is a server that others started, and that no command starts anew."""
    return bool(plan.option("url")) and not plan.option("restart")
