# ruff: noqa: ARG002 - a session's methods take what every engine needs
"""A server that answers, as a session: offline workloads as requests sent at once, and loads."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import msgspec

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.agreement.next_tokens import TopTokens
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.core.metrics.serving import ServingTrace
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.core.trace import Ceilings, EnergyReading, Mark, MemoryGauges, Trace
from pytest_llmperf.engines.server import requests
from pytest_llmperf.engines.server.child import Child, log_file
from pytest_llmperf.engines.server.client import (
    Call,
    Client,
    ClientRun,
    Endpoint,
    RequestOutcome,
    takes_connections,
)
from pytest_llmperf.engines.server.counting import count_marks
from pytest_llmperf.engines.server.device import device_facts, device_name
from pytest_llmperf.engines.server.generators import GENERATORS, Job, generate, version_of
from pytest_llmperf.engines.server.introspection import Introspection, require_same_model
from pytest_llmperf.engines.server.options import ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.engines.server.prompts import Prompt, Prompts
from pytest_llmperf.engines.server.source import ModelSource
from pytest_llmperf.errors import InvalidRun, LoadError, UsageError, WorkerError
from pytest_llmperf.instruments.telemetry import judge_cpu, own_cores, read_cpu
from pytest_llmperf.wire.messages import Described, MemoryRead, Opened, Ran, Served
from pytest_llmperf.workloads import (
    Decode,
    Prefill,
    PromptSet,
    Serve,
    TaskAnswer,
    TaskSet,
    Workload,
)

PROBE_TOKENS = 2
WATCH_S = 0.1
DYING_S = 5.0
"""For how long a server that takes no connections any more is watched: its sockets are closed before its process is gone."""

PREFIX_HITS = 0.01
"""Share of prompt tokens that a prefix cache may hit in a run that asked for none: drawn prompts may begin alike by chance."""

_UNSEEN = "a server shows its weights to nobody"
_NO_LOGITS = "a server streams tokens, not logits: compare the transformers or vllm engine with the reference"
T = TypeVar("T")


@dataclass(kw_only=True)
class Server:
    """A server that is healthy.

    `child` is None for one that ran already; `facts` is what it said of itself.
    """

    preset: Preset
    options: ServerOptions
    base: str
    name: str
    headers: dict[str, str]
    http: aiohttp.ClientSession
    saying: Introspection
    child: Child | None
    facts: dict[str, str] = field(default_factory=dict)


class ServedModel:
    """See `pytest_llmperf.engines.base.Session`; `serve` on top.

    Logits, adapters and tasks are not to be had from a server.

    Agreement is, as far as its protocol gives log-probabilities.
    """

    def __init__(
        self, plan: LoadPlan, server: Server, source: ModelSource, runner: asyncio.Runner
    ) -> None:
        self._plan = plan
        self._server = server
        self._source = source
        self._runner = runner
        self._protocol = requests.PROTOCOLS[server.options.protocol]
        self._asked = requests.RequestDefaults.of(server.name, server.preset, server.options)
        self._prompts = Prompts(source.tokenizer, chat=server.options.protocol == "openai-chat")
        self._counted = ""
        self._closed = False
        self.load_s = 0.0

    def probe(self) -> None:
        """One short answer: the server generates, as the model asked for.

        Raises LoadError, NotInEffect.
        """
        prompt = Prompt(text="Hello", ids=tuple(self._prompts.encode("Hello")))
        (outcome,) = self._run(self._client(60.0).together([self._call(prompt, PROBE_TOKENS)]))
        if outcome.failure is not None:
            raise LoadError(
                f"the server is healthy and does not answer: {outcome.failure}. {self._tail()}"
            )
        self._require_model([outcome])

    def opened(self) -> Opened:
        """Load time is from the start of the command to its first answer, without a download."""
        facts = device_facts(self._plan.device, started=self._server.child is not None)
        return Opened(
            effective=self._effective(),
            load_s=self.load_s,
            content_hash=self._source.content_hash,
            vocab_size=0
            if self._source.tokenizer is None
            else self._source.tokenizer.get_vocab_size(),
            versions={"server": self._server.facts.get("version", "unknown")},
            device_name=device_name(self._plan.device, facts),
            device_facts=facts,
            memory=self._memory(),
        )

    def describe(self) -> Described:
        """What it says of itself."""
        return Described(effective=self._effective(), memory=self._memory())

    def run(self, workload: Workload, repetition: int) -> Ran:
        """The sequences of a batch as requests sent at once.

        Raises InvalidRun when one of them fails.
        """
        if not isinstance(workload, Decode | Prefill):
            raise UsageError(
                f"{type(workload).__name__} is no workload of a server. Use Serve(concurrency=…, requests=…), or Decode.",
            )
        calls = self._batch(workload, repetition)
        outcomes, marks = self._watched(self._client(60.0).together(calls))
        failed = [outcome.failure for outcome in outcomes if outcome.failure is not None]
        if failed:
            raise InvalidRun(
                f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}. {self._tail()}"
            )
        self._require_model(outcomes)
        marks += count_marks(outcomes, self._prompts.count, workload.new_tokens, fixed=True)
        trace = Trace(
            repetition=repetition, requests=tuple(o.trace() for o in outcomes), marks=tuple(marks)
        )
        return Ran(
            trace=trace,
            step=None,
            prompts_hash=_hash(call.body for call in calls),
            outputs_hash=_hash(_texts(outcomes)),
        )

    def serve(self, workload: Serve, repetition: int, program: str = "") -> Served:
        """One run of a load.

        Raises InvalidRun where a prefix cache hit prompts that it was not to hit.

        `program` is the command of the workload's generator, where it has one.
        """
        if workload.generator:
            return self._generated(workload, repetition, Path(program))
        client = self._client(workload.timeout)
        samples: list[dict[str, float]] = []
        run, marks = self._watched(self._sampled(self._load(client, workload, repetition), samples))
        self._require_model(run.outcomes)
        n_asked = max(
            workload.max_new_tokens,
            *(workload.traffic.output_tokens if workload.traffic is not None else ()),
            0,
        )
        marks += count_marks(run.outcomes, self._prompts.count, n_asked, fixed=workload.ignore_eos)
        server = server_metrics.summarised(samples)
        traces = tuple(o.trace() for o in run.outcomes)
        if not workload.prefix_cache:
            _require_no_hits(traces, server)
        trace = ServingTrace(
            requests=traces,
            loop_lag_s=tuple(run.loop_lag_s),
            busy_share=run.busy_share,
            server=server,
        )
        return Served(
            trace=trace, marks=tuple(marks), samples=tuple(samples), counted=self._counted
        )

    def read_memory(self, workload: Workload, repetition: int) -> MemoryRead:
        """Resident memory of the server's processes on a CPU; nothing for a URL."""
        return MemoryRead(memory=self._memory())

    def read_energy(self, workload: Workload, repetition: int, seconds: float) -> EnergyReading:
        """Not read."""
        return EnergyReading(
            joules=None, seconds=0.0, n_output_tokens=0, reason="the energy of a server is not read"
        )

    def ceilings(self, dtypes: tuple[str, ...]) -> Ceilings | None:
        """None: what a step of a server moves is not known."""
        return None

    def make_reference(
        self, prompts: PromptSet, new_tokens: int, batch: int, path: str
    ) -> tuple[int, int]:
        """Raises UsageError."""
        raise UsageError(f"agreement needs logits: {_NO_LOGITS}.")

    def compare_reference(self, path: str, batch: int) -> tuple[PromptComparison, ...]:
        """By log-probabilities of the reference's tokens.

        Raises UsageError for a server that takes no ids, or gives none.
        """
        if not (self._asked.prompt_ids and self._protocol.ids):
            raise UsageError("agreement needs prompts as token ids, and this server takes texts.")
        # Numpy and safetensors, where a baseline has them too.
        from pytest_llmperf.engines.server import agreement  # noqa: PLC0415

        return self._run(
            agreement.compare(
                self._ask, agreement.Reference.open(path), self._source.tokenizer, batch
            )
        )

    def use_adapters(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Raises UsageError."""
        raise UsageError("a server's adapters are models of their own names: give option 'name'.")

    def answer_tasks(self, tasks: TaskSet, batch: int) -> tuple[TaskAnswer, ...]:
        """Raises UsageError."""
        raise UsageError(f"tasks need logits: {_NO_LOGITS}.")

    def top_tokens(self, prompt: str | tuple[int, ...], k: int) -> TopTokens:
        """Raises UsageError."""
        raise UsageError(f"next tokens need logits: {_NO_LOGITS}.")

    def close(self) -> None:
        """End the server that we started, with all that it started. May be called again."""
        if self._closed:
            return
        self._closed = True
        try:
            self._runner.run(self._server.http.close())
            self._runner.close()
        finally:
            if self._server.child is not None:
                self._server.child.end(self._server.options.stop_timeout_s)

    # Requests

    async def _ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        """One completion that is not streamed: its first choice.

        Raises UsageError where the server refuses it.
        """
        body = msgspec.json.encode({"model": self._server.name, "temperature": 0, **fields})
        url, headers = (
            self._server.base + self._protocol.path,
            self._server.headers | {"Accept": "application/json"},
        )
        async with self._server.http.post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            said = await response.read()
        if response.status != 200:  # noqa: PLR2004 - OK
            raise UsageError(
                f"the server refuses what agreement needs (HTTP {response.status}): {said[:300].decode(errors='replace')}",
            )
        answer = msgspec.json.decode(said)
        require_same_model(self._server.name, {str(answer.get("model") or self._server.name)})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def _client(self, timeout_s: float) -> Client:
        server = self._server
        endpoint = Endpoint(server.base + self._protocol.path, server.headers, self._protocol.parse)
        return Client(endpoint, server.http, timeout_s=timeout_s)

    def _call(self, prompt: Prompt, n_tokens: int) -> Call:
        body = requests.body(self._protocol, prompt, n_tokens, self._asked)
        return Call(body=body, n_prompt_tokens=len(prompt.ids) or None)

    def _prompt(
        self,
        prompts: PromptSet,
        length: int | None,
        repetition: int,
        index: int,
        *,
        repeat: bool = False,
    ) -> Prompt:
        return self._prompts.prompt(prompts, length, repetition, index, repeat=repeat)

    def _batch(self, work: Decode | Prefill, repetition: int) -> list[Call]:
        """The prompts that every engine gets: texts in their order, from where the repetition before ended."""
        at = [repetition * work.batch + i for i in range(work.batch)]
        prompts = [
            self._prompt(work.prompts, work.prompt_tokens, repetition, i, repeat=True) for i in at
        ]
        return [self._call(prompt, work.new_tokens) for prompt in prompts]

    def _generated(self, work: Serve, repetition: int, program: Path) -> Served:
        """One run of a load by another project's generator."""
        generator = GENERATORS[work.generator]
        due_s = work.due_s() if work.concurrency is None else ()
        call = self._calls(work, repetition, prompt_ids=generator.ids)
        folder = (
            self._server.child.log.parent
            if self._server.child is not None
            else log_file("x").parent
        )
        job = Job(
            work=work,
            base=self._server.base,
            path=self._protocol.path,
            model=self._server.name,
            api_key=self._server.options.api_key,
            bodies=tuple(call(i).body for i in range(len(due_s) or work.requests or 0)),
            due_s=due_s,
            tokenizer=self._source.tokenizer_folder,
            program=program,
            folder=Path(tempfile.mkdtemp(prefix=f"{generator.name}-", dir=folder)),
        )
        samples: list[dict[str, float]] = []
        traces, marks = self._watched(self._sampled(generate(generator, job), samples))
        server = server_metrics.summarised(samples)
        if not work.prefix_cache:
            _require_no_hits(traces, server)
        said = f"{generator.name} {version_of(generator.name, program)}".strip()
        trace = ServingTrace(requests=traces, server=server, generator=said, gaps=generator.gaps)
        return Served(trace=trace, marks=tuple(marks), samples=tuple(samples), counted="generator")

    def _calls(
        self, work: Serve, repetition: int, *, prompt_ids: bool = True
    ) -> Callable[[int], Call]:
        """What makes the request of a number."""
        ignore_eos, prompt_ids = (
            self._asked.ignore_eos and work.ignore_eos,
            self._asked.prompt_ids and prompt_ids,
        )
        asked = dataclasses.replace(self._asked, ignore_eos=ignore_eos, prompt_ids=prompt_ids)
        lengths = (
            (work.traffic.prompt_tokens, work.traffic.output_tokens)
            if work.traffic is not None
            else ((), ())
        )

        def call(i: int) -> Call:
            length = lengths[0][i % len(lengths[0])] if lengths[0] else work.prompt_tokens
            n_out = lengths[1][i % len(lengths[1])] if lengths[1] else work.max_new_tokens
            prompt = self._prompt(work.prompts, length, repetition, i, repeat=work.prefix_cache)
            return Call(
                body=requests.body(self._protocol, prompt, n_out, asked),
                n_prompt_tokens=len(prompt.ids) or None,
            )

        return call

    async def _load(self, client: Client, work: Serve, repetition: int) -> ClientRun:
        call = self._calls(work, repetition)
        if work.concurrency is None:
            due_s = work.due_s()
            return await client.open_loop([call(i) for i in range(len(due_s))], due_s)
        # Before the clock runs, as far as they are known.
        made = [call(i) for i in range(work.requests or work.concurrency)]
        return await client.closed_loop(
            lambda i: made[i] if i < len(made) else call(i),
            work.concurrency,
            requests=work.requests,
            duration_s=work.duration,
        )

    # Around them

    async def _sampled(self, work: Coroutine[Any, Any, T], samples: list[dict[str, float]]) -> T:
        """Do the work, with the server's metrics read before it, once a second, and after it."""
        saying = self._server.saying
        before = await saying.metrics()
        if not before:
            return await work
        samples.append(before)
        sampler = asyncio.create_task(saying.sample(samples))
        try:
            return await work
        finally:
            sampler.cancel()
            samples.append(await saying.metrics())

    def _watched(self, work: Coroutine[Any, Any, T]) -> tuple[T, list[Mark]]:
        """Do the work while watching for foreign load; the server's own CPU time is ours."""
        child = self._server.child
        before, busy_s = read_cpu(), child.busy_s() if child is not None else 0.0
        done = self._run(work)
        after = read_cpu()
        if child is None:
            return done, []
        after = dataclasses.replace(after, own_s=after.own_s + child.busy_s() - busy_s)
        return done, list(judge_cpu(before, after, cores=len(own_cores())).marks)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """On the event loop. Raises WorkerError when the server dies meanwhile."""
        return self._runner.run(self._while_it_lives(work))

    async def _while_it_lives(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        while not task.done():
            await asyncio.wait({task}, timeout=WATCH_S)
            gone = self._gone() or (await self._dying() if task.done() else "")
            if gone:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise WorkerError(f"the server died in the run: {gone}")
        return task.result()

    async def _dying(self) -> str:
        """How our server ended if it takes no connections.

        Empty where it does, and where its process goes on without them.
        """
        if self._server.child is None or await takes_connections(self._server.base):
            return ""
        for _ in range(round(DYING_S / WATCH_S)):
            if gone := self._gone():
                return gone
            await asyncio.sleep(WATCH_S)
        return ""

    def _gone(self) -> str:
        return self._server.child.died() if self._server.child is not None else ""

    def _tail(self) -> str:
        return self._server.child.tail() if self._server.child is not None else ""

    def _require_model(self, outcomes: Sequence[RequestOutcome]) -> None:
        answers = [o.answer for o in outcomes if o.answer is not None]
        self._counted = next((a.counted for a in answers), self._counted)
        require_same_model(self._server.name, {a.model for a in answers if a.model})

    # What it says

    def _effective(self) -> Effective:
        dtype = self._server.facts.get("dtype", "")
        where = (
            " ".join(self._server.child.command)
            if self._server.child is not None
            else self._server.base
        )
        said = (
            f"the server says that it runs in {dtype}"
            if dtype
            else "the server does not say in which dtype it runs"
        )
        return Effective(
            engine=self._plan.engine,
            model_class=self._server.name,
            tensors=(),
            linears=(),
            compute_dtype=dtype,
            autocast_dtype=None,
            checkpoint_dtype=None,
            attention="",
            cache="",
            compile_mode=None,
            compiled_graphs=0,
            decode_loop=self._server.options.protocol,
            padding_side="",
            device=self._plan.device,
            reported_dtype=dtype,
            notes=(where, said),
        )

    def _memory(self) -> MemoryGauges:
        reasons = dict.fromkeys(("weights", "peak", "reserved", "device", "kv_cache"), _UNSEEN)
        child = self._server.child
        if child is None or self._plan.device != "cpu":
            where = (
                "it runs elsewhere" if child is None else "its share of the GPU is not told apart"
            )
            return MemoryGauges(weights=0, reasons={**reasons, "process": f"{_UNSEEN}: {where}"})
        return MemoryGauges(weights=0, process=child.resident_bytes(), reasons=reasons)


def _require_no_hits(traces: Sequence[Any], server: dict[str, float]) -> None:
    prompt = sum(trace.n_prompt_tokens for trace in traces)
    told = sum(trace.n_cached_tokens for trace in traces) / prompt if prompt else 0.0
    share = max(told, server.get("prefix_hit_share", 0.0))
    if share > PREFIX_HITS:
        raise InvalidRun(
            f"the server's prefix cache hit {share:.0%} of the prompt tokens, and this load asked for none. Turn the cache off, "
            "or say Serve(prefix_cache=True).",
        )


def _texts(outcomes: Sequence[RequestOutcome]) -> list[bytes]:
    return [o.answer.text.encode() if o.answer is not None else b"" for o in outcomes]


def _hash(parts: Any) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
