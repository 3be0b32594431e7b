"""Raw observations of one repetition of a workload: times in ns on one clock, counts, marks."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Untimed = Literal["", "gaps", "tokens", "first"]
"""What is not known of a request's token times, each with what stands before it.

"gaps": how many tokens came in each message. "tokens": nor whether the first message was the first
token, so that there is no mean time of a token. "first": nor when the first token came.
"""


class TokenEvent(Struct, frozen=True, array_like=True):
    """`n_tokens` output tokens of one request became available at `t_ns`."""

    t_ns: int
    n_tokens: int = 1


class RequestTrace(Struct, frozen=True, kw_only=True):
    """One request; it failed where it has no events.

    `t_due_ns` is when it was to start (offline: when the call started). Of a request to a server,
    `t_sent_ns` is when the client began to send it and `t_end_ns` when its answer ended or failed;
    `n_cached_tokens` of its prompt came from a prefix cache, as the server says; `t_last_ns` is
    when the message came that bounds its output, where that is later than the last event. Elsewhere
    they are 0. `untimed` says what the messages of a server do not tell of the times of its tokens.
    `turn` is the number of a turn of a conversation, from 1; 0 for a request that is none.
    """

    n_prompt_tokens: int
    t_due_ns: int
    events: tuple[TokenEvent, ...]
    failure: str | None = None
    t_sent_ns: int = 0
    t_end_ns: int = 0
    n_cached_tokens: int = 0
    t_last_ns: int = 0
    untimed: Untimed = ""
    turn: int = 0

    @property
    def ended_ns(self) -> int:
        """When its output was complete; when it was due where nothing came."""
        last_ns = self.events[-1].t_ns if self.events else self.t_due_ns
        return max(last_ns, self.t_last_ns)

    @property
    def n_output_tokens(self) -> int:
        """How many output tokens were received."""
        return sum(event.n_tokens for event in self.events)


class Mark(Struct, frozen=True, kw_only=True):
    """Something that makes a sample doubtful, and what was seen.

    `kind` is "throttled", "foreign-load", "unstable", "swap" and the like.
    """

    kind: str
    detail: str


class Trace(Struct, frozen=True, kw_only=True):
    """One repetition: every request, and what was read around it, outside the timed path.

    `token_times` is False where only the end of each request was seen: then TTFT, TPOT and ITL
    cannot be derived. `forwards` are the forward passes of the measured model where tokens are
    proposed and it checks several at once; None where each pass gives one token a sequence.
    `computed` are the positions that went through the model, padding and what was thrown away
    included; None if not known. `cpu_s` is the CPU time of the processes that did the work, user
    and system, of all threads and of what they started; where it is None, `no_cpu_s` says why.
    """

    repetition: int
    requests: tuple[RequestTrace, ...]
    marks: tuple[Mark, ...] = ()
    clock: str = "host"
    token_times: bool = True
    forwards: int | None = None
    computed: int | None = None
    cpu_s: float | None = None
    no_cpu_s: str = ""


class MemoryGauges(Struct, frozen=True, kw_only=True):
    """Bytes on one rank.

    A gauge is None, with its reason in `reasons`, where this machine cannot tell it; it is never 0
    for unknown. `kv_tokens` is no number of bytes: the tokens that a server's KV cache holds.
    """

    weights: int
    peak: int | None = None
    reserved: int | None = None
    process: int | None = None
    device: int | None = None
    kv_cache: int | None = None
    kv_tokens: int | None = None
    reasons: dict[str, str] = {}


class Startup(Struct, frozen=True, kw_only=True):
    """How a server started, in s: None where a phase is not known.

    `process_s` is what was neither of the others before it was healthy (imports, configuration,
    profiling), `weights_s` reading the weights, `compile_s` compiling and capturing graphs, as its
    log says, and `warm_s` from healthy to its first answer. `reason` says why phases are missing.
    """

    process_s: float | None = None
    weights_s: float | None = None
    compile_s: float | None = None
    warm_s: float | None = None
    reason: str = ""


class EnergyReading(Struct, frozen=True, kw_only=True):
    """Energy over a region, or why there is none.

    `source` is "nvml-counter", "rapl", "power-integral".
    """

    joules: float | None
    seconds: float
    n_output_tokens: int
    source: str = ""
    reason: str = ""


class Ceilings(Struct, frozen=True, kw_only=True):
    """What this device reached in our own micro-benchmarks, the denominators of MBU and MFU."""

    device: str
    copy_bytes_per_s: float
    matmul_flop_per_s: dict[str, float]
    measured_at: str = ""


class StepCost(Struct, frozen=True, kw_only=True):
    """What one decode step must move and compute, from what the engine really holds.

    `kv_bytes_per_token` is per sequence and position; `flops_per_token` is 2 x active parameters,
    attention apart (`attention_flops_per_token_per_position` x positions). `assistant_bytes_read`
    is what an assistant model reads for one step of the measured model, on average over the run.
    `head_flops` is the part of `flops_per_token` that a prompt needs once and not for each of its
    tokens: that of the output head, where only the last position's logits are computed.
    """

    weight_bytes_read: int
    kv_bytes_per_token: int
    flops_per_token: float
    attention_flops_per_token_per_position: float
    compute_dtype: str
    assistant_bytes_read: float = 0.0
    head_flops: float = 0.0
