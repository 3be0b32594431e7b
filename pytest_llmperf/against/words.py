"""What a comparison says: the two lines of its finding, and its line in the summary."""

from __future__ import annotations

import math

from pytest_llmperf.against.tracks import Track
from pytest_llmperf.core.format import format_number, format_percent, format_value
from pytest_llmperf.core.record import Record
from pytest_llmperf.core.verdicts.judge import Finding, Outcome
from pytest_llmperf.core.verdicts.side_by_side import MIN_PAIRS, Decision


def finding(track: Track, base: str, *, strict: bool, ended: str) -> Finding:
    """The finding of a track that is done.

    `base` names the other version, `ended` why no more pairs were measured.
    """
    if track.reason:
        return not_comparable(track.record, track.metric.name, base, track.reason, strict=strict)
    left = f"{_title(track)} is {_ratio(track)} {base}{_interval(track)}"
    right = f"allowed {format_percent(track.limit, 2)} worse"
    return Finding(
        outcome=track.outcome,
        text=f"{left}, {right}  ({_count(track)}){_again(track)}",
        detail="; ".join(
            part
            for part in (
                where(track.record),
                _values(track),
                *_evidence(track),
                _undecided(track, ended),
            )
            if part
        ),
        margin=None,
        left=left,
        right=right,
        smallest_visible=track.seen.smallest_visible if track.seen else None,
        strict=strict,
    )


def not_comparable(record: Record, metric: str, base: str, reason: str, *, strict: bool) -> Finding:
    """Nothing was compared.

    The first line of a long reason (a log) is the text, the rest the detail.
    """
    first, _, rest = reason.strip().partition("\n")
    left = f"{metric} of {record.strategy}"
    return Finding(
        outcome=Outcome.NOT_COMPARABLE,
        text=f"{left} was not compared with {base}: {first}",
        detail="\n".join(part for part in (where(record), rest) if part),
        left=left,
        right=base,
        strict=strict,
    )


def summary_line(track: Track, base: str) -> str:
    """One line for the terminal's summary."""
    what = f"{track.record.test}: {_title(track)}"
    if track.reason:
        return f"{what} was not compared with {base}: {track.reason.splitlines()[0]}"
    return f"{what} is {_ratio(track)} {base}{_interval(track)}, {_count(track)}: {track.outcome.value}"


def where(record: Record) -> str:
    """The work and the device."""
    facts = record.environment.facts
    return f"{record.workload_text} on {facts.get('device_name') or facts.get('device') or 'this machine'}"


def _title(track: Track) -> str:
    return f"{track.metric.name} of {track.record.strategy}"


def _ratio(track: Track) -> str:
    if track.counted:
        base, new = track.pairs[0]
        return format_value(new / base, "x") if base else "not 0, as at"
    return (
        format_value(math.exp(track.ratio.center), "x") if track.pairs else "not measured against"
    )


def _interval(track: Track) -> str:
    if track.counted or not track.pairs or not math.isfinite(track.ratio.high):
        return ""
    return f" [{format_number(math.exp(track.ratio.low))}, {format_number(math.exp(track.ratio.high))}]"


def _count(track: Track) -> str:
    n = len(track.pairs)
    return "counted" if track.counted else f"{n} pair{'' if n == 1 else 's'}, interleaved"


def _again(track: Track) -> str:
    seen = track.seen_again
    if seen is None:
        return ""
    n = len(track.again_pairs)
    confirmed = "" if seen.outcome is Outcome.FAIL else ", not seen again"
    return f"  (again in fresh workers: {format_value(1 + seen.change, 'x')}, {n} pairs{confirmed})"


def _values(track: Track) -> str:
    if not track.pairs:
        return ""
    bases, news = zip(*track.pairs, strict=True)
    unit = track.metric.unit
    return f"{format_value(_middle(news), unit)}, at the base {format_value(_middle(bases), unit)}"


def _middle(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


def _evidence(track: Track) -> list[str]:
    seen = track.seen
    if seen is None or track.counted:
        return []
    visible = (
        f"smallest visible change {format_percent(seen.smallest_visible, 2)}"
        if seen.smallest_visible < 1
        else ""
    )
    if track.outcome is Outcome.PASS:
        return [
            f"{format_percent(seen.refuted, 2)} worse is refuted (E = {_e(seen.e_not_worse)})",
            visible,
        ]
    return [
        f"E = {_e(seen.e_worse)} (limit {_e(track.state.evidence)}), autocorrelation {seen.autocorrelation:.2g}",
        visible,
    ]


def _e(value: float) -> str:
    return f"{value:.3g}"


def _undecided(track: Track, ended: str) -> str:
    if track.outcome is not Outcome.UNDECIDED:
        return ""
    return f"undecided: {_why(track, track.seen, ended)}"


def _why(track: Track, seen: Decision | None, ended: str) -> str:
    if track.again is not None:
        return "it was not seen again in fresh workers"
    if seen is not None and seen.held_back:
        return "neighbouring pairs are alike (autocorrelation), which may be all there is"
    if ended:
        few = f", {MIN_PAIRS} are needed" if len(track.pairs) < MIN_PAIRS else ""
        return f"{ended}{few}"
    return f"{len(track.pairs)} pairs did not decide"
