"""What a person sees in the first five seconds: what failed, what is fastest at acceptable agreement, what was not in effect."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pytest_llmperf.core.format import format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.errors import NotInEffect
from pytest_llmperf.report.html import effect, history
from pytest_llmperf.report.html.answers import holds
from pytest_llmperf.report.html.content import Content
from pytest_llmperf.report.html.runs import Group, groups, headline, interval, ratio, shown
from pytest_llmperf.report.html.tradeoffs import Standing, standings

ORDER = (
    "FAIL",
    "ERROR",
    "INVALID",
    "UNDECIDED",
    "NOT COMPARABLE",
    "WAIVED",
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
_NOT_STORED = "Tests that were skipped or could not be measured are not in the store; a report of their own session names them."


class Item(Struct, frozen=True, kw_only=True):
    """A line of a panel."""

    title: str
    text: str = ""
    more: str = ""
    outcome: str = ""


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
    """Tests by outcome; a test with several is counted by the one that wants most attention."""
    worst: dict[str, str] = {}
    seen = [(each.test, each.outcome) for each in content.records] + [
        (u.test, u.outcome) for u in content.unmeasured or ()
    ]
    for test, outcome in seen:
        named = outcome.upper() if outcome.upper() in ORDER else outcome
        worst[test] = min(worst.get(test, named), named, key=_urgency)
    found = {
        outcome: list(worst.values()).count(outcome) for outcome in dict.fromkeys(worst.values())
    }
    return [
        Count(outcome=outcome, n=n)
        for outcome, n in sorted(found.items(), key=lambda item: _urgency(item[0]))
    ]


def panels(content: Content) -> list[Panel]:
    """The three answers, and what else wants a look."""
    found = [_failed(content), _fastest(content), _not_in_effect(content)]
    noted = [_changed(content), _skipped(content)]
    return [*found, *(panel for panel in noted if panel is not None)]


def _urgency(outcome: str) -> int:
    return ORDER.index(outcome) if outcome in ORDER else len(ORDER)


def _failed(content: Content) -> Panel:
    items: dict[tuple[str, str], Item] = {}
    for record in content.records:
        for claim in (each for each in record.claims if each.outcome == "FAIL"):
            items[record.test, claim.text] = Item(
                title=record.test, text=claim.text, more=claim.detail, outcome="FAIL"
            )
    claimed = {test for test, _ in items}
    for test in dict.fromkeys(
        record.test for record in content.records if record.outcome == "FAIL"
    ):
        if test not in claimed:
            items[test, ""] = Item(title=test, text=_UNCLAIMED, outcome="FAIL")
    unmeasured = [
        each
        for each in content.unmeasured or ()
        if each.outcome in _UNMEASURED and each.kind != _NOT_IN_EFFECT
    ]
    for each in unmeasured:
        items.setdefault(
            (each.test, each.stated_reason),
            Item(title=each.test, text=each.stated_reason, outcome=each.outcome),
        )
    failed = {item.title for item in items.values() if item.outcome == "FAIL"}
    unmeasured_too = {item.title for item in items.values()} - failed
    calm = "Nothing failed." if content.records or content.unmeasured else "Nothing was measured."
    title = ", ".join(
        f"{len(tests)} test{'' if len(tests) == 1 else 's'} {what}"
        for tests, what in ((failed, "failed"), (unmeasured_too, "could not be measured"))
        if tests
    )
    return Panel(
        title=title or "What failed",
        tone="bad" if items else "good",
        items=tuple(items.values()),
        calm=calm,
    )


def _fastest(content: Content) -> Panel:
    items = tuple(
        item
        for group in groups(content.records)
        if (item := _best(group, content.records)) is not None
    )
    return Panel(
        title="Fastest at acceptable agreement",
        tone="accent",
        items=items,
        calm="There is no run to choose from.",
    )


def _best(group: Group, records: Sequence[Record]) -> Item | None:
    standing = standings(group, records)
    accepted = [
        each
        for each in standing
        if holds(each.agreement) or each.record.strategy == group.reference
    ]
    best = next(
        iter(accepted or [each for each in standing if holds(each.agreement) is None] or standing),
        None,
    )
    if best is None:
        return None
    run = best.record
    speed = f"{best.name}: {shown(run, headline(run))} {interval(run, headline(run))}".strip()
    over = ratio(run, group)
    facts = [f"{format_value(over.value, 'x')} of {group.reference}"] if over is not None else []
    facts += (
        [f"{format_value(best.memory_bytes, 'B')} memory"] if best.memory_bytes is not None else []
    )
    facts += [f"top-1 {format_value(best.top1, '1')}"] if best.top1 is not None else []
    return Item(
        title=f"{group.model}, {group.workload}",
        text=speed,
        more="; ".join([*facts, *_caveat(best, standing, accepted)]),
    )


def _caveat(
    best: Standing, standing: Sequence[Standing], accepted: Sequence[Standing]
) -> list[str]:
    if holds(best.agreement) is False and not accepted:
        return ["no agreement is acceptable: its rule does not hold"]
    if not accepted:
        return ["agreement was not measured or has no rule"]
    faster = [each for each in standing if each.speed > best.speed]
    return (
        [
            f"faster, but without an agreement rule that holds: {', '.join(each.name for each in faster)}"
        ]
        if faster
        else []
    )


def _not_in_effect(content: Content) -> Panel:
    items = [
        Item(
            title=each.test,
            text=each.reason,
            outcome=each.outcome,
        )
        for each in content.unmeasured or ()
        if each.kind == _NOT_IN_EFFECT
    ]
    seen = {
        (record.strategy, text): record
        for record in content.records
        for text in effect.broken(record)
    }
    items += [
        Item(title=f"{strategy} in {record.test}", text=text)
        for (strategy, text), record in seen.items()
    ]
    n = len({record.strategy for record in content.records if effect.promises(record) is not None})
    calm = (
        f"All that {n} strateg{'y' if n == 1 else 'ies'} promised was in effect."
        if n
        else "Nothing says what was loaded."
    )
    more = "" if content.unmeasured is not None else _NOT_STORED
    return Panel(
        title="What was not in effect",
        tone="bad" if items else "good",
        items=tuple(items),
        calm=calm,
        more=more,
    )


def _changed(content: Content) -> Panel | None:
    items = tuple(Item(title=test, text=text) for test, text in history.changed(content.histories))
    return Panel(title="Levels that changed", tone="warn", items=items) if items else None


def _skipped(content: Content) -> Panel | None:
    items = tuple(
        Item(title=each.test, text=each.reason, outcome=each.outcome)
        for each in content.unmeasured or ()
        if each.outcome == "SKIPPED"
    )
    return Panel(title=f"{len(items)} skipped", tone="warn", items=items) if items else None
