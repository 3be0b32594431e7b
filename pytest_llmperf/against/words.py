"""What a comparison side by side says: its finding, and its line in the summary. Pure."""

from __future__ import annotations

from pytest_llmperf.against.tracks import Track
from pytest_llmperf.core.change import COUNTED, Change
from pytest_llmperf.core.format import format_percent, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.core.verdicts.side_by_side import MIN_PAIRS, Decision
from pytest_llmperf.gate.words import title, verdict, visible, where
from pytest_llmperf.report.changes import interval_text

_MOST = 0.5
"""Share of the time from which on loads are worth a word."""


def finding(track: Track, base: str, *, strict: bool, ended: str) -> Finding:
    """The finding of a track that is done.

    `base` names the other version, `ended` why no more pairs were measured.
    """
    change, decision = track.change, track.decision
    if change.reason:
        return not_comparable(track.record, change.metric, base, change.reason, strict=strict)
    return verdict(
        change,
        track.record,
        _statement(change, base),
        remark=f"  ({change.how}){_second_measurement(track)}",
        evidence=(_values(change), *_evidence(track), _undecided(track, ended)),
        smallest_visible=decision.smallest_visible if decision else None,
        strict=strict,
    )


def not_comparable(record: Record, metric: str, base: str, reason: str, *, strict: bool) -> Finding:
    """Nothing was compared.

    The first line of a long reason (a log) is the text, the rest the detail.
    """
    first, _, rest = reason.strip().partition("\n")
    subject = title(metric, record)
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"{subject} was not compared with {base}: {first}",
        detail="\n".join(filter(None, (where(record), rest))),
        left=subject,
        right=base,
        strict=strict,
    )


def summary_line(track: Track, base: str) -> str:
    """One line for the terminal's summary."""
    change = track.change
    subject = f"{change.test}: {title(change.metric, track.record)}"
    if change.reason:
        return f"{subject} was not compared with {base}: {change.reason.splitlines()[0]}"
    return f"{subject} is {_statement(change, base)}, {change.how}: {change.outcome}"


def _statement(change: Change, base: str) -> str:
    return f"{_ratio(change)} {base} {interval_text(change.low, change.high)}".rstrip()


def _ratio(change: Change) -> str:
    if change.ratio is not None:
        return format_value(change.ratio, "x")
    return "not 0, as at" if change.how == COUNTED else "not measured against"


def _second_measurement(track: Track) -> str:
    decision = track.second_decision
    if decision is None:
        return ""
    ratio, n = format_value(1 + decision.change, "x"), len(track.second_pairs)
    refuted = "" if decision.outcome is Outcome.FAIL else ", not seen again"
    return f"  (again: {ratio}, {n} pairs{refuted})"


def _values(change: Change) -> str:
    if change.before is None or change.after is None:
        return ""
    before, after = (format_value(value, change.unit) for value in (change.before, change.after))
    return f"{after}, at the base {before}"


def _evidence(track: Track) -> list[str]:
    decision = track.decision
    if decision is None:
        return []
    return [_e_value(decision, track), _smallest_visible(decision), _sharing(track)]


def _sharing(track: Track) -> str:
    """Say how the time was shared where most of it went into starting processes."""
    loads = track.processes
    if loads is None or loads.ready_share <= _MOST:
        return ""
    share, n = format_percent(loads.ready_share, 2), round(loads.repetitions)
    repetitions = f"{n} repetition{'' if n == 1 else 's'}"
    return f"starting took {share} of the time, so that each process gave {repetitions}"


def _smallest_visible(decision: Decision) -> str:
    """Say how small a change can be seen, unless it is as large as the value itself."""
    smallest = decision.smallest_visible
    return visible(smallest if smallest < 1 else None)


def _e_value(decision: Decision, track: Track) -> str:
    """The evidence for a PASS, or that against it and what a FAIL needs."""
    if track.outcome is Outcome.PASS:
        return _evidence_of_pass(decision)
    return _evidence_against(decision, track.state.evidence)


def _evidence_against(decision: Decision, limit: float) -> str:
    evidence = f"E = {decision.e_worse:.3g} (limit {limit:.3g})"
    return f"{evidence}, autocorrelation {decision.autocorrelation:.2g}"


def _evidence_of_pass(decision: Decision) -> str:
    refuted = format_percent(decision.refuted, 2)
    return f"{refuted} worse is refuted (E = {decision.e_not_worse:.3g})"


def _undecided(track: Track, ended: str) -> str:
    if track.outcome is not Outcome.UNDECIDED:
        return ""
    return f"undecided: {_why(track, ended)}"


def _why(track: Track, ended: str) -> str:
    decision = track.decision
    if track.second is not None:
        return _why_not_again(track, ended)
    if decision is not None and decision.held_back:
        return "neighbouring pairs are alike (autocorrelation), which may be all there is"
    if decision is not None and not decision.fresh:
        return _why_one_process(decision)
    return _why_no_decision(len(track.pairs), ended)


def _why_not_again(track: Track, ended: str) -> str:
    if track.second_pairs or not ended:
        return "it was not seen again"
    return f"no time was left to see it again: {ended}"


def _why_one_process(decision: Decision) -> str:
    """Say that two processes are no evidence about two programs."""
    spread = decision.process_spread
    if spread is None:
        apart = "others may differ by more than this, and 'llmperf calibrate' finds by how much"
    else:
        apart = f"others differ by {format_percent(spread, 2)} (llmperf-calibration.toml)"
    return f"one process a side, which cannot be started anew; {apart}"


def _why_no_decision(n: int, ended: str) -> str:
    """Say that `n` pairs did not decide, or why no more of them were measured."""
    if not ended:
        return f"{n} pairs did not decide"
    return f"{ended}, {MIN_PAIRS} are needed" if n < MIN_PAIRS else ended
