"""What `llm.accuracy` gives to a test: a task set's answers, and what can be said of them."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.core.agreement import task_accuracy
from pytest_llmperf.core.verdicts.estimate import Estimate
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads import TaskSet


class Answers(Struct, frozen=True, kw_only=True, eq=False):
    """A task set as one model answered it. `correct[i]` and `given[i]` are of item i.

    `core.agreement.accuracy_gate` compares two of them item by item:
    `accuracy_gate(…).judge(ours.correct, theirs.correct)`.
    """

    tasks: TaskSet
    given: tuple[str, ...]
    correct: tuple[bool, ...]
    subject: str = ""
    context: str = ""

    @property
    def accuracy(self) -> Estimate:
        """Share of items answered correctly, with its exact 99 % interval."""
        return task_accuracy.accuracy(self.correct, subject=self.subject, context=self.context)

    def recovery(self, reference: Answers) -> Estimate:
        """Return its accuracy over that of `reference` on the same items.

        Raises UsageError for other items.
        """
        self._require_same_items(reference)
        return task_accuracy.recovery(
            self.correct,
            reference.correct,
            subject=self.subject,
            context=self.context,
            against=reference.subject,
        )

    def _require_same_items(self, reference: Answers) -> None:
        if self.tasks.content_hash != reference.tasks.content_hash:
            raise UsageError(
                f"recovery: {self.tasks.name!r} and {reference.tasks.name!r} are other items or "
                "are put in another way; both sides must answer the same task set.",
            )

    def wrong(self, n: int = 5) -> tuple[tuple[str, str, str], ...]:
        """Return the first `n` items answered wrongly: prompt, answer given, answer expected."""
        rows = zip(self.tasks.items, self.given, self.correct, strict=True)
        wrong = [(item.prompt, answer, item.answer) for item, answer, right in rows if not right]
        return tuple(wrong[:n])
