"""A server that answers, as a loaded model: a batch is requests sent at once; it takes traffic."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.loaded import Description, ModelFacts, ServingRun, TimedRun
from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import (
    EnergyReading,
    Mark,
    MemoryGauges,
    RequestTrace,
    Startup,
    Trace,
)
from pytest_llmperf.engines.server.client import Client, ClientRun, RequestOutcome
from pytest_llmperf.engines.server.counting import (
    count_marks,
    require_length_of_all,
    require_lengths,
    require_prompts,
    with_visible_bundles,
)
from pytest_llmperf.engines.server.device import device_facts, device_name
from pytest_llmperf.engines.server.generators import GENERATORS, generate, version_of
from pytest_llmperf.engines.server.introspection import require_same_model
from pytest_llmperf.engines.server.prompts import Prompt
from pytest_llmperf.engines.server.proof.description import effective, memory
from pytest_llmperf.engines.server.proof.questions import NOTHING, prove
from pytest_llmperf.engines.server.running import Server, ServerLoop
from pytest_llmperf.engines.server.source import ModelSource
from pytest_llmperf.engines.server.starting import phases
from pytest_llmperf.engines.server.stream import Answer
from pytest_llmperf.engines.server.traffic import (
    Requests,
    require_no_hits,
    send,
)
from pytest_llmperf.errors import InvalidRun, LoadError, UsageError
from pytest_llmperf.instruments.cpu_time import ON_A_GPU
from pytest_llmperf.workloads import Decode, Prefill, Serve, Workload

PROBE_TOKENS = 2
_HTTP_OK = 200
_NO_LOGITS = (
    "a server streams tokens, not logits: "
    "compare the transformers or vllm engine with the reference"
)


class ServedModel:
    """See `engines.base.LoadedModel`; it `Serves` too.

    A server shows neither logits nor adapters and answers no tasks. It can be compared with a
    reference as far as its protocol gives log-probabilities.
    """

    refusals: ClassVar[Mapping[str, str]] = {
        "make_reference": f"agreement needs logits: {_NO_LOGITS}.",
        "use_adapters": "a server's adapters are models of their own names: give option 'name'.",
        "answer_tasks": f"tasks need logits: {_NO_LOGITS}.",
        "top_tokens": f"next tokens need logits: {_NO_LOGITS}.",
    }

    def __init__(
        self, plan: LoadPlan, server: Server, source: ModelSource, runner: asyncio.Runner
    ) -> None:
        self._plan = plan
        self._server = server
        self._source = source
        self._loop = ServerLoop(server, runner)
        self._requests = Requests(server, source)
        self._proof = NOTHING
        self._counted = ""
        self._closed = False
        self.load_s = 0.0
        self._startup: Startup | None = None

    def started(self, healthy_s: float, load_s: float) -> None:
        """Note when the server was healthy and when it gave its first answer, in s from its start.

        The phases of a server of ours are in its log.
        """
        self.load_s = load_s
        child = self._server.child
        if child is not None:
            self._startup = phases.startup(child.beginning(), healthy_s, load_s)

    def probe(self) -> None:
        """Ask for one short answer: the server generates, as the model asked for.

        Raises LoadError, NotInEffect.
        """
        prompt = Prompt(text="Hello", ids=tuple(self._requests.prompts.encode("Hello")))
        call = self._requests.call(prompt, PROBE_TOKENS)
        deadline_s = max(self._server.options.start_timeout_s, self._server.options.timeout_s)
        (outcome,) = self._loop.run(self._requests.client(deadline_s).together([call]))
        if outcome.failure is not None:
            raise LoadError(
                f"the server is healthy and does not answer: {outcome.failure}. "
                f"{self._server.tail()}"
            )
        self._require_model([outcome])

    def prove(self) -> None:
        """Ask for the server's settings, and probe what it does not say. Raises NotInEffect."""
        self._proof = prove(self._server, self._requests, self._loop)

    def opened(self) -> ModelFacts:
        """Return what answers; it loads from the start of its command to its first answer.

        A download is not counted.
        """
        tokenizer = self._source.tokenizer
        facts = device_facts(self._plan.device, started=self._server.child is not None)
        return ModelFacts(
            effective=self._effective(),
            load_s=self.load_s,
            content_hash=self._source.content_hash,
            vocab_size=0 if tokenizer is None else tokenizer.get_vocab_size(),
            versions=self._versions(),
            device_name=device_name(self._plan.device, facts),
            device_facts=facts,
            memory=self._memory(),
            startup=self._startup,
        )

    def _versions(self) -> dict[str, str]:
        facts = self._server.facts
        image = {"image": facts["image"]} if "image" in facts else {}
        return {"server": facts.get("version", "unknown"), **image}

    def describe(self) -> Description:
        """Return what the server says of itself."""
        return Description(effective=self._effective(), memory=self._memory())

    def run(self, workload: Workload, repetition: int) -> TimedRun:
        """Send the sequences of a batch as requests, all at once.

        Raises InvalidRun when one of them fails.
        """
        if not isinstance(workload, Decode | Prefill):
            raise UsageError(
                f"{type(workload).__name__} is no workload of a server. "
                "Use Serve(concurrency=…, requests=…), or Decode.",
            )
        calls = self._requests.of_batch(workload, repetition)
        client = self._requests.client(self._server.options.timeout_s)
        sending = self._loop.between_metrics(client.together(calls))
        (outcomes, samples), marks, cpu_s, gauges = self._loop.watched(sending)
        self._require_answers(outcomes)
        marks += self._checked(outcomes, fixed=True)
        require_no_hits(
            _traces(outcomes),
            server_metrics.summarized(samples),
            allowed=self._server.options.prefix_cache,
        )
        return TimedRun(
            trace=Trace(
                repetition=repetition,
                requests=_traces(outcomes),
                marks=tuple(marks),
                **self._cpu_time(cpu_s),
            ),
            step=None,
            telemetry=gauges,
            prompts_hash=_hash(call.body for call in calls),
            outputs_hash=_hash(_texts(outcomes)),
            answers=tuple(text.decode() for text in _texts(outcomes)),
        )

    def serve(self, workload: Serve, repetition: int, program: str = "") -> ServingRun:
        """Send one run of traffic; `program` is the command of its generator, where it has one.

        Raises InvalidRun where a prefix cache hit prompts that it was not to hit.
        """
        if workload.generator:
            return self._generated(workload, repetition, Path(program))
        client = self._requests.client(workload.timeout)
        sending = self._loop.sampled(self._sent(client, workload, repetition))
        (run, samples), marks, cpu_s, gauges = self._loop.watched(sending)
        marks += self._checked(run.outcomes, fixed=self._is_fixed(workload))
        trace = _serving_trace(run, samples, self._cpu_time(cpu_s))
        require_no_hits(trace.requests, trace.server, allowed=workload.prefix_cache)
        return ServingRun(
            trace=trace,
            marks=tuple(marks),
            samples=tuple(samples),
            counted=self._counted,
            telemetry=gauges,
        )

    def _sent(
        self, client: Client, workload: Serve, repetition: int
    ) -> Coroutine[Any, Any, ClientRun]:
        if workload.conversations is not None:
            return self._requests.converse(client, workload, repetition)
        return send(client, workload, self._requests.of_traffic(workload, repetition))

    def _generated(self, workload: Serve, repetition: int, program: Path) -> ServingRun:
        """Let another project's generator send one run of traffic."""
        generator = GENERATORS[workload.generator]
        job = self._requests.of_generator(generator, workload, repetition, program)
        generating = self._loop.sampled(generate(generator, job))
        (traces, samples), marks, cpu_s, gauges = self._loop.watched(generating)
        trace = ServingTrace(
            requests=traces,
            server=server_metrics.summarized(samples),
            generator=f"{generator.name} {version_of(generator.name, program)}".strip(),
            gaps=generator.gaps,
            **self._cpu_time(cpu_s),
        )
        if self._is_fixed(workload) and workload.traffic is None:
            require_length_of_all(traces, workload.max_new_tokens)
        require_no_hits(traces, trace.server, allowed=workload.prefix_cache)
        return ServingRun(
            trace=trace,
            marks=tuple(marks),
            samples=tuple(samples),
            counted="generator",
            telemetry=gauges,
        )

    def _is_fixed(self, workload: Serve) -> bool:
        """Whether every output was to have the length that was asked for."""
        return workload.ignore_eos and self._server.options.ignore_eos

    def _cpu_time(self, cpu_s: float | None) -> dict[str, Any]:
        """Return what a trace says of the CPU time of the server's processes."""
        if cpu_s is None:
            return {"no_cpu_s": "the server ran already, and its processes are not seen"}
        if self._plan.device != "cpu":
            return {"no_cpu_s": ON_A_GPU}
        return {"cpu_s": cpu_s}

    def read_memory(self, _workload: Workload, _repetition: int) -> MemoryGauges:
        """Return the resident memory of the server's processes on a CPU; nothing for a URL."""
        return self._memory()

    def read_energy(self, _workload: Workload, _repetition: int, _seconds: float) -> EnergyReading:
        """Return why there is no reading."""
        return EnergyReading(
            joules=None, seconds=0.0, n_output_tokens=0, reason="the energy of a server is not read"
        )

    def ceilings(self, _dtypes: tuple[str, ...]) -> None:
        """Return None: what a step of a server moves is not known."""

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """Compare by log-probabilities of the reference's tokens.

        Raises UsageError for a server that takes no ids, or gives none.
        """
        if not self._requests.takes_ids:
            raise UsageError("agreement needs prompts as token ids, and this server takes texts.")
        # Numpy and safetensors, where a baseline has them too.
        from pytest_llmperf.engines.server import agreement  # noqa: PLC0415

        reference = agreement.Reference.open(path)
        return self._loop.run(
            agreement.compare(self._ask, reference, self._source.tokenizer, batch)
        )

    def close(self) -> None:
        """End the server that we started, with all that it started. May be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self._loop.close()
        finally:
            self._end_child()

    def _end_child(self) -> None:
        if self._server.child is not None:
            self._server.child.end(self._server.options.stop_timeout_s)

    async def _ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Ask for one completion that is not streamed, and return its first choice.

        Raises UsageError where the server refuses it.
        """
        name = self._server.name
        body = msgspec.json.encode({"model": name, "temperature": 0, **fields})
        status, content = await self._requests.post(body)
        if status != _HTTP_OK:
            raise UsageError(
                f"the server refuses what agreement needs (HTTP {status}): "
                f"{content[:300].decode(errors='replace')}",
            )
        answer = msgspec.json.decode(content)
        require_same_model(name, {str(answer.get("model") or name)})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def _checked(self, outcomes: Sequence[RequestOutcome], *, fixed: bool) -> list[Mark]:
        """Hold what was served against what was asked for; return what is doubtful.

        Raises NotInEffect, InvalidRun.
        """
        self._require_model(outcomes)
        prompts = self._requests.prompts
        marks = count_marks(outcomes, prompts.count, fixed=fixed)
        require_prompts(outcomes, chat=prompts.chat)
        if not marks:  # lengths that cannot be right are no lengths
            require_lengths(outcomes, fixed=fixed)
        with_visible_bundles(outcomes, prompts.count)
        return marks

    def _require_answers(self, outcomes: Sequence[RequestOutcome]) -> None:
        failures = _failures(outcomes)
        if failures:
            count = f"{len(failures)} of {len(outcomes)} requests failed"
            raise InvalidRun(f"{count}: {failures[0]}. {self._server.tail()}")

    def _require_model(self, outcomes: Sequence[RequestOutcome]) -> None:
        """Note how the tokens were counted. Raises NotInEffect where another model answered."""
        answers = _answers(outcomes)
        if answers:
            self._counted = ", ".join(sorted({answer.counted for answer in answers}))
        require_same_model(self._server.name, _answering_models(answers))

    def _effective(self) -> Effective:
        return effective(self._plan, self._server, self._source, self._proof)

    def _memory(self) -> MemoryGauges:
        return memory(self._plan, self._server, self._proof)


def _failures(outcomes: Sequence[RequestOutcome]) -> list[str]:
    return [outcome.failure for outcome in outcomes if outcome.failure is not None]


def _answers(outcomes: Sequence[RequestOutcome]) -> list[Answer]:
    return [outcome.answer for outcome in outcomes if outcome.answer is not None]


def _answering_models(answers: Sequence[Answer]) -> set[str]:
    """Return the models that answers name; some name none."""
    return {answer.model for answer in answers if answer.model}


def _serving_trace(
    run: ClientRun, samples: Sequence[dict[str, float]], cpu_time: Mapping[str, Any]
) -> ServingTrace:
    return ServingTrace(
        requests=_traces(run.outcomes),
        loop_lag_s=tuple(run.loop_lag_s),
        busy_share=run.busy_share,
        server=server_metrics.summarized(samples),
        **cpu_time,
    )


def _traces(outcomes: Sequence[RequestOutcome]) -> tuple[RequestTrace, ...]:
    return tuple(outcome.trace() for outcome in outcomes)


def _texts(outcomes: Sequence[RequestOutcome]) -> list[bytes]:
    answers = [outcome.answer for outcome in outcomes]
    return [answer.text.encode() if answer is not None else b"" for answer in answers]


def _hash(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
