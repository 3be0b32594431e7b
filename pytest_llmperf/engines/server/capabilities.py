"""What each server engine can do, by the name of its row. Nothing heavy is imported here."""

from __future__ import annotations

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.base import Capabilities
from pytest_llmperf.engines.refusals import Refusal
from pytest_llmperf.engines.server.options import options_refusal
from pytest_llmperf.engines.server.presets import ANY, TABLE, Preset


def _refusal_by(preset: Preset) -> Refusal:
    def refusal(plan: LoadPlan) -> str | None:
        return options_refusal(plan, preset)

    return refusal


def _capabilities_of(preset: Preset) -> Capabilities:
    return Capabilities(
        plan_fields=preset.plan_fields,
        refusal=_refusal_by(preset),
        logits=False,
        serves=True,
        has_address=True,
    )


def _attribute_of(preset: Preset) -> str:
    return preset.name.replace(".", "_")


ANY_SERVER = _capabilities_of(ANY)


def __getattr__(name: str) -> Capabilities:
    """Return the capabilities of a preset; `llama.cpp` is found as `llama_cpp`."""
    for preset in TABLE.values():
        if _attribute_of(preset) == name:
            return _capabilities_of(preset)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
