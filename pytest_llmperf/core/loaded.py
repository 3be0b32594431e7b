"""What an engine says of a loaded model, and what it gives for each run: plain values."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.trace import Mark, MemoryGauges, Startup, StepCost, Trace


class ModelFacts(Struct, frozen=True, kw_only=True):
    """What was loaded, on which device, and in how many seconds.

    `content_hash` identifies the weights and the config that were read (or the seed of random
    ones); `base_hash` identifies the model alone where `content_hash` covers adapters too.
    `reference_key` is of what else decides its outputs: code, configuration, buffers, tokenizer.
    `special_ids` are the ids of the vocabulary that no text contains: markers, and rows that only
    pad the embedding. `not_read` says what lies beside the model, looks like it and was not loaded.
    `startup` has the phases of a server's start.
    """

    effective: Effective
    load_s: float
    content_hash: str
    vocab_size: int
    versions: dict[str, str]
    device_name: str
    device_facts: dict[str, Any]
    memory: MemoryGauges
    base_hash: str = ""
    reference_key: str = ""
    special_ids: tuple[int, ...] = ()
    not_read: tuple[str, ...] = ()
    startup: Startup | None = None


class Description(Struct, frozen=True, kw_only=True):
    """What is in effect at the moment, and the memory that it takes."""

    effective: Effective
    memory: MemoryGauges


class TimedRun(Struct, frozen=True, kw_only=True):
    """One timed repetition of an offline workload.

    The two hashes cover the token ids that went in and came out; they are computed outside the
    timed work. `step` is None where the engine cannot see what a step moves. `answers` are the
    texts that a server gave, in the order of its requests.
    """

    trace: Trace
    step: StepCost | None
    telemetry: dict[str, float] = {}
    prompts_hash: str = ""
    outputs_hash: str = ""
    answers: tuple[str, ...] = ()


class ServingRun(Struct, frozen=True, kw_only=True):
    """One run of traffic on a server.

    `samples` are the server's own metrics over the run; `counted` says how the tokens of a message
    were counted; `telemetry` is what others did beside it.
    """

    trace: ServingTrace
    marks: tuple[Mark, ...] = ()
    samples: tuple[dict[str, float], ...] = ()
    counted: str = ""
    telemetry: dict[str, float] = {}
