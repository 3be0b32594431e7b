"""`llmperf run MODEL`: measures a model without a test file of the project's.

`hooks` is a pytest plugin that collects `measured`, the test of this package, and nothing else.
What is to be measured is handed over in the environment, so that the base of --llmperf-against
measures the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

PLUGIN = "pytest_llmperf.plugin.named_model.hooks"
VARIABLE = "LLMPERF_NAMED_MODEL"


class NamedModel(Struct, frozen=True, kw_only=True):
    """What is to be measured: a model under strategies, with the keywords of its workload."""

    model: str
    strategies: tuple[str, ...]
    engine: str
    workload: str
    keywords: dict[str, int] = {}
    agreement: bool = False


def handed_over(named: NamedModel) -> dict[str, str]:
    """Return the variable of the environment that holds it."""
    return {VARIABLE: msgspec.json.encode(named).decode("utf-8")}


def taken_over(environment: Mapping[str, str]) -> NamedModel:
    """Return what `handed_over` wrote."""
    return msgspec.json.decode(environment[VARIABLE], type=NamedModel)
