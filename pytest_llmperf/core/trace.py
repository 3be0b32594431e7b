"""Raw observations of one repetition of a workload: times in ns on one clock, counts, marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

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
    for unknown. `peak` holds the weights; `growth` is what it is above what was there before.
    `kv_tokens` is not a number of bytes: the tokens that a server's KV cache holds.
    """

    weights: int
    peak: int | None = None
    growth: int | None = None
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
    """What this device reached in our own micro-benchmarks, the denominators of MBU and MFU.

    A copy reads and writes; `read_bytes_per_s` is of a sum that reads alone, and 0 where it was not
    measured. Decoding reads nearly all that it moves, so that MBU's denominator is the faster one.
    `disturbed` says what else the device did meanwhile, or why they cannot be true: such ceilings
    are not kept for later sessions.
    """

    device: str
    copy_bytes_per_s: float
    read_bytes_per_s: float = 0.0
    matmul_flop_per_s: dict[str, float]
    measured_at: str = ""
    disturbed: str = ""

    @property
    def bytes_per_s(self) -> float:
        """The faster of a copy and of a read, in bytes a second."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


def ceilings_together(ceilings: Sequence[Ceilings]) -> Ceilings:
    """Return what several devices reach together: the sums of one or more."""
    rates = {
        dtype: sum(ceiling.matmul_flop_per_s[dtype] for ceiling in ceilings)
        for dtype in ceilings[0].matmul_flop_per_s
    }
    return replace(
        ceilings[0],
        copy_bytes_per_s=sum(ceiling.copy_bytes_per_s for ceiling in ceilings),
        read_bytes_per_s=sum(ceiling.read_bytes_per_s for ceiling in ceilings),
        matmul_flop_per_s=rates,
        disturbed=next((ceiling.disturbed for ceiling in ceilings if ceiling.disturbed), ""),
    )


class Window(Struct, frozen=True, kw_only=True):
    """Layers whose attention reaches `positions` back, the token's own position included.

    Bytes and FLOPs are those of StepCost, of these layers together. With `chunked` the text is cut
    into chunks of that length, and a token sees its own chunk up to itself.
    """

    positions: int
    kv_bytes_per_token: int
    attention_flops_per_token_per_position: float
    chunked: bool = False

    def seen_by_all(self, n: int) -> float:
        """Return the positions that the first `n` tokens of a text see, summed over the tokens."""
        if self.chunked:
            chunks, rest = divmod(n, self.positions)
            return chunks * _triangle(self.positions) + _triangle(rest)
        inside = min(n, self.positions)
        return _triangle(inside) + (n - inside) * self.positions


def _triangle(n: int) -> float:
    return n * (n + 1) / 2


class StepCost(Struct, frozen=True, kw_only=True):
    """What one decode step must move and compute, from what the engine really holds.

    `kv_bytes_per_token` is per sequence and position, of the layers that attend to all positions;
    `windows` are those that do not. `flops_per_token` is 2 x active parameters, attention apart
    (`attention_flops_per_token_per_position` x positions). `assistant_bytes_read`
    is what an assistant model reads for one step of the measured model, on average over the run.
    `head_flops` is the part of `flops_per_token` that a prompt needs once and not for each of its
    tokens: that of the output head, where only the last position's logits are computed.
    `state_bytes` are what a step reads and writes of one sequence's recurrent and convolutional
    states, however long it is. `expansion_flops_per_position` are what a step computes for each
    earlier position to make its keys and values from a latent that the cache holds.
    """

    weight_bytes_read: int
    kv_bytes_per_token: int
    flops_per_token: float
    attention_flops_per_token_per_position: float
    compute_dtype: str
    assistant_bytes_read: float = 0.0
    head_flops: float = 0.0
    windows: tuple[Window, ...] = ()
    state_bytes: int = 0
    expansion_flops_per_position: float = 0.0

    def cache_bytes(self, request: RequestTrace) -> float:
        """Return the bytes of a request's cache that a decode step moves, on average."""
        windowed = sum(
            window.kv_bytes_per_token * _mean_seen(window.seen_by_all, request)
            for window in self.windows
        )
        everything = self.kv_bytes_per_token * _mean_seen(_triangle, request)
        return everything + windowed + self.state_bytes

    def step_flops(self, request: RequestTrace) -> float:
        """Return the FLOPs of a decode step of a request, on average."""
        windowed = sum(
            window.attention_flops_per_token_per_position * _mean_seen(window.seen_by_all, request)
            for window in self.windows
        )
        seen = _mean_seen(_triangle, request)
        attention = self.attention_flops_per_token_per_position * seen
        expanded = self.expansion_flops_per_position * (seen - 1)
        return self.flops_per_token + attention + windowed + expanded

    def prompt_flops(self, n: int) -> float:
        """Return the FLOPs of a prompt of `n` tokens: token i attends to i positions (causal).

        The output head counts once, where its last position alone has logits.
        """
        windowed = sum(
            window.attention_flops_per_token_per_position * window.seen_by_all(n)
            for window in self.windows
        )
        attention = self.attention_flops_per_token_per_position * _triangle(n) + windowed
        return n * self.flops_per_token - (n - 1) * self.head_flops + attention


def _mean_seen(seen_by_all: Callable[[int], float], request: RequestTrace) -> float:
    """Return the positions that a decode step sees: step i of n - 1, the prompt and i tokens."""
    n_prompt, n_steps = request.n_prompt_tokens, request.n_output_tokens - 1
    if n_steps < 1:
        return n_prompt + 0.5
    return (seen_by_all(n_prompt + n_steps) - seen_by_all(n_prompt)) / n_steps


def added_up(steps: Sequence[StepCost], repeated: int) -> StepCost:
    """Return what the ranks of one model move and compute in a step together.

    Work that `repeated` ranks see whole is counted once; each reads its own weights.
    """

    def per_token(name: str) -> float:
        return float(sum(getattr(step, name) for step in steps)) / repeated

    return replace(
        steps[0],
        weight_bytes_read=sum(step.weight_bytes_read for step in steps),
        kv_bytes_per_token=round(per_token("kv_bytes_per_token")),
        flops_per_token=per_token("flops_per_token"),
        head_flops=per_token("head_flops"),
        attention_flops_per_token_per_position=per_token("attention_flops_per_token_per_position"),
        windows=_windows_together(steps, repeated),
        state_bytes=round(per_token("state_bytes")),
        expansion_flops_per_position=per_token("expansion_flops_per_position"),
    )


def _windows_together(steps: Sequence[StepCost], repeated: int) -> tuple[Window, ...]:
    """Return the windows of all ranks, one for each reach."""
    by_reach: dict[tuple[int, bool], list[Window]] = defaultdict(list)
    for step in steps:
        for window in step.windows:
            by_reach[window.positions, window.chunked].append(window)
    return tuple(_one_window(windows, repeated) for _, windows in sorted(by_reach.items()))


def _one_window(windows: Sequence[Window], repeated: int) -> Window:
    flops = sum(window.attention_flops_per_token_per_position for window in windows)
    kv_bytes = sum(window.kv_bytes_per_token for window in windows)
    return replace(
        windows[0],
        kv_bytes_per_token=round(kv_bytes / repeated),
        attention_flops_per_token_per_position=flops / repeated,
    )
