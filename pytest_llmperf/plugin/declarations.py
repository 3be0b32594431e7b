"""Which test declared what, and in which order tests run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import LlmperfError, UsageError
from pytest_llmperf.names import NAMED_FIXTURES
from pytest_llmperf.plugin.ours import our_fixtures
from pytest_llmperf.plugin.parametrize import argument_names
from pytest_llmperf.plugin.stash import DECLARED, Declared
from pytest_llmperf.session.declare import Declaration, declaration
from pytest_llmperf.session.session import LlmperfSession

Declare = Callable[[pytest.Item], Declared]


class Declarations:
    """What each test declares. It is worked out once by `declare`, and kept on the item."""

    def __init__(self, declare: Declare) -> None:
        self._declare = declare

    def of(self, item: pytest.Item) -> Declared:
        """Return what a test declares, also for one that a plugin added after collection."""
        if DECLARED not in item.stash:
            item.stash[DECLARED] = self._declare(item)
        return item.stash[DECLARED]

    def refuse(self, item: pytest.Item, error: LlmperfError) -> None:
        """Note what is wrong with a test's need of GPUs as wrong with its declaration."""
        declared = self.of(item)
        declared.error = declared.error or error

    def group(self, llmperf_items: Sequence[pytest.Item], items: list[pytest.Item]) -> None:
        """Put tests with equal loads side by side, in the places that llmperf tests hold."""
        for item in llmperf_items:
            self.of(item)
        ordered = iter(_grouped(llmperf_items))
        places = set(llmperf_items)
        items[:] = [next(ordered) if item in places else item for item in items]


def declared_by(core: LlmperfSession) -> Declare:
    """Return the function that works out what a test of this session declares."""

    def declare(item: pytest.Item) -> Declared:
        declared = Declared(declaration=Declaration())
        try:
            _require_indirect(item)
            _require_one_list(item)
            marks = [(mark.args, mark.kwargs) for mark in item.iter_markers("llmperf")]
            declared.declaration = declaration(marks)
            declared.plans = tuple(_plans(core, item, declared.declaration))
        except LlmperfError as error:
            declared.error = error
        return declared

    return declare


def refused_for(error: LlmperfError) -> Declare:
    """Return the function that gives every test the session's own error."""
    return lambda _item: Declared(declaration=Declaration(), error=error)


def known_plans(item: pytest.Item | None) -> tuple[LoadPlan, ...]:
    """Return the plans of a test that has declared some; no plans for any other test."""
    if item is None or DECLARED not in item.stash:
        return ()
    return item.stash[DECLARED].plans


def strategy_text(param: object) -> str | None:
    """Return the strategy that a test is parametrised with. Raises UsageError."""
    if param is None or isinstance(param, str):
        return param
    canonical = getattr(param, "canonical", None)
    if isinstance(canonical, str):
        return canonical
    raise UsageError(
        f"llm={param!r}: a strategy is a text such as 'bf16+static-cache', "
        f"not a {type(param).__name__}."
    )


def _plans(core: LlmperfSession, item: pytest.Item, declared: Declaration) -> Iterable[LoadPlan]:
    """Give what the test's fixtures will load, as far as it says so beforehand."""
    fixtures = our_fixtures(item)
    if "llm" in fixtures:
        callspec = getattr(item, "callspec", None)
        param = callspec.params.get("llm") if callspec else None
        yield core.plan(declared, strategy_text(param))
    for name, (strategy, engine) in NAMED_FIXTURES.items():
        if name in fixtures:
            yield core.plan(declared, strategy, engine=engine)
    if "baseline" in fixtures:
        yield core.reference_plan(declared)


def _require_indirect(item: pytest.Item) -> None:
    for mark in item.iter_markers("parametrize"):
        if "llm" in argument_names(mark) and not _is_indirect(mark):
            raise UsageError(
                "parametrize('llm', …) hands the test a text in place of the model: "
                "add indirect=True, or use @pytest.mark.llmperf(strategies=[…]).",
            )


def _require_one_list(item: pytest.Item) -> None:
    """Refuse strategies of a test's own marker beside its own parametrization of `llm`."""
    own = item.own_markers
    parametrized = any(mark.name == "parametrize" and "llm" in argument_names(mark) for mark in own)
    if parametrized and any(mark.name == "llmperf" and "strategies" in mark.kwargs for mark in own):
        raise UsageError(
            "parametrize('llm', …) and @pytest.mark.llmperf(strategies=[…]) both say the test's "
            "strategies: keep one of them."
        )


def _is_indirect(mark: pytest.Mark) -> bool:
    third_argument = mark.args[2:3]
    indirect = third_argument[0] if third_argument else mark.kwargs.get("indirect", False)
    return indirect is True or "llm" in (indirect or ())


def _grouped(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Group items by their first load plan.

    Groups are in order of first appearance, and the order inside a group is kept.
    """
    groups: dict[object, list[pytest.Item]] = {}
    for item in items:
        plans = item.stash[DECLARED].plans
        groups.setdefault(plans[0] if plans else None, []).append(item)
    return [item for group in groups.values() for item in group]
