"""Quantizes the linear layers of a model one by one, with bitsandbytes and torchao.

It also keeps the layers of quantized checkpoints as they are stored.
"""

from pytest_llmperf.engines.transformers.quantize.convert import Conversion, Quantizer

__all__ = ["Conversion", "Quantizer"]
