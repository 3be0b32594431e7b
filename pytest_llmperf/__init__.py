"""Performance tests for LLM inference.

What runs is measured, proved to be in effect, and judged so that the assertions can stay on. Names
are imported when they are first used, so that installing the plugin costs a session nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from pytest_llmperf.core.agreement.accuracy_gate import accuracy_gate
    from pytest_llmperf.core.agreement.agreement import Agreement
    from pytest_llmperf.core.agreement.task_accuracy import recovery
    from pytest_llmperf.core.metrics.results import RunResult
    from pytest_llmperf.core.verdicts.estimate import Estimate, NotMeasurable
    from pytest_llmperf.session.handle import Handle
    from pytest_llmperf.session.model import Model
    from pytest_llmperf.workloads import (
        Batch,
        Conversations,
        Decode,
        Prefill,
        PromptSet,
        Serve,
        Slo,
        TaskSet,
        Traffic,
        Turn,
    )

__all__ = [
    "Agreement",
    "Batch",
    "Conversations",
    "Decode",
    "Estimate",
    "Handle",
    "Model",
    "NotMeasurable",
    "Prefill",
    "PromptSet",
    "RunResult",
    "Serve",
    "Slo",
    "TaskSet",
    "Traffic",
    "Turn",
    "accuracy_gate",
    "recovery",
]

_WHERE = {
    "Agreement": "pytest_llmperf.core.agreement.agreement",
    "Handle": "pytest_llmperf.session.handle",
    "Model": "pytest_llmperf.session.model",
    "Batch": "pytest_llmperf.workloads",
    "Conversations": "pytest_llmperf.workloads",
    "Decode": "pytest_llmperf.workloads",
    "Prefill": "pytest_llmperf.workloads",
    "PromptSet": "pytest_llmperf.workloads",
    "Serve": "pytest_llmperf.workloads",
    "Slo": "pytest_llmperf.workloads",
    "TaskSet": "pytest_llmperf.workloads",
    "Traffic": "pytest_llmperf.workloads",
    "Turn": "pytest_llmperf.workloads",
    "Estimate": "pytest_llmperf.core.verdicts.estimate",
    "NotMeasurable": "pytest_llmperf.core.verdicts.estimate",
    "RunResult": "pytest_llmperf.core.metrics.results",
    "accuracy_gate": "pytest_llmperf.core.agreement.accuracy_gate",
    "recovery": "pytest_llmperf.core.agreement.task_accuracy",
}


if not TYPE_CHECKING:  # a type checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return version("pytest-llmperf")
        if name not in _WHERE:
            raise AttributeError(_unknown(name))
        return getattr(import_module(_WHERE[name]), name)


def _unknown(name: str) -> str:
    text = f"module {__name__!r} has no attribute {name!r}."
    if name.startswith("_"):  # what Python and test runners ask any module
        return text
    from pytest_llmperf.errors import did_you_mean  # noqa: PLC0415 - only for a misspelt name

    return text + did_you_mean(name, __all__, otherwise=f"It has: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
