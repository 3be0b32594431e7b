"""Checks of runs: exact tokens, times, fresh prompts, repeatable outputs, and a model's end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_llmperf.core.loaded import TimedRun
from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.base import LoadedModel
from pytest_llmperf.testing.bench import DECODE, Bench, Findings
from pytest_llmperf.workloads import Prefill, Workload, describe

PREFILL = Prefill(batch=2, prompt_tokens=8)


def exact_tokens(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield every request that does not have exactly the tokens asked for."""
    for workload in (PREFILL, DECODE):
        requests = model.run(workload, 0).trace.requests
        if len(requests) != workload.batch:
            yield (
                f"{describe(workload)}: {len(requests)} requests in the trace, "
                f"{workload.batch} expected"
            )
        for index, request in enumerate(requests):
            yield from _exact_request(f"{describe(workload)}, request {index}", request, workload)


def _exact_request(where: str, request: RequestTrace, workload: Workload) -> Findings:
    if request.failure is not None:
        yield f"{where}: failed: {request.failure}"
    if request.n_output_tokens != workload.new_tokens:
        yield (
            f"{where}: {request.n_output_tokens} output tokens, "
            f"exactly {workload.new_tokens} expected"
        )
    if request.n_prompt_tokens != workload.prompt_tokens:
        yield (
            f"{where}: {request.n_prompt_tokens} prompt tokens, "
            f"exactly {workload.prompt_tokens} expected"
        )


def monotone_times(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield every time that goes back, and a repetition that starts before the last one ended."""
    last_ns: float = -math.inf
    for repetition in (0, 1):
        requests = model.run(DECODE, repetition).trace.requests
        for index, request in enumerate(requests):
            yield from _times_of_request(f"repetition {repetition}, request {index}", request)
            if request.t_due_ns < last_ns:
                yield (
                    f"repetition {repetition} starts at {request.t_due_ns} ns, "
                    f"the one before ended at {last_ns} ns"
                )
        last_ns = _last_ns(requests, last_ns)


def _has_instant_token(times_ns: Sequence[int]) -> bool:
    """Whether the first token comes no later than the request."""
    return len(times_ns) > 1 and times_ns[1] <= times_ns[0]


def _times_of_request(where: str, request: RequestTrace) -> Findings:
    times_ns = [request.t_due_ns, *(event.t_ns for event in request.events)]
    if _has_instant_token(times_ns) or times_ns != sorted(times_ns):
        yield f"{where}: times go back or the first token takes no time: {times_ns} ns"


def _last_ns(requests: Sequence[RequestTrace], default_ns: float) -> float:
    ends_ns = (event.t_ns for request in requests for event in request.events)
    return max(ends_ns, default=default_ns)


def fresh_prompts(model: LoadedModel, _bench: Bench) -> Findings:
    """Yield whether repetitions share prompts, or one repetition has others the second time."""
    hashes = [model.run(DECODE, repetition).prompts_hash for repetition in (0, 1, 0)]
    first, second, repeated = hashes
    if not first:
        yield "TimedRun.prompts_hash is empty; a hash of the token ids that went in is needed"
    elif first == second:
        yield (
            "repetitions 0 and 1 ran the same prompts; "
            "fresh ones are needed, or a prefix cache answers"
        )
    if first != repeated:
        yield (
            "repetition 0 ran other prompts the second time; "
            "they must follow from the prompt set and the repetition"
        )


def repeatable(model: LoadedModel, bench: Bench) -> Findings:
    """Yield whether equal prompts give different greedy tokens."""
    hashes = [model.run(DECODE, 0).outputs_hash for _ in range(2)]
    with bench.open() as second_model:
        second_hash = second_model.run(DECODE, 0).outputs_hash
    if not hashes[0]:
        yield "TimedRun.outputs_hash is empty; a hash of the token ids that came out is needed"
    if len({*hashes, second_hash}) != 1:
        yield (
            f"the same prompts gave different greedy tokens: {hashes} in one session, "
            f"{second_hash} in another of the same plan"
        )


def close_frees(model: LoadedModel, bench: Bench) -> Findings:
    """Yield whether a closed model answers, or its plan takes more memory when it opens again."""
    weights = model.opened().memory.weights
    model.close()
    run = _run_or_none(model)
    if run is not None:
        yield (
            f"run() after close() answered ({run.trace.repetition=}); a closed session must raise"
        )
    with bench.open() as second_model:
        second_weights = second_model.opened().memory.weights
    if second_weights != weights:
        yield f"opened again, the weights take {second_weights} B instead of {weights} B"
    model.close()


def _run_or_none(model: LoadedModel) -> TimedRun | None:
    try:
        return model.run(DECODE, 0)
    except Exception:  # noqa: BLE001 - any error is the right answer here
        return None
