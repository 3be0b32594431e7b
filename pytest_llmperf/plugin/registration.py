"""Registers the plugins that an option asks for: watches at the end, and files that are written.

Imported where one of these options is given, never at start-up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_llmperf.errors import UsageError
from pytest_llmperf.settings.limits import parse_gate
from pytest_llmperf.settings.settings import against

Value = Callable[[str], Any]
"""Gives the value of an option by its name."""


def watch_gate(
    config: pytest.Config, value: Value, is_llmperf: Callable[[pytest.Item], bool]
) -> None:
    """Watch that something is judged, under --llmperf-gate. Raises pytest.UsageError."""
    from pytest_llmperf.gate.calibration import read_calibrations  # noqa: PLC0415
    from pytest_llmperf.gate.waivers import read_waivers  # noqa: PLC0415
    from pytest_llmperf.plugin.gate_watch import GateWatch  # noqa: PLC0415

    try:
        if parse_gate(value("gate")) is None:
            return
        read_calibrations(config.rootpath)
        waivers = read_waivers(config.rootpath / value("waivers"))
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    watch = GateWatch(
        config,
        waivers,
        store=value("store"),
        require_accepted=value("require-accepted"),
        any_tree=value("any-tree"),
        is_mine=is_llmperf,
    )
    config.pluginmanager.register(watch, "llmperf-gate-watch")


def watch_against(config: pytest.Config, value: Value) -> None:
    """Watch that something is compared, under --llmperf-against. Raises pytest.UsageError."""
    from pytest_llmperf.plugin.against_watch import AgainstWatch  # noqa: PLC0415

    try:
        target = against(value("against"), config.rootpath)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    if target is not None:
        config.pluginmanager.register(AgainstWatch(config, target.name), "llmperf-against-watch")


def write_benchmark_file(config: pytest.Config, file: str) -> None:
    """Write the runs in pytest-benchmark's format at the end."""
    from pytest_llmperf.plugin.files.benchmark import BenchmarkFile  # noqa: PLC0415

    plugin = BenchmarkFile(config.rootpath / file)
    config.pluginmanager.register(plugin, "llmperf-benchmark-file")


def start_json_file(config: pytest.Config, file: str) -> None:
    """Remove the records of an earlier session from the file of --llmperf-json."""
    from pytest_llmperf.report.json_lines import start_anew  # noqa: PLC0415

    start_anew(config.rootpath / file)


def _judged(value: Value) -> str:
    """Say what judges the session: its gate or another version; "" for neither."""
    if value("disable"):
        return "nothing (--llmperf-disable)"
    if parse_gate(value("gate")) is not None:
        limits = "" if value("gate") == "on" else f" ({value('gate')})"
        return f"held against accepted sessions{limits}"
    return ""


def write_html_file(config: pytest.Config, file: str, value: Value) -> None:
    """Write the HTML report at the end."""
    from pytest_llmperf.plugin.files.html import HtmlFile  # noqa: PLC0415

    store = value("store")

    plugin = HtmlFile(
        config.rootpath / file, store=store, root=config.rootpath, judged=_judged(value)
    )
    config.pluginmanager.register(plugin, "llmperf-html-file")
