"""Property-based agreement: hypothesis draws and shrinks prompts, to test a claim about any prompt.

@for_any(prompt=prompts())
def test_first_token(llm, baseline, prompt):
    ours = llm.top_tokens(prompt)
    assert ours.first in baseline.top_tokens(ours.prompt_ids, k=5)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pytest_llmperf.errors import UsageError, WorkerError
from pytest_llmperf.session.model import Model
from pytest_llmperf.workloads import PromptSet

__all__ = ["for_any", "prompts", "token_ids"]

EXAMPLES = 25

Test = Callable[..., None]
_UNSUITED = [
    # `llm` is one, and is meant to stay loaded from example to example.
    HealthCheck.function_scoped_fixture,
    HealthCheck.too_slow,  # a forward pass of a large model takes as long as it takes
]


class _Stopped(BaseException):
    """A worker is gone: no counterexample, and nothing to shrink.

    Not an Exception, which hypothesis would go on from.
    """

    def __init__(self, error: WorkerError) -> None:
        super().__init__(str(error))
        self.error = error


def for_any(
    *, max_examples: int = EXAMPLES, **drawn: SearchStrategy[Any]
) -> Callable[[Test], Test]:
    """Run a test for `max_examples` drawn values of its named arguments.

    A failure shows the smallest that still fails.

    As hypothesis' `given(**drawn)`, with settings under which models can be asked: no deadline,
    fixtures kept over all examples, and an end at once where a worker dies. Fixtures come by name,
    as ever. Wants hypothesis installed.

    Raises:
        UsageError: nothing is drawn.
    """
    if not drawn:
        raise UsageError(
            "for_any() draws nothing. Name an argument of the test: @for_any(prompt=prompts())."
        )
    configured = settings(max_examples=max_examples, deadline=None, suppress_health_check=_UNSUITED)

    def decorate(test: Test) -> Test:
        return _unstopped(configured(given(**drawn)(_stopping(test))))

    return decorate


def prompts(*, max_size: int = 80) -> SearchStrategy[str]:
    """Draw texts of 1 to `max_size` characters: any characters, and words of real prompts.

    Shrinks to few and simple ones.
    """
    anything = st.text(
        st.characters(exclude_categories=("Cc", "Cn", "Co", "Cs")), min_size=1, max_size=max_size
    )
    return anything | _sentences(max_size)


def _sentences(max_size: int) -> SearchStrategy[str]:
    """Draw up to twelve words of real prompts, cut off at `max_size` characters."""
    return st.lists(st.sampled_from(_words()), min_size=1, max_size=12).map(
        lambda words: " ".join(words)[:max_size]
    )


def token_ids(
    model: Model | int, *, min_size: int = 1, max_size: int = 32
) -> SearchStrategy[tuple[int, ...]]:
    """Draw prompts as token ids of a model's vocabulary, or as ids below a number.

    Special tokens are left out. A model is known inside a test alone: `@for_any(data=st.data())`,
    then `data.draw(token_ids(llm))`.
    """
    if isinstance(model, Model):
        facts = model.load().opened
        plain: Sequence[int] = _plain(facts.vocab_size, facts.special_ids)
    elif isinstance(model, int) and model > 0:
        plain = range(model)
    else:
        raise UsageError(
            f"token_ids({model!r}): a model (inside of the test) or the size of a vocabulary "
            "is needed."
        )
    return st.lists(st.sampled_from(plain), min_size=min_size, max_size=max_size).map(tuple)


@functools.cache
def _plain(size: int, special: tuple[int, ...]) -> tuple[int, ...]:
    excluded = frozenset(special)
    return tuple(token_id for token_id in range(size) if token_id not in excluded)


@functools.cache
def _words() -> tuple[str, ...]:
    """Return the words of real prompts, short ones first: what is drawn shrinks to them."""
    return tuple(sorted(_bundled_words(), key=lambda word: (len(word), word)))


def _bundled_words() -> set[str]:
    texts = PromptSet.bundled("short-chat").texts
    return {word for text in texts for word in text.split()}


def _stopping(test: Test) -> Test:
    @functools.wraps(test)
    def example(*arguments: Any, **keywords: Any) -> None:
        try:
            test(*arguments, **keywords)
        except WorkerError as error:
            raise _Stopped(error) from error

    return example


def _unstopped(test: Test) -> Test:
    @functools.wraps(test)
    def run(*arguments: Any, **keywords: Any) -> None:
        try:
            test(*arguments, **keywords)
        except _Stopped as stop:
            raise stop.error from None

    return run
