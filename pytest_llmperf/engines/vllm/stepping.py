"""Requests through vLLM's engine, step by step.

Each step tells which tokens came, and when they were on the host.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pytest_llmperf.core.trace import TokenEvent
from pytest_llmperf.errors import InvalidRun


class Completion(Protocol):
    """What is read of vLLM's CompletionOutput: the tokens that are new in this step."""

    token_ids: Sequence[int]


class Output(Protocol):
    """What is read of vLLM's RequestOutput."""

    request_id: str
    outputs: Sequence[Completion]
    num_cached_tokens: int | None


class Steps(Protocol):
    """What is used of vLLM's LLMEngine."""

    def step(self) -> Sequence[Output]:
        """One iteration of the scheduler and the model; blocks until its tokens are on the host."""

    def has_unfinished_requests(self) -> bool:
        """Whether anything is left to do."""

    def abort_request(self, request_ids: list[str]) -> None:
        """Forget requests."""


@dataclass(frozen=True)
class Ask:
    """One request: token ids in, exactly `new_tokens` out.

    It goes through an adapter (vLLM's LoRARequest), or none.
    """

    ids: Sequence[int]
    new_tokens: int
    adapter: Any = None


@dataclass
class Answer:
    """What came of one request: its tokens, and when they came.

    `cached` is the number of prompt tokens that a prefix cache answered.
    """

    tokens: list[int] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    cached: int = 0


@dataclass(frozen=True)
class Stepped:
    """All requests of one run, in the order they were asked.

    `start_ns` is before the first was handed over.
    """

    start_ns: int
    answers: tuple[Answer, ...]
    steps: int


Submit = Callable[[str, Ask], object]

_run_numbers = itertools.count()


def run(
    engine: Steps,
    submit: Submit,
    asks: Sequence[Ask],
    *,
    after_step: Callable[[], object] | None = None,
) -> Stepped:
    """Hand all requests over, then step until all are answered.

    A token's time is the end of the step that gave it.

    `submit` adds one request under a name. `after_step` is called after each step (for reading
    logits, never when timed).

    Raises:
        InvalidRun: a request got another number of tokens than it asked for.
    """
    names = _fresh_names(len(asks))
    answers = {name: Answer() for name in names}
    start_ns = time.perf_counter_ns()
    for name, ask in zip(names, asks, strict=True):
        submit(name, ask)
    steps = _step_until_done(engine, answers, after_step)
    _require_lengths(asks, list(answers.values()))
    return Stepped(start_ns=start_ns, answers=tuple(answers.values()), steps=steps)


def require_no_cached(stepped: Stepped, prompt_tokens: int) -> None:
    """Raise InvalidRun if a prefix cache answered for prompt tokens.

    They would count as processed and were not.
    """
    cached = sum(answer.cached for answer in stepped.answers)
    if cached:
        raise InvalidRun(
            f"{cached} of {prompt_tokens} prompt tokens came from vLLM's prefix cache, "
            "which was to be off. Ask for it with options={'prefix_cache': True}, "
            "or give prompts that share no beginning.",
        )


def _fresh_names(count: int) -> list[str]:
    """Return names that no request of this process has had."""
    run_number = next(_run_numbers)
    return [f"{run_number}-{i}" for i in range(count)]


def _step_until_done(
    engine: Steps, answers: dict[str, Answer], after_step: Callable[[], object] | None
) -> int:
    """Step until all requests are answered, note what comes, and return the number of steps."""
    steps = 0
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now_ns = time.perf_counter_ns()
        steps += 1
        for output in outputs:
            _note(answers[_own_name(output.request_id, answers)], output, now_ns)
        if after_step is not None:
            after_step()
    return steps


def _own_name(name: str, answers: dict[str, Answer]) -> str:
    """Return the name a request was given: vLLM puts a suffix of its own behind it."""
    return name if name in answers else name.rpartition("-")[0]


def _note(answer: Answer, output: Output, now_ns: int) -> None:
    answer.cached = max(answer.cached, output.num_cached_tokens or 0)
    new = [token for completion in output.outputs for token in completion.token_ids]
    if new:
        answer.tokens += new
        answer.events.append(TokenEvent(now_ns, len(new)))


def _require_lengths(asks: Sequence[Ask], answers: Sequence[Answer]) -> None:
    pairs = zip(asks, answers, strict=True)
    lengths = [(len(answer.tokens), ask.new_tokens) for ask, answer in pairs]
    wrong = [i for i, (length, new_tokens) in enumerate(lengths) if length != new_tokens]
    if wrong:
        length, new_tokens = lengths[wrong[0]]
        raise InvalidRun(
            f"{len(wrong)} of {len(asks)} requests got another number of tokens than asked, "
            f"like request {wrong[0]}: {length} instead of {new_tokens}. "
            "A stopping rule of the model, or the longest sequence that vLLM takes, is active.",
        )
