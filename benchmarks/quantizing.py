"""Time to quantize the demo model, by strategy part, each with a fresh copy of it."""

from __future__ import annotations

import time

from pairs import Finding

BAR_S = 60.0
ASKED = {
    "cpu": ("int8", "nf4", "fp4", "int8wo", "int4wo", "fp8:wo"),
    "cuda": ("int8", "nf4", "fp4", "int8wo", "int4wo", "fp8"),
}


def quantizing(device: str, model: str = "smollm2-135m") -> list[Finding]:
    """Return a row a part: the seconds from the bfloat16 model to the quantized one."""
    return [_row(part, device, model) for part in ASKED[device]]


def _row(part: str, device: str, model: str) -> Finding:
    from msgspec import structs  # noqa: PLC0415  # as torch, which the other benchmarks do not need

    from pytest_llmperf.core.plan import LoadPlan  # noqa: PLC0415
    from pytest_llmperf.engines.models.names import model_ref  # noqa: PLC0415
    from pytest_llmperf.engines.transformers.load import load  # noqa: PLC0415
    from pytest_llmperf.engines.transformers.quantize import Quantizer, report  # noqa: PLC0415
    from pytest_llmperf.instruments.ranks import torch_device  # noqa: PLC0415
    from pytest_llmperf.strategies import parse  # noqa: PLC0415

    plan = parse(f"bf16+{part}").apply(LoadPlan(model=model_ref(model), device=device))
    loaded = load(structs.replace(plan, quantization=None, device="cpu")).model
    start_s = time.perf_counter()
    conversion = Quantizer(plan, torch_device(device)).quantize(loaded)
    took_s = time.perf_counter() - start_s
    quantized = report.quantized_layers(loaded, conversion)
    assert quantized.converted == quantized.layers - 1
    return Finding(
        name=f"quantize {model} by {part}",
        value=took_s,
        low=None,
        high=None,
        unit="s",
        bar=f"<= {BAR_S:g} s on 2 cores",
        met="yes" if took_s <= BAR_S else "no",
        n=1,
        detail=f"{quantized}; {sum(quantized.stored_bytes.values())} B",
    )
