"""Records for the tests of the history: one by hand, and hypothesis strategies for any."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pytest_llmperf.core.effective import Effective, LinearGroup, TensorGroup
from pytest_llmperf.core.record import ClaimRecord, Environment, MetricValue, Record
from pytest_llmperf.core.trace import Mark


def metric(
    name: str = "throughput", value: float | None = 14.2, unit: str = "tok/s"
) -> MetricValue:
    low, high = (None, None) if value is None else (value * 0.99, value * 1.01)
    return MetricValue(
        name=name,
        unit=unit,
        direction="higher",
        formula=f"{name}/1",
        value=value,
        low=low,
        high=high,
        n=14,
    )


def record(record_id: str, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": record_id,
        "session_id": "s",
        "created": "2026-11-23T05:00:00+00:00",
        "test": "tests/test_precision.py::test_pays[bf16]",
        "label": "",
        "workload": {"type": "decode", "batch": 1},
        "workload_text": "decode b1 p128 n128",
        "workload_key": "w",
        "strategy": "bf16",
        "engine": "transformers",
        "model": "smollm2-135m",
        "model_hash": "h",
        "environment_key": "e",
        "environment": Environment(
            facts={"device": "cpu", "cpu_cores_limit": 2.0, "git_dirty": None}
        ),
        "effective": None,
        "metrics": (metric(), metric("ttft.p50", 0.08, "s"), metric("energy.per_token", None, "J")),
        "samples": {"throughput": (14.1, 14.3)},
        "warm_up": {"stable": True},
        "marks": (),
    }
    return Record(**{**values, **changes})


# Hypothesis draws no lone surrogates; NUL, line and paragraph separators it does.
TEXT = st.text(max_size=12)
FLOATS = st.floats(width=64)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
_COUNTS = st.integers(0, 2**31 - 1)
_TENSORS = st.builds(
    TensorGroup,
    kind=TEXT,
    dtype=TEXT,
    device=TEXT,
    tensors=_COUNTS,
    elements=_COUNTS,
    bytes=_COUNTS,
)
_LINEARS = st.builds(
    LinearGroup, cls=TEXT, dtype=TEXT, layers=_COUNTS, elements=_COUNTS, bytes=_COUNTS
)
_EFFECTIVE = st.builds(
    Effective,
    engine=TEXT,
    model_class=TEXT,
    tensors=st.lists(_TENSORS, max_size=2).map(tuple),
    linears=st.lists(_LINEARS, max_size=2).map(tuple),
    compute_dtype=TEXT,
    autocast_dtype=st.none() | TEXT,
    checkpoint_dtype=st.none() | TEXT,
    attention=TEXT,
    cache=TEXT,
    compile_mode=st.none() | TEXT,
    compiled_graphs=_COUNTS,
    decode_loop=TEXT,
    padding_side=TEXT,
    device=TEXT,
    sparsity=st.none() | st.floats(0, 1),
)
_METRIC = st.builds(
    MetricValue,
    name=TEXT,
    unit=TEXT,
    direction=TEXT,
    formula=TEXT,
    value=st.none() | FLOATS,
    low=st.none() | FLOATS,
    high=st.none() | FLOATS,
    confidence=st.none() | st.floats(0, 1),
    n=_COUNTS,
    reason=TEXT,
)
_CLAIM = st.builds(ClaimRecord, text=TEXT, outcome=TEXT, margin=st.none() | FLOATS, detail=TEXT)
RECORDS = st.builds(
    Record,
    id=st.uuids().map(str),
    session_id=TEXT,
    created=st.datetimes().map(lambda time: time.isoformat()),
    test=TEXT,
    label=TEXT,
    workload=st.dictionaries(TEXT, JSON, max_size=3),
    workload_text=TEXT,
    workload_key=TEXT,
    strategy=TEXT,
    engine=TEXT,
    model=TEXT,
    model_hash=TEXT,
    environment_key=TEXT,
    environment=st.builds(Environment, facts=st.dictionaries(TEXT, PLAIN, max_size=4)),
    effective=st.none() | _EFFECTIVE,
    metrics=st.lists(_METRIC, max_size=3, unique_by=lambda m: m.name).map(tuple),
    samples=st.dictionaries(TEXT, st.lists(FLOATS, max_size=4).map(tuple), max_size=2),
    warm_up=st.dictionaries(TEXT, JSON, max_size=2),
    marks=st.lists(st.builds(Mark, kind=TEXT, detail=TEXT), max_size=2).map(tuple),
    claims=st.lists(_CLAIM, max_size=2).map(tuple),
    agreement=st.none() | st.dictionaries(TEXT, JSON, max_size=2),
    paired_with=st.none() | TEXT,
    outcome=TEXT,
    extra=st.dictionaries(TEXT, JSON, max_size=2),
)
