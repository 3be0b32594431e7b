"""Checks of what a test hands to the methods of `llm`. Every error names its value."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import Batch, Decode, Prefill, PromptSet, Serve, TaskSet


def require_workload(workload: object) -> None:
    """Raise UsageError for anything but a workload or traffic on a server."""
    if not isinstance(workload, Decode | Prefill | Batch | Serve):
        raise UsageError(
            f"{workload!r} is not a workload. Pass Decode(batch=1, prompt_tokens=128, "
            "new_tokens=128), Prefill(…), Batch(…) or Serve(…).",
        )


def require_counts(method: str, **counts: object) -> None:
    """Raise UsageError for an argument of `method` that is no whole number of at least 1."""
    for name, count in counts.items():
        if not _is_count(count):
            raise UsageError(f"{method}({name}={count!r}): a whole number of at least 1 is needed.")


def require_processes(processes: object) -> None:
    """Raise UsageError for a number of processes that is no whole number of at least 1, or None."""
    if processes is not None:
        require_counts("run", processes=processes)


def require_prompt_set(prompts: object) -> None:
    """Raise UsageError for anything but a PromptSet or None."""
    if not isinstance(prompts, PromptSet | None):
        raise UsageError(
            f"agreement(prompts={prompts!r}): a PromptSet is needed, "
            "for example PromptSet.bundled('short-chat')."
        )


def require_task_set(tasks: object) -> None:
    """Raise UsageError for anything but a TaskSet."""
    if not isinstance(tasks, TaskSet):
        raise UsageError(
            f"accuracy({tasks!r}): a task set is needed, for example TaskSet.from_jsonl(path)."
        )


def next_prompt(prompt: str | Sequence[int]) -> str | tuple[int, ...]:
    """Return the text, or the token ids as a tuple. Raises UsageError for anything else."""
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
        token_ids = tuple(prompt)
        if token_ids and all(map(_is_token_id, token_ids)):
            return token_ids
    raise UsageError(
        f"top_tokens({prompt!r}): a text or a sequence of token ids is needed, neither empty."
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
