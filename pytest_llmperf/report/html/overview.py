"""What a reader sees first: what failed, what is fastest, what was not in effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import ClaimRecord, Record
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.report.html import effect, history
from pytest_llmperf.report.html.answers import holds
from pytest_llmperf.report.html.content import Content, Unmeasured
from pytest_llmperf.report.html.failures import Line, change_of, line_of
from pytest_llmperf.report.html.groups import GroupView, Standing
from pytest_llmperf.report.html.runs import plural

ORDER = (
    "FAIL",
    "ERROR",
    "INVALID",
    "UNDECIDED",
    "NOT COMPARABLE",
    "WAIVED",
    "MARKED",
    "XPASS",
    "XFAIL",
    "SKIPPED",
    "PASS",
    "RECORDED",
)
"""Outcomes, what wants attention first."""
_UNMEASURED = ("ERROR", "INVALID", "FAIL")
_NOT_IN_EFFECT = NotInEffect.__name__
_UNCLAIMED = "failed, and none of its claims did: the reason is in pytest's own output"
_NOT_STORED = (
    "Tests that were skipped or could not be measured are not in the store; "
    "a report of their own session names them."
)
_NO_RULE = "faster, but without an agreement rule that holds"


class Item(Struct, frozen=True, kw_only=True):
    """A line of a panel.

    `change` is a metric before and after, `line` its last sessions, `run` the id of its record.
    """

    title: str
    text: str = ""
    more: str = ""
    outcome: str = ""
    change: str = ""
    line: Line | None = None
    run: str = ""


class Panel(Struct, frozen=True, kw_only=True):
    """One of the answers at the top.

    `calm` is said where there is nothing to list; `more` stands below in any case.
    """

    title: str
    tone: str
    items: tuple[Item, ...] = ()
    calm: str = ""
    more: str = ""


class Count(Struct, frozen=True, kw_only=True):
    """How many tests ended so."""

    outcome: str
    n: int


def counts(content: Content) -> list[Count]:
    """Return tests by outcome.

    A test with several outcomes is counted by the one that wants most attention.
    """
    n_tests = Counter(_worst_outcomes(content).values())
    return [Count(outcome=name, n=n_tests[name]) for name in sorted(n_tests, key=_urgency)]


def panels(content: Content, groups: Sequence[GroupView]) -> list[Panel]:
    """Return what failed, the fastest where there is a choice, and what else wants a look."""
    choices = [group for group in groups if len(group.standings) > 1]
    fastest = [_fastest(choices)] if choices else []
    return [_failed(content), *fastest, _not_in_effect(content), *_notable(content)]


def _notable(content: Content) -> Iterator[Panel]:
    for panel in (_changed(content), _skipped(content)):
        if panel is not None:
            yield panel


def _worst_outcomes(content: Content) -> dict[str, str]:
    """Return each test's outcome that wants most attention."""
    results: list[Record | Unmeasured] = [*content.records, *(content.unmeasured or ())]
    worst: dict[str, str] = {}
    for result in results:
        upper = result.outcome.upper()
        outcome = upper if upper in ORDER else result.outcome
        worst[result.test] = min(worst.get(result.test, outcome), outcome, key=_urgency)
    return worst


def _urgency(outcome: str) -> int:
    return ORDER.index(outcome) if outcome in ORDER else len(ORDER)


def _failed(content: Content) -> Panel:
    items = _failed_claims(content)
    items |= _unclaimed_failures(content.records, {test for test, _ in items})
    for test in content.unmeasured or ():
        if test.outcome in _UNMEASURED and test.kind != _NOT_IN_EFFECT:
            items.setdefault((test.test, test.stated_reason), _unmeasured_item(test))
    calm = "Nothing failed." if content.records or content.unmeasured else "Nothing was measured."
    return Panel(
        title=_failed_title(items.values()),
        tone="bad" if items else "good",
        items=tuple(items.values()),
        calm=calm,
    )


def _failed_claims(content: Content) -> dict[tuple[str, str], Item]:
    """Return the claims that failed, by test and claim."""
    return {
        (record.test, claim.text): _failed_claim_item(content, record, claim)
        for record in content.records
        for claim in record.claims
        if claim.outcome == "FAIL"
    }


def _failed_claim_item(content: Content, record: Record, claim: ClaimRecord) -> Item:
    return Item(
        title=record.test,
        text=claim.text,
        more=claim.detail,
        outcome="FAIL",
        change=change_of(content, record, claim),
        line=line_of(content, record, claim),
        run=record.id,
    )


def _unclaimed_failures(
    records: Sequence[Record], claimed: set[str]
) -> dict[tuple[str, str], Item]:
    """Return the tests that failed although none of their claims did."""
    return {
        (record.test, ""): _unclaimed_item(record)
        for record in records
        if record.outcome == "FAIL" and record.test not in claimed
    }


def _unclaimed_item(record: Record) -> Item:
    return Item(title=record.test, text=_UNCLAIMED, outcome="FAIL")


def _failed_title(items: Iterable[Item]) -> str:
    failed = {item.title for item in items if item.outcome == "FAIL"}
    unmeasured = {item.title for item in items} - failed
    texts = []
    if failed:
        texts.append(f"{plural(len(failed), 'test')} failed")
    if unmeasured:
        texts.append(f"{plural(len(unmeasured), 'test')} could not be measured")
    return ", ".join(texts) or "What failed"


def _fastest(groups: Sequence[GroupView]) -> Panel:
    return Panel(
        title="Fastest at acceptable agreement",
        tone="accent",
        items=tuple(map(_fastest_item, groups)),
        calm="There is no run to choose from.",
    )


def _fastest_item(group: GroupView) -> Item:
    accepted = [standing for standing in group.standings if _is_accepted(standing, group)]
    best = accepted[0] if accepted else _best_unaccepted(group.standings)
    caveats = _caveats(best, group.standings, accepted)
    return Item(
        title=f"{group.model}, {group.workload}",
        text=f"{best.name}: {best.speed_with_interval}",
        more="; ".join([*_facts(best, group), *caveats]),
    )


def _best_unaccepted(standings: Sequence[Standing]) -> Standing:
    """Return the fastest that has no rule, else the fastest of all."""
    unproven = [standing for standing in standings if holds(standing.agreement) is None]
    return unproven[0] if unproven else standings[0]


def _is_accepted(standing: Standing, group: GroupView) -> bool:
    """Whether its agreement is good enough; that of the reference always is."""
    return holds(standing.agreement) is True or standing.run.strategy == group.reference


def _facts(standing: Standing, group: GroupView) -> list[str]:
    facts = []
    if standing.ratio is not None:
        facts.append(f"{format_value(standing.ratio.ratio, 'x')} of {group.reference}")
    if standing.memory_bytes is not None:
        facts.append(f"{format_value(standing.memory_bytes, 'B')} memory")
    if standing.top1 is not None:
        facts.append(f"top-1 {format_value(standing.top1, '1')}")
    return facts


def _caveats(
    best: Standing, standings: Sequence[Standing], accepted: Sequence[Standing]
) -> list[str]:
    if holds(best.agreement) is False and not accepted:
        return ["no agreement is acceptable: its rule does not hold"]
    if not accepted:
        return ["agreement was not measured or has no rule"]
    faster = [standing.name for standing in standings if standing.speed > best.speed]
    return [f"{_NO_RULE}: {', '.join(faster)}"] if faster else []


def _not_in_effect(content: Content) -> Panel:
    ended = [
        Item(
            title=test.test,
            text=test.reason,
            outcome=test.outcome,
        )
        for test in content.unmeasured or ()
        if test.kind == _NOT_IN_EFFECT
    ]
    items = (*ended, *_broken_items(content.records))
    return Panel(
        title="What was not in effect",
        tone="bad" if items else "good",
        items=items,
        calm=_calm_text(content.records),
        more="" if content.unmeasured is not None else _NOT_STORED,
    )


def _broken_items(records: Sequence[Record]) -> list[Item]:
    """Return the promises that the records' descriptions break, each once a strategy."""
    return [_broken_item(*promise, test) for promise, test in _broken_promises(records).items()]


def _broken_promises(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """Return the last test of each strategy and text of a promise that it breaks."""
    return {
        (record.strategy, text): record.test for record in records for text in effect.broken(record)
    }


def _broken_item(strategy: str, text: str, test: str) -> Item:
    return Item(title=f"{strategy} in {test}", text=text)


def _calm_text(records: Sequence[Record]) -> str:
    if not _checked_strategies(records):
        return "Nothing says what was loaded."
    return "Everything that was requested was in effect."


def _checked_strategies(records: Sequence[Record]) -> set[str]:
    return {record.strategy for record in records if effect.checked_promises(record) is not None}


def _changed(content: Content) -> Panel | None:
    items = [Item(title=test, text=text) for test, text in history.changed(content.histories)]
    return _warning("Levels that changed", items)


def _skipped(content: Content) -> Panel | None:
    items = [_unmeasured_item(test) for test in _skipped_tests(content)]
    return _warning(f"{len(items)} skipped", items)


def _skipped_tests(content: Content) -> list[Unmeasured]:
    return [test for test in content.unmeasured or () if test.outcome == "SKIPPED"]


def _warning(title: str, items: Sequence[Item]) -> Panel | None:
    """Return a panel that is shown only where it has something to list."""
    return Panel(title=title, tone="warn", items=tuple(items)) if items else None


def _unmeasured_item(test: Unmeasured) -> Item:
    return Item(title=test.test, text=test.stated_reason, outcome=test.outcome)
