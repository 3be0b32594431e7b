"""llama-bench: `-o json` (a list of tests) and `-o jsonl` (a test a line).

Source: tools/llama-bench/llama-bench.cpp (ggml-org/llama.cpp). Neither tokenization nor sampling is
in its times.
"""

from __future__ import annotations

from pytest_llmperf.history.foreign.fields import Fields
from pytest_llmperf.history.foreign.results import Result, Value

TOOL = "llama-bench"

_WORK = (
    "n_prompt",
    "n_gen",
    "n_depth",
    "n_batch",
    "n_ubatch",
    "n_threads",
    "type_k",
    "type_v",
    "n_gpu_layers",
    "split_mode",
    "flash_attn",
    "use_mmap",
)


def recognized(fields: Fields) -> bool:
    """Whether it is a test of llama-bench."""
    return {"n_prompt", "n_gen", "avg_ts"} <= set(fields.names)


def read(fields: Fields, created: str) -> Result:
    """Read one test: prompt processing, text generation, or both. Raises UsageError."""
    n_prompt, n_gen = round(fields.number("n_prompt")), round(fields.number("n_gen"))
    name, metric = _kind(fields, n_prompt, n_gen)
    samples = fields.numbers("samples_ts")
    plain = fields.plain
    return Result(
        tool=TOOL,
        name=name,
        model=fields.text("model_filename"),
        created=fields.text("test_time", created),
        work={field: plain[field] for field in _WORK if field in plain},
        values=[
            Value(name=metric, value=fields.number("avg_ts"), field="avg_ts", n=len(samples) or 1)
        ],
        speed=metric,
        samples={metric: samples} if samples else {},
        facts={
            "cpu_model": fields.text("cpu_info", "") or None,
            "device_name": fields.text("gpu_info", "") or None,
            "version_llama.cpp": fields.text("build_commit", ""),
        },
        extra={"model_type": plain.get("model_type")},
    )


def _kind(fields: Fields, n_prompt: int, n_gen: int) -> tuple[str, str]:
    """Return its name as llama-bench writes it (pp512, tg128, pp512+tg128), and our metric."""
    if not n_prompt and not n_gen:
        raise fields.missing("n_gen", "a number above 0, here or in n_prompt,")
    if not n_gen:
        return f"pp{n_prompt}", "prefill_throughput"
    if not n_prompt:
        return f"tg{n_gen}", "throughput"
    return f"pp{n_prompt}+tg{n_gen}", "total_throughput"
