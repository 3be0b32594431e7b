"""What a loader decided that nobody asked for, in sentences."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.outputs.bounds import embedding_rows

_REMOTE = "transformers_modules"
"""The package that transformers copies a checkpoint's own code into."""

_NO_DEFAULTS = frozenset(
    (
        *("transformers_version", "_from_model_config", "use_cache"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("output_attentions", "output_hidden_states"),
    )
)
"""Fields of a generation config that choose no tokens, or that are set for every run."""

_GREEDY = {"do_sample": False, "num_beams": 1}
"""What a default may say that is done anyway."""


def on_dtype(plan: LoadPlan, stored: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Say where the dtype of `auto` came from, where config.json does not say the same."""
    if plan.weights_dtype != "auto":
        return ()
    declared = _declared_dtype(config)
    if declared == stored:
        return ()
    says = f"says {declared}" if declared else "names none"
    return (f"'auto' is {stored}, the dtype of most weights in the files; config.json {says}",)


def on_generation(model: Any) -> tuple[str, ...]:
    """Say which of a checkpoint's defaults of generation are not used: decoding is greedy."""
    config = getattr(model, "generation_config", None)
    defaults = {} if config is None else config.to_diff_dict()
    others = {
        name: value
        for name, value in defaults.items()
        if name not in _NO_DEFAULTS and _GREEDY.get(name) != value
    }
    if not others:
        return ()
    listed = ", ".join(f"{name}={value!r}" for name, value in sorted(others.items()))
    return (f"the checkpoint's defaults of generation are not used: {listed}",)


def on_code(model: Any) -> tuple[str, ...]:
    """Say which code of a checkpoint's own computes the model."""
    cls = type(model)
    if cls.__module__.partition(".")[0] != _REMOTE:
        return ()
    file = Path(inspect.getfile(cls)).name
    return (f"{cls.__name__} is code that came with the checkpoint ({file}), not transformers'",)


def on_tokenizer(model: Any, tokenizer: Any | None) -> tuple[str, ...]:
    """Say where a tokenizer has tokens that the embedding was never resized for.

    A factory's own tokenizer need not know how many it has.
    """
    if not isinstance(tokenizer, Sized):
        return ()
    n_tokens, rows = len(tokenizer), embedding_rows(model)
    if n_tokens <= rows:
        return ()
    sizes = f"the tokenizer has {n_tokens} tokens and the embedding {rows} rows"
    return (f"{sizes}: a text with an id from {rows} on is refused",)


def _declared_dtype(config: Mapping[str, Any]) -> str:
    """Return the dtype that a config.json names, in itself or for its text model; else empty."""
    for values in (config, config.get("text_config") or {}):
        dtype = values.get("dtype") or values.get("torch_dtype")
        if dtype:
            return str(dtype).removeprefix("torch.")
    return ""
