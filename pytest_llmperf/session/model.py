"""`llm`, as a test sees it.

It is a model under a strategy that can be run, compared and checked against another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from pytest_llmperf.core.agreement.agreement import Agreement
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.agreement.rules import Rule, default_rule, parse_rule
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics.rate_search import RateSearch
from pytest_llmperf.core.metrics.results import RunResult
from pytest_llmperf.core.misspelt import Suggests, suggests_keywords
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session import agreement
from pytest_llmperf.session.adapter_view import require_usable, using, view_of
from pytest_llmperf.session.agreement import Question
from pytest_llmperf.session.answers import Answers
from pytest_llmperf.session.arguments import (
    next_prompt,
    require_counts,
    require_processes,
    require_prompt_set,
    require_task_set,
    require_workload,
)
from pytest_llmperf.session.rate_search import search
from pytest_llmperf.session.serving import require_serves
from pytest_llmperf.wire.commands import AnswerTasks, ReadTopTokens
from pytest_llmperf.workers.pool import OpenModel
from pytest_llmperf.workloads import Prefill, PromptSet, Serve, TaskSet, Workload

if TYPE_CHECKING:
    from pytest_llmperf.session.session import LlmperfSession

AGREEMENT_PROMPTS = "agreement"


@suggests_keywords
class Model(Suggests):
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
        plan = self.plan
        return f"<llm {plan.model.name} {plan.strategy}{rows} on {plan.device}, {plan.engine}>"

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
        """The plan that outputs come from.

        It has only those of its adapters that are used, and a strategy text that says so.
        """
        return view_of(self.plan, self._adapters)

    def load(self) -> OpenModel:
        """Load the model now and check that its strategy is in effect.

        Raises the errors of `workers.pool.Pool.open`.
        """
        model = self._session.pool.open(self.plan)
        quantized = model.opened.effective.quantized
        if quantized is not None:
            self._session.note(f"{self.plan.model.name} {self.strategy}: {quantized}")
        for text in model.opened.not_read:
            self._session.note(f"{self.plan.model.name} {self.strategy}: {text}")
        return self._switched_to_adapters(model) if self._adapters else model

    def using(self, *names: str) -> Model:
        """Return the same loaded model going through other adapters of its strategy.

        One name is for all requests; several are for a batch's rows in turn. "base" is the model
        without an adapter. Switching is outside the timed path; records say which were used.

        Raises:
            UsageError: the strategy does not load them, or merges or compiles them.

        """
        require_usable(self.plan, names)
        return Model(self._session, self.plan, names)

    def accuracy(self, tasks: TaskSet, *, batch: int = 16) -> Answers:
        """Answer a task set, `batch` items at a time.

        Returns:
            `.accuracy` with its interval, and `.correct` item by item.

        Raises:
            UsageError: no task set, or a model without a tokenizer. NotInEffect, WorkerError: see
                `load`.

        """
        require_task_set(tasks)
        require_counts("accuracy", batch=batch)
        work = f"{self.strategy}: {len(tasks.items)} items of {tasks.name}"
        self._session.progress("answering", work, None)
        model = self.load()
        answers = _answers(model, tasks, batch)
        self._session.recorder.answered(model, answers)
        return answers

    def run(self, workload: Workload | Serve, *, processes: int | None = None) -> RunResult:
        """Warm up and sample a workload, or put a load on a server.

        The record is stored before this returns. The repetitions are spread over `processes` fresh
        processes, by default as many as pay (docs/measurement.md).

        Returns:
            Estimates with 99 % intervals: times in s, rates in tok/s, sizes in bytes.

        Raises:
            InvalidRun: too few repetitions were valid. NotInEffect, WorkerError: see `load`.
            Regression: the session gates, and this run is worse than its history allows.
        """
        self._require_runs(workload)
        require_processes(processes)
        (result,) = self._session.measure([self], workload, processes=processes)
        return _as_in_its_row(result, workload)

    def highest_rate(
        self, workload: Serve, *, start: float = 1.0, attainment: float = 0.99, within: float = 0.1
    ) -> RateSearch:
        """Search the highest rate (requests a second) at which a server keeps the workload's SLO.

        It is found by loads at other rates.

        Args:
            workload: an open loop with an SLO; its rate is not used.
            start: the rate to try first.
            attainment: the share of all requests that must meet every SLO.
            within: how close the highest rate that is kept and the lowest that is not come, as a
                share.

        """
        self._require_runs(workload)
        require_serves(self.plan.engine)
        outcome = search(self.run, workload, start=start, attainment=attainment, within=within)
        self._session.note(f"{self.plan.model.name} on {self.plan.engine}: {outcome}")
        return outcome

    def compare(
        self, other: Model, workload: Workload | Serve, *, processes: int | None = None
    ) -> tuple[RunResult, RunResult]:
        """Measure this model and `other` in turn (A B B A); ratios of the two results are paired.

        That is done in `processes` pairs of fresh processes, by default as many as pay.
        Both stay loaded while they fit together; else they are loaded in turn, which is slow and is
        said in the summary.
        """
        require_workload(workload)
        if not isinstance(other, Model):
            raise UsageError(
                f"compare({other!r}, …): another model is needed, "
                "for example the `baseline` fixture."
            )
        for model in (self, other):
            model._require_runs(workload)  # noqa: SLF001 - of this class
        if not isinstance(workload, Serve):
            self._note_loaded_in_turn(other)
        require_processes(processes)
        own_result, other_result = self._session.measure(
            [self, other], workload, processes=processes
        )
        return _as_in_its_row(own_result, workload), _as_in_its_row(other_result, workload)

    def agreement(
        self,
        reference: Model,
        *,
        prompts: PromptSet | None = None,
        new_tokens: int = 32,
        batch: int = 8,
        rule: str | None = None,
    ) -> Agreement:
        """Measure how well this model's outputs agree with those of `reference`.

        They are compared teacher-forced and free-running.

        Args:
            reference: usually `baseline`; its outputs are cached on disk by content hash.
            prompts: real text (default: the bundled 'agreement': chats, other scripts, code, and
                texts of up to a thousand tokens).
            new_tokens: greedy tokens continued from each prompt.
            batch: prompts in one forward, the same on both sides.
            rule: what `.ok` applies, for example 'containment(k=5, horizon=32)+perplexity(1.01)';
                by default that of the strategy's kind (docs/measurement.md).

        """
        _require_model(reference)
        require_prompt_set(prompts)
        require_counts("agreement", new_tokens=new_tokens, batch=batch)
        _require_one_adapter(self, reference)
        rule_applied = parse_rule(rule) if rule else default_rule(self.seen, reference.seen)
        question = Question(
            prompts=prompts or self._default_prompts(), new_tokens=new_tokens, batch=batch
        )
        return self._compared_with(reference, question, rule_applied)

    def _compared_with(self, reference: Model, question: Question, rule: Rule) -> Agreement:
        """Compare outputs with those of the reference, and record how well they agree."""
        sides = f"{self.strategy} with {reference.strategy}"
        self._session.progress("comparing outputs", sides, None)
        candidate = self.load()
        result = agreement.compare(
            candidate, reference.seen, reference.load, question, rule, self.load
        )
        self._session.recorder.agree(candidate, question, result)
        return result

    def top_tokens(self, prompt: str | Sequence[int], k: int = 5) -> TopTokens:
        """Return the k likeliest next tokens after a text, or after token ids. Records nothing.

        A text is tokenised once, with the tokenizer's own special tokens: ask another model with
        `.prompt_ids`.

        Raises:
            UsageError: the prompt is empty, or holds ids that the model lacks. InvalidRun: a logit
                is NaN.
        """
        require_counts("top_tokens", k=k)
        answer = self.load().call(ReadTopTokens(prompt=next_prompt(prompt), k=k))
        return answer.top

    def _switched_to_adapters(self, model: OpenModel) -> OpenModel:
        """Return the view of `model` that goes through this one's adapters, made once a load."""
        if self._switched is None or self._switched[0] is not model:
            self._switched = model, using(model, self._adapters)
        return self._switched[1]

    def _require_runs(self, workload: object) -> None:
        """Raise UsageError for no workload, or for traffic on an engine that is no server."""
        require_workload(workload)
        if isinstance(workload, Serve):
            require_serves(self.plan.engine)

    def _note_loaded_in_turn(self, other: Model) -> None:
        """Note that the two do not fit together, where they do not."""
        if self._session.settings.disable:
            return
        plans = dict.fromkeys((self.plan, other.plan))
        if not self._session.pool.fits_together(*plans):
            self._session.note(
                f"{self.strategy} and {other.strategy} of {self.plan.model.name} do not fit on "
                f"{self.device} together: they were loaded in turn",
            )

    def _default_prompts(self) -> PromptSet:
        if self.plan.model.kind == "arch":
            raise UsageError(
                f"{self.plan.model.name} has random weights: its outputs mean nothing, so "
                "agreement says nothing about quality. Use a real model, or pass "
                "prompts=PromptSet.synthetic() to compare the arithmetic alone.",
            )
        return PromptSet.bundled(AGREEMENT_PROMPTS)


def _as_in_its_row(result: RunResult, workload: Workload | Serve) -> RunResult:
    """Return the result with the speed that the summary shows as its throughput.

    A prefill's is that of its prompt: of output tokens it makes one a sequence.
    """
    if not isinstance(workload, Prefill):
        return result
    return structs.replace(result, throughput=result.prefill_throughput)


def _answers(model: OpenModel, tasks: TaskSet, batch: int) -> Answers:
    answered = model.call(AnswerTasks(tasks=tasks, batch=batch))
    return Answers(
        tasks=tasks,
        given=tuple(answer.text for answer in answered.answers),
        correct=tuple(answer.correct for answer in answered.answers),
        subject=model.plan.strategy,
        context=f"{tasks.name} on {model.opened.device_name}",
    )


def _require_model(reference: object) -> None:
    if not isinstance(reference, Model):
        raise UsageError(
            f"agreement({reference!r}): another model is needed, "
            "for example the `baseline` fixture."
        )


def _require_one_adapter(*models: Model) -> None:
    for model in models:
        if len(set(model._adapters)) > 1:  # noqa: SLF001 - of this class
            raise UsageError(
                f"agreement of {model!r}: rows under different adapters are different models. "
                "Compare one at a time.",
            )
