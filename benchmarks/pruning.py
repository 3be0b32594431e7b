"""Time to prune the demo model, by method, each with a fresh copy of it."""

from __future__ import annotations

from pairs import Finding

BAR_S = 60.0
ASKED = ("magnitude:0.5", "wanda:0.5", "wanda:2:4", "sparsegpt:0.5", "structured:0.25")


def pruning(device: str, model: str = "smollm2-135m") -> list[Finding]:
    """Return a row a method: the seconds of pruning a loaded model, with the calibration."""
    return [_row(method, device, model) for method in ASKED]


def _row(method: str, device: str, model: str) -> Finding:
    # As torch, which the other benchmarks do not need.
    from pytest_llmperf.core.plan import LoadPlan  # noqa: PLC0415
    from pytest_llmperf.engines.models.names import model_ref  # noqa: PLC0415
    from pytest_llmperf.engines.transformers.load import load  # noqa: PLC0415
    from pytest_llmperf.strategies import parse  # noqa: PLC0415

    loaded = load(parse(f"fp32+{method}").apply(LoadPlan(model=model_ref(model), device=device)))
    assert loaded.pruned is not None
    pruned = loaded.pruned.report()
    took_s = float(pruned.method["seconds"])
    return Finding(
        name=f"prune {model} by {method}",
        value=took_s,
        low=None,
        high=None,
        unit="s",
        bar=f"<= {BAR_S:g} s on 2 cores",
        met="yes" if took_s <= BAR_S else "no",
        n=1,
        detail=f"{pruned.sparsity:.2%} of {pruned.weights_before} weights gone, "
        f"{pruned.method.get('calibration_tokens', 0)} tokens of {pruned.method['calibration']}",
    )
