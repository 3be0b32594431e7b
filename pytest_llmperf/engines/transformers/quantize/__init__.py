"""Quantizing the linear layers of a loaded model, one by one, with bitsandbytes and torchao.

Reading quantized checkpoints.
"""

from pytest_llmperf.engines.transformers.quantize.convert import Conversion, Quantizer

__all__ = ["Conversion", "Quantizer"]
