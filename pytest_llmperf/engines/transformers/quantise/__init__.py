"""Quantising the linear layers of a loaded model, one by one, with bitsandbytes and torchao; reading quantised checkpoints."""

from pytest_llmperf.engines.transformers.quantise.convert import Conversion, Quantiser

__all__ = ["Conversion", "Quantiser"]
