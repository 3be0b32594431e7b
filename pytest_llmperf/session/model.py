"""`llm`, as a test sees it: a model under a strategy that can be run, compared and checked against another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.agreement.rules import default_rule, parse_rule
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.rate_search import RateSearch
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.verdicts.unjudged_quantity import UnjudgedQuantity
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session import agreement
from pytest_llmperf.session.adapter_view import require_usable, using, view_of
from pytest_llmperf.session.answers import Answers
from pytest_llmperf.session.run import run_once
from pytest_llmperf.session.serving import require_serves, search
from pytest_llmperf.wire.commands import AnswerTasks, ReadTopTokens
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Batch, Decode, Prefill, PromptSet, Serve, TaskSet, Workload

if TYPE_CHECKING:
    from pytest_llmperf.session.session import LlmperfSession

AGREEMENT_PROMPTS = "short-chat"


class Model:
    """A model under one strategy.

    It is loaded when first used, in a worker of its own, and shared by equal plans.
    """

    def __init__(
        self, session: LlmperfSession, plan: LoadPlan, adapters: tuple[str, ...] = ()
    ) -> None:
        self._session = session
        self.plan = plan
        self._adapters = adapters
        self._switched: tuple[OpenModel, OpenModel] | None = None

    def __repr__(self) -> str:
        rows = f" using {', '.join(self._adapters)}" if self._adapters else ""
        return f"<llm {self.plan.model.name} {self.plan.strategy}{rows} on {self.plan.device}, {self.plan.engine}>"

    @property
    def strategy(self) -> str:
        """Canonical strategy text, for example 'bf16+static-cache'."""
        return self.plan.strategy

    @property
    def device(self) -> str:
        """'cuda' or 'cpu'."""
        return self.plan.device

    @property
    def effective(self) -> Effective:
        """What is really loaded; loads the model if it is not."""
        return self.load().opened.effective

    @property
    def seen(self) -> LoadPlan:
        """The plan with those of its adapters that are used, and a strategy text that says so: what outputs come from."""
        return view_of(self.plan, self._adapters)

    def load(self) -> OpenModel:
        """Load the model now and check that its strategy is in effect.

        Raises the errors of `session.pool.Pool.open`.
        """
        opened = self._session.pool.open(self.plan)
        if opened.opened.effective.quantized is not None:
            self._session.note(
                f"{self.plan.model.name} {self.strategy}: {opened.opened.effective.quantized}"
            )
        if not self._adapters:
            return opened
        if self._switched is None or self._switched[0] is not opened:
            self._switched = opened, using(opened, self._adapters)
        return self._switched[1]

    def using(self, *names: str) -> Model:
        """The same loaded model going through other adapters of its strategy: one for all, or several for a batch's rows in turn.

        "base" is the model without an adapter. Switching is outside the timed path; records say which were used.

        Raises:
            UsageError: the strategy does not load them, or merges or compiles them.

        """
        require_usable(self.plan, names)
        return Model(self._session, self.plan, names)

    def accuracy(self, tasks: TaskSet, *, batch: int = 16) -> Answers:
        """Answer a task set, `batch` items at a time: `.accuracy` with its interval, `.correct` item by item.

        Raises:
            UsageError: no task set, or a model without a tokenizer. NotInEffect, WorkerError: see `load`.

        """
        if not isinstance(tasks, TaskSet):
            raise UsageError(
                f"accuracy({tasks!r}): a task set is needed, for example TaskSet.from_jsonl(path)."
            )
        _check_counts("accuracy", batch=batch)
        self._session.progress(
            "answering", f"{self.strategy}: {len(tasks.items)} items of {tasks.name}", None
        )
        model = self.load()
        answered = model.call(AnswerTasks(tasks=tasks, batch=batch))
        answers = Answers(
            tasks=tasks,
            given=tuple(a.text for a in answered.answers),
            correct=tuple(a.correct for a in answered.answers),
            subject=model.plan.strategy,
            context=f"{tasks.name} on {model.opened.device_name}",
        )
        self._session.recorder.answered(model, answers)
        return answers

    def run(self, workload: Workload | Serve) -> RunResult:
        """Warm up and sample a workload, or put a load on a server.

        The record is stored before this returns.

        Returns:
            Estimates with 99 % intervals: times in s, rates in tok/s, sizes in bytes.

        Raises:
            InvalidRun: too few repetitions were valid. NotInEffect, WorkerError: see `load`.
            Regression: the session gates, and this run is worse than its history allows.
        """
        _check_workload(workload)
        if isinstance(workload, Serve):
            require_serves(self.plan.engine)
            return self._session.serve([self], workload)[0]
        if self._session.settings.disable:
            run_once(self.load, workload)
            return RunResult.unmeasured(
                "measuring is disabled (--llmperf-disable)", UnjudgedQuantity
            )
        (result,) = self._session.measure([self], workload)
        return result

    def highest_rate(
        self, workload: Serve, *, start: float = 1.0, attainment: float = 0.99, within: float = 0.1
    ) -> RateSearch:
        """The highest rate (requests a second) at which a server keeps the workload's SLO, by loads at other rates.

        Args:
            workload: an open loop with an SLO; its rate is not used.
            start: the rate to try first.
            attainment: the share of all requests that must meet every SLO.
            within: how close the highest rate that is kept and the lowest that is not come, as a share.

        """
        _check_workload(workload)
        require_serves(self.plan.engine)
        found = search(self.run, workload, start=start, attainment=attainment, within=within)
        self._session.note(f"{self.plan.model.name} on {self.plan.engine}: {found}")
        return found

    def compare(self, other: Model, workload: Workload | Serve) -> tuple[RunResult, RunResult]:
        """Measure this model and `other` in turn (A B B A); ratios of the two results are paired.

        Both stay loaded while they fit together; else they are loaded in turn, which is slow and is
        said in the summary.
        """
        _check_workload(workload)
        if not isinstance(other, Model):
            raise UsageError(
                f"compare({other!r}, …): another model is needed, for example the `baseline` fixture."
            )
        if isinstance(workload, Serve):
            require_serves(self.plan.engine)
            require_serves(other.plan.engine)
            ours, theirs = self._session.serve([self, other], workload)
            return ours, theirs
        if self._session.settings.disable:
            return self.run(workload), other.run(workload)
        if not self._session.pool.fits_together(*dict.fromkeys((self.plan, other.plan))):
            self._session.note(
                f"{self.strategy} and {other.strategy} of {self.plan.model.name} do not fit on {self.device} together: "
                "they were loaded in turn",
            )
        ours, theirs = self._session.measure([self, other], workload)
        return ours, theirs

    def agreement(
        self,
        reference: Model,
        *,
        prompts: PromptSet | None = None,
        new_tokens: int = 32,
        batch: int = 8,
        rule: str | None = None,
    ) -> Agreement:
        """How well this model's outputs agree with those of `reference`, teacher-forced and free-running.

        Args:
            reference: usually `baseline`; its outputs are cached on disk by content hash.
            prompts: real text (default: the bundled 'short-chat').
            new_tokens: greedy tokens continued from each prompt.
            batch: prompts in one forward, the same on both sides.
            rule: what `.ok` applies, for example 'containment(k=5, horizon=32)+perplexity(1.01)'; by default that of
                the strategy's kind (docs/measurement.md).

        """
        _check_question(reference, prompts, new_tokens=new_tokens, batch=batch)
        _check_one_adapter(self, reference)
        chosen = parse_rule(rule) if rule else default_rule(self.seen, reference.seen)
        question = agreement.Question(
            prompts=prompts or self._default_prompts(), new_tokens=new_tokens, batch=batch
        )
        self._session.progress(
            "comparing outputs", f"{self.strategy} with {reference.strategy}", None
        )
        candidate = self.load()
        result = agreement.compare(candidate, reference.seen, reference.load, question, chosen)
        self._session.recorder.agree(candidate, question, result)
        return result

    def top_tokens(self, prompt: str | Sequence[int], k: int = 5) -> TopTokens:
        """The k likeliest next tokens after a text, or after token ids. Nothing is recorded.

        A text is tokenised once, with the tokenizer's own special tokens: ask another model with
        `.prompt_ids`.

        Raises:
            UsageError: the prompt is empty, or holds ids that the model lacks. InvalidRun: a logit
                is NaN.
        """
        return self.load().call(ReadTopTokens(prompt=_next_prompt(prompt, k), k=k)).top

    def _default_prompts(self) -> PromptSet:
        if self.plan.model.kind == "arch":
            raise UsageError(
                f"{self.plan.model.name} has random weights: its outputs mean nothing, so agreement says nothing about quality. "
                "Use a real model, or pass prompts=PromptSet.synthetic() to compare the arithmetic alone.",
            )
        return PromptSet.bundled(AGREEMENT_PROMPTS)


def _check_question(reference: object, prompts: object, **counts: object) -> None:
    if not isinstance(reference, Model):
        raise UsageError(
            f"agreement({reference!r}): another model is needed, for example the `baseline` fixture."
        )
    if not isinstance(prompts, PromptSet | None):
        raise UsageError(
            f"agreement(prompts={prompts!r}): a PromptSet is needed, for example PromptSet.bundled('short-chat')."
        )
    _check_counts("agreement", **counts)


def _check_counts(method: str, **counts: object) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UsageError(f"{method}({name}={count!r}): a whole number of at least 1 is needed.")


def _check_one_adapter(*models: Model) -> None:
    for model in models:
        if len(set(model._adapters)) > 1:  # noqa: SLF001 - of this class
            raise UsageError(
                f"agreement of {model!r}: rows under different adapters are different models. Compare one at a time.",
            )


def _next_prompt(prompt: str | Sequence[int], k: int) -> str | tuple[int, ...]:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise UsageError(f"top_tokens(k={k!r}): a whole number of at least 1 is needed.")
    if isinstance(prompt, str) and prompt:
        return prompt
    ids = (
        tuple(prompt)
        if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
        else ()
    )
    if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise UsageError(
            f"top_tokens({prompt!r}): a text or a sequence of token ids is needed, neither empty."
        )
    return ids


def _check_workload(workload: object) -> None:
    if not isinstance(workload, Decode | Prefill | Batch | Serve):
        raise UsageError(
            f"{workload!r} is not a workload. Pass Decode(batch=1, prompt_tokens=128, new_tokens=128), Prefill(…), Batch(…) "
            "or Serve(…).",
        )
