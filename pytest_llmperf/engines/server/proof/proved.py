"""A server's settings: what was asked for, held against what it says or shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pytest_llmperf.core.effective import ServerSetting
from pytest_llmperf.engines.server.proof.asked import Asked, agrees
from pytest_llmperf.engines.server.proof.self_report import SETTINGS, Reported
from pytest_llmperf.errors import NotInEffect


def settings(
    reported: Mapping[str, Reported], asked: Mapping[str, Asked]
) -> tuple[ServerSetting, ...]:
    """Return every setting: its value where it is proved, and what was asked for.

    Raises NotInEffect for the first one that is another than was asked for.
    """
    rows = tuple(_setting(name, reported, asked) for name in SETTINGS)
    for row in rows:
        _require(row, asked)
    return rows


def _setting(
    name: str, reported: Mapping[str, Reported], asked: Mapping[str, Asked]
) -> ServerSetting:
    proof = reported.get(name, Reported("", ""))
    wanted = asked[name].value if name in asked else ""
    return ServerSetting(name=name, value=proof.value, origin=proof.origin, asked=wanted)


def _require(row: ServerSetting, asked: Mapping[str, Asked]) -> None:
    if not row.value or not row.asked or agrees(row.asked, row.value):
        return
    raise NotInEffect(
        f"the server's {row.name} is {row.value} ({row.origin}), "
        f"asked for {row.asked} ({asked[row.name].words})."
    )


def notes(rows: Sequence[ServerSetting]) -> list[str]:
    """Return in words what is in effect, and what is not proved."""
    proved = [f"{row.name} {row.value} ({row.origin})" for row in rows if row.value]
    unproved = [f"{row.name}{_wanted(row)}" for row in rows if not row.value]
    texts = [f"settings: {', '.join(proved)}"] if proved else []
    return [*texts, f"not proved: {', '.join(unproved)}"] if unproved else texts


def _wanted(row: ServerSetting) -> str:
    return f" (asked for {row.asked})" if row.asked else ""
