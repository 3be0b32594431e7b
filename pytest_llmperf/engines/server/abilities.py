"""What each server engine can do, by the name of its row. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.server.options import refuse_options
from pytest_llmperf.engines.server.presets import ANY, TABLE, Preset


def _refusing(preset: Preset) -> Callable[[LoadPlan], str | None]:
    return lambda plan: refuse_options(plan, preset)


def _abilities(preset: Preset) -> Capabilities:
    return Capabilities(
        plan_fields=preset.plan_fields,
        refuses=_refusing(preset),
        logits=False,
        serves=True,
        has_address=True,
    )


ANY_SERVER = _abilities(ANY)


def __getattr__(name: str) -> Capabilities:
    """The abilities of a preset: `llama.cpp` as `llama_cpp`."""
    for preset in TABLE.values():
        if preset.name.replace(".", "_") == name:
            return _abilities(preset)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
