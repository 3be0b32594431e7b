"""What servers say of their settings, each in its own words. Pure.

Sources: vLLM's `/server_info` (its VllmConfig) and the metric `vllm:cache_config_info`; SGLang's
`/get_server_info` (its ServerArgs and its scheduler's state); TGI's `/info`; llama.cpp's `/props`;
the `max_model_len` that vLLM and SGLang list with a model, and Ray Serve's `metadata` of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.core.metrics.server_metrics import MetricSample

SETTINGS = (
    "dtype",
    "quantization",
    "tensor_parallel",
    "kv_dtype",
    "prefix_cache",
    "speculation",
    "context",
)
"""The settings of a server that decide what a number on it means, in the order of reports."""

KV_TOKENS = "kv_tokens"
"""Capacity of the KV cache in tokens: a number that is measured, and no setting."""

NONE = "none"
ON, OFF = "on", "off"
UNRESOLVED = frozenset({"", "auto", "None", "none", "null"})
"""Values that say that the server chose, and not what."""

VLLM = "/server_info"
SGLANG = "/get_server_info"
TGI = "/info"
LLAMA_CPP = "/props"
MODELS = "/v1/models"
METRICS = "/metrics"

_TEXT_FIELD = re.compile(r"(\w+)=('[^']*'|[^,()]+)")
_CACHE_INFO = server_metrics.as_ray_has_it(("vllm:cache_config_info", "sglang:cache_config_info"))
_TOTAL_TOKENS = server_metrics.as_ray_has_it(("sglang:max_total_num_tokens",))


class Reported(NamedTuple):
    """A value, and where the server says it."""

    value: str
    origin: str


Answers = Mapping[str, Any]
"""Path -> what it answered: JSON, of `/metrics` the text; None where it answered nothing."""


def reported_settings(answers: Answers, model: str) -> dict[str, Reported]:
    """Return the settings that these answers tell, by name, and `kv_tokens`.

    The first source that tells one counts: the running configuration before a list of models.
    """
    reported: dict[str, Reported] = {}
    for path, read in _READERS.items():
        answer = answers.get(path)
        values = read(answer, model) if answer is not None else {}
        for name, value in values.items():
            if value:
                reported.setdefault(name, Reported(value, path))
    return reported


def _vllm(answer: Any, _model: str) -> dict[str, str]:
    config = _object(answer).get("vllm_config")
    if isinstance(config, str):
        return _vllm_text(config)
    config = _object(config)
    model = _object(config.get("model_config"))
    cache = _object(config.get("cache_config"))
    if not model and not cache:
        return {}
    parallel = _object(config.get("parallel_config"))
    dtype = _dtype(model.get("dtype"))
    values = {
        "dtype": dtype,
        "tensor_parallel": _count(parallel.get("tensor_parallel_size")),
        "kv_dtype": _kv_dtype(cache.get("cache_dtype"), dtype),
        "prefix_cache": _switch(cache.get("enable_prefix_caching")),
        "context": _count(model.get("max_model_len")),
        KV_TOKENS: _vllm_kv_tokens(cache),
    }
    if "quantization" in model:
        values["quantization"] = str(model["quantization"] or NONE)
    if "speculative_config" in config:
        values["speculation"] = _vllm_speculation(config["speculative_config"])
    return values


def _vllm_text(config: str) -> dict[str, str]:
    """Read the configuration as one text, which is what versions before 0.11 answer."""
    fields = {name: value.strip("' ") for name, value in _TEXT_FIELD.findall(config)}
    dtype = _dtype(fields.get("dtype"))
    values = {
        "dtype": dtype,
        "tensor_parallel": _count(fields.get("tensor_parallel_size")),
        "kv_dtype": _kv_dtype(fields.get("kv_cache_dtype"), dtype),
        "prefix_cache": _switch(fields.get("enable_prefix_caching")),
        "context": _count(fields.get("max_seq_len")),
    }
    if "quantization" in fields:
        values["quantization"] = _or_none(fields["quantization"])
    if fields.get("speculative_config") == "None":
        values["speculation"] = OFF
    elif "speculative_config" in fields:
        values["speculation"] = ON
    return values


def _vllm_speculation(config: Any) -> str:
    if not config:
        return OFF
    fields = _object(config)
    method, n_tokens = fields.get("method") or ON, fields.get("num_speculative_tokens")
    return f"{method}, {n_tokens} tokens" if n_tokens else str(method)


def _vllm_kv_tokens(cache: Mapping[str, Any]) -> str:
    n_blocks, block_size = cache.get("num_gpu_blocks"), cache.get("block_size")
    if isinstance(n_blocks, int) and isinstance(block_size, int):
        return _count(n_blocks * block_size)
    return ""


def _sglang(answer: Any, _model: str) -> dict[str, str]:
    info = _object(answer)
    if "tp_size" not in info:
        return {}
    states = info.get("internal_states")
    state = _object(states[0]) if isinstance(states, list) and states else {}
    dtype = _dtype(info.get("dtype"))
    values = {
        "dtype": dtype,
        "tensor_parallel": _count(info.get("tp_size")),
        "kv_dtype": _kv_dtype(info.get("kv_cache_dtype"), dtype),
        "context": _count(info.get("context_length")),
        KV_TOKENS: _count(
            info.get("max_total_num_tokens")
            or _object(state.get("memory_usage")).get("token_capacity")
        ),
    }
    if "quantization" in info:
        values["quantization"] = str(info["quantization"] or NONE)
    if "disable_radix_cache" in info:
        values["prefix_cache"] = OFF if info["disable_radix_cache"] else ON
    if "speculative_algorithm" in info:
        values["speculation"] = _sglang_speculation(info)
    return values


def _sglang_speculation(info: Mapping[str, Any]) -> str:
    algorithm = info["speculative_algorithm"]
    n_tokens = info.get("speculative_num_draft_tokens")
    if not algorithm:
        return OFF
    return f"{algorithm}, {n_tokens} tokens" if n_tokens else str(algorithm)


def _tgi(answer: Any, _model: str) -> dict[str, str]:
    info = _object(answer)
    if "model_dtype" not in info:
        return {}
    return {
        "dtype": _dtype(info["model_dtype"]),
        "context": _count(info.get("max_total_tokens")),
        KV_TOKENS: _count(info.get("max_batch_total_tokens")),
    }


def _llama_cpp(answer: Any, _model: str) -> dict[str, str]:
    props = _object(answer)
    n_ctx = _object(props.get("default_generation_settings")).get("n_ctx")
    n_slots = props.get("total_slots")
    values = {"context": _count(n_ctx)}
    if isinstance(n_ctx, int) and isinstance(n_slots, int):
        values[KV_TOKENS] = _count(n_ctx * n_slots)
    return values


def _models(answer: Any, model: str) -> dict[str, str]:
    rows = _object(answer).get("data")
    fields = [_object(row) for row in rows] if isinstance(rows, list) else []
    of_model = [row for row in fields if row.get("id") == model]
    row = next(iter(of_model or fields), {})
    metadata = _object(row.get("metadata"))
    context = row.get("max_model_len") or metadata.get("max_request_context_length")
    return {
        "context": _count(context),
        "quantization": _gguf_bits(_object(row.get("meta"))),
    }


def _gguf_bits(meta: Mapping[str, Any]) -> str:
    """Return the mean bits of a weight: llama.cpp lists a model's bytes and parameters."""
    n_bytes, n_weights = meta.get("size"), meta.get("n_params")
    if isinstance(n_bytes, int) and isinstance(n_weights, int) and n_weights > 0:
        return f"{8 * n_bytes / n_weights:.2f} bits a weight"
    return ""


def _metrics(answer: Any, _model: str) -> dict[str, str]:
    """Read the labels of vLLM's metric on its cache, and SGLang's size of one."""
    page = str(answer)
    tokens = _first(page, _TOTAL_TOKENS)
    values = {KV_TOKENS: _count(int(tokens.value))} if tokens else {}
    cache = _first(page, _CACHE_INFO)
    if cache is None:
        return values
    labels = cache.labels
    n_blocks, block_size = _count(labels.get("num_gpu_blocks")), _count(labels.get("block_size"))
    blocks_hold = str(int(n_blocks) * int(block_size)) if n_blocks and block_size else ""
    return values | {
        "kv_dtype": _resolved(labels.get("cache_dtype")),
        "prefix_cache": _switch(labels.get("enable_prefix_caching")),
        KV_TOKENS: _count(labels.get("kv_cache_size_tokens")) or blocks_hold,
    }


def _first(page: str, names: tuple[str, ...]) -> MetricSample | None:
    exactly = (s for s in server_metrics.samples(page, names) if s.name in names)
    return next(exactly, None)


_READERS: dict[str, Callable[[Any, str], dict[str, str]]] = {
    VLLM: _vllm,
    SGLANG: _sglang,
    TGI: _tgi,
    LLAMA_CPP: _llama_cpp,
    METRICS: _metrics,
    MODELS: _models,
}

PATHS = tuple(_READERS)
"""What a server is asked."""


def _object(value: Any) -> Mapping[str, Any]:
    """Return a JSON object; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> str:
    """Return a positive whole number as text; "" where it is none."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return text if text.isdecimal() and int(text) > 0 else ""


def _resolved(value: Any) -> str:
    text = "" if value is None else str(value).removeprefix("torch.")
    return "" if text in UNRESOLVED else text


def _dtype(value: Any) -> str:
    return _resolved(value)


def _kv_dtype(value: Any, dtype: str) -> str:
    """Return the dtype of the cache: `auto` is that of the model, where this is known."""
    return dtype if value == "auto" else _resolved(value)


def _or_none(value: str) -> str:
    return NONE if value in UNRESOLVED else value


def _switch(value: Any) -> str:
    """Return "on" or "off" for a truth value of JSON, Python or a label; "" for anything else."""
    return {"true": ON, "false": OFF}.get(str(value).lower(), "")
