"""Weights, KV, bytes and FLOPs of a step, MBU and MFU of model kinds, beside a hand calculation.

    python benchmarks/model_kinds.py --device cuda arch:mixtral-8x7b bf16 bf16+compile

Each strategy loads the model in this process and decodes one sequence. The hand calculation is from
the dimensions of the architecture's row alone, in 16 bit.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from dataclasses import dataclass
from typing import Any

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.models.architectures import ARCHITECTURES
from pytest_llmperf.engines.models.names import model_ref, predict
from pytest_llmperf.engines.transformers.load import load
from pytest_llmperf.engines.transformers.loaded import TransformersModel
from pytest_llmperf.errors import LlmperfError
from pytest_llmperf.strategies import parse, require_in_effect
from pytest_llmperf.workloads import Decode

WORK = {"batch": 1, "prompt_tokens": 128, "new_tokens": 65}
REPEATS = 3
WARM_UP = 2
BYTES = 2
OPERATIONS_PER_STATE = 5


@dataclass(frozen=True)
class ByHand:
    """Bytes and FLOPs of a decode step of one sequence that sees `positions`, in 16 bit."""

    weights: float
    step_weights: float
    cache: float
    flops: float


def by_hand(model_type: str, config: dict[str, Any], positions: float) -> ByHand:
    """Return the costs of a mixture, of windows or of states, by a model's dimensions."""
    hidden, layers, vocab = (
        int(config[name]) for name in ("hidden_size", "num_hidden_layers", "vocab_size")
    )
    tied = bool(config.get("tie_word_embeddings", model_type == "gemma3_text"))
    head = hidden * vocab
    used = _attention_weights(config) + _mlp_weights(model_type, config, active=True)
    held = _attention_weights(config) + _mlp_weights(model_type, config, active=False)
    states = _state_weights(model_type, config)
    norms = _norm_weights(model_type, config)
    read = layers * (used + states + norms) + hidden + head + (0 if tied else hidden)
    all_weights = layers * (held + states + norms) + hidden + head * (1 if tied else 2)
    attended = _attended(model_type, config, positions)
    recurrent, convolved = _states(model_type, config)
    kv_width = 2 * int(config.get("num_key_value_heads", 0)) * _head_dim(config)
    q_width = int(config.get("num_attention_heads", 0)) * _head_dim(config)
    if model_type == "mamba2":
        kv_width = q_width = 0
    vectors = layers * (norms + _vectors(model_type, config)) + hidden
    products = read - vectors - (0 if tied else hidden)
    return ByHand(
        weights=BYTES * all_weights,
        step_weights=BYTES * read,
        cache=BYTES * (kv_width * attended + 2 * layers * convolved) + 2 * 4 * layers * recurrent,
        flops=2 * products + 4 * q_width * attended + OPERATIONS_PER_STATE * layers * recurrent,
    )


def _head_dim(config: dict[str, Any]) -> int:
    heads = int(config.get("num_attention_heads", 1))
    return int(config.get("head_dim", config["hidden_size"] // heads))


def _attention_weights(config: dict[str, Any]) -> int:
    if "num_attention_heads" not in config:
        return 0
    q = int(config["num_attention_heads"]) * _head_dim(config)
    kv = int(config["num_key_value_heads"]) * _head_dim(config)
    return int(config["hidden_size"]) * (2 * q + 2 * kv)


def _mlp_weights(model_type: str, config: dict[str, Any], *, active: bool) -> int:
    if model_type == "mamba2":
        return 0
    one = 3 * int(config["hidden_size"]) * int(config["intermediate_size"])
    if model_type != "mixtral":
        return one
    n_experts = int(config["num_local_experts"])
    used = int(config["num_experts_per_tok"]) if active else n_experts
    return used * one + n_experts * int(config["hidden_size"])


def _norm_weights(model_type: str, config: dict[str, Any]) -> int:
    hidden = int(config["hidden_size"])
    if model_type == "mamba2":
        return hidden
    if model_type == "gemma3_text":
        return 4 * hidden + 2 * _head_dim(config)
    return 2 * hidden


def _mamba(model_type: str, config: dict[str, Any]) -> tuple[int, int, int]:
    """Return inner width, heads, and groups x state of a Mamba-2 mixer; zeros without one."""
    if model_type == "mamba2":
        names = ("num_heads", "head_dim", "n_groups", "state_size")
    elif model_type == "falcon_h1":
        names = ("mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state")
    else:
        return 0, 0, 0
    heads, width, groups, state = (int(config[name]) for name in names)
    return heads * width, heads, groups * state


def _state_weights(model_type: str, config: dict[str, Any]) -> int:
    inner, heads, grouped = _mamba(model_type, config)
    if not inner:
        return 0
    projected = 2 * inner + 2 * grouped + heads
    matrices = int(config["hidden_size"]) * (projected + inner) + 4 * (inner + 2 * grouped)
    return matrices + _vectors(model_type, config)


def _vectors(model_type: str, config: dict[str, Any]) -> int:
    """Return the parameters of a mixer that nothing is multiplied with as a matrix."""
    inner, heads, grouped = _mamba(model_type, config)
    if not inner:
        return 0
    norm = inner if model_type == "mamba2" else 0
    return (inner + 2 * grouped) + 3 * heads + norm


def _states(model_type: str, config: dict[str, Any]) -> tuple[int, int]:
    """Return the elements of the recurrent and of the convolutional state of a layer."""
    inner, _heads, grouped = _mamba(model_type, config)
    state = int(config.get("state_size", config.get("mamba_d_state", 0)))
    return inner * state, 4 * (inner + 2 * grouped) if inner else 0


def _attended(model_type: str, config: dict[str, Any], positions: float) -> float:
    """Return the positions that all layers see together."""
    layers = int(config["num_hidden_layers"])
    if model_type == "mamba2":
        return 0
    window = int(config.get("sliding_window", 0))
    windowed = {"mistral": layers, "gemma3_text": layers - layers // 6}.get(model_type, 0)
    windowed = windowed if window else 0
    return windowed * min(positions, window) + (layers - windowed) * positions


def measured(name: str, strategy: str, device: str) -> list[tuple[str, float, float | None]]:
    """Load, decode, and return rows of (what, measured, by hand)."""
    work = Decode(**WORK)
    plan = parse(strategy).apply(LoadPlan(model=model_ref(name), device=device))
    model = TransformersModel(load(plan))
    runs = [model.run(work, repetition) for repetition in range(WARM_UP + REPEATS)][WARM_UP:]
    effective = model.describe().effective
    require_in_effect(effective, parse(strategy).promises(plan), when="warm")
    memory = model.read_memory(work, WARM_UP + REPEATS)
    step, request = runs[-1].step, runs[-1].trace.requests[0]
    assert step is not None
    assert isinstance(request, RequestTrace)
    ceilings = model.ceilings((step.compute_dtype,))
    times = [run.trace.requests[0].events for run in runs]
    tpot_s = statistics.median(
        (events[-1].t_ns - events[0].t_ns) / 1e9 / (len(events) - 1) for events in times
    )
    moved = step.weight_bytes_read + step.cache_bytes(request)
    row = ARCHITECTURES.get(plan.model.location)
    positions = work.prompt_tokens + work.new_tokens / 2
    hand = None if row is None else by_hand(row.model_type, row.config, positions)
    is_plain = plan.quantization is None and plan.weights_dtype in {"bfloat16", "float16"}
    plain = hand if is_plain else None
    bandwidth, rate = ceilings.bytes_per_s, ceilings.matmul_flop_per_s[step.compute_dtype]
    model.close()
    gc.collect()
    return [
        ("weights, B", memory.weights, plain.weights if plain else predict(plan)),
        ("KV and states held, B", memory.kv_cache or 0, None),
        ("weights of a step, B", step.weight_bytes_read, plain and plain.step_weights),
        ("cache of a step, B", step.cache_bytes(request), plain and plain.cache),
        ("FLOPs of a step", step.step_flops(request), hand and hand.flops),
        ("TPOT, ms", tpot_s * 1e3, None),
        ("MBU", moved / tpot_s / bandwidth, plain and _hand_bytes(plain) / tpot_s / bandwidth),
        ("MFU", step.step_flops(request) / tpot_s / rate, hand and hand.flops / tpot_s / rate),
    ]


def _hand_bytes(hand: ByHand) -> float:
    return hand.step_weights + hand.cache


def main(arguments: list[str]) -> int:
    """Print a table a strategy; a strategy that is not in effect says so and the next one runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("strategies", nargs="+")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)

    failed = 0
    for strategy in given.strategies:
        print(f"\n{given.model} {strategy} on {given.device}, {WORK}")
        try:
            rows = measured(given.model, strategy, given.device)
        except LlmperfError as error:
            print(f"  {type(error).__name__}: {error}")
            failed += 1
            continue
        for what, value, hand in rows:
            beside = "" if hand is None else f"{hand:>20,.6g}  {value / hand:8.4f} x"
            print(f"  {what:24}{value:>20,.6g}{beside}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
