"""The transformers engine.

Importing this package imports torch and transformers: only a worker does.
"""

from __future__ import annotations

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.transformers.load import ModelOnDevice, load
from pytest_llmperf.engines.transformers.loaded import TransformersModel

__all__ = ["ModelOnDevice", "TransformersEngine", "TransformersModel", "load"]


class TransformersEngine:
    """See engines.base.Engine."""

    def open(self, plan: LoadPlan) -> TransformersModel:
        """Load the plan's model. Raises UsageError, LoadError, or out of memory as torch does."""
        return TransformersModel(load(plan))
