"""The requests of a workload to one server, for our own client or for another generator."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pytest_llmperf.core.trace import RequestTrace
from pytest_llmperf.engines.server import requests
from pytest_llmperf.engines.server.child import log_file
from pytest_llmperf.engines.server.client import Call, Client, ClientRun, Endpoint
from pytest_llmperf.engines.server.dialogs.contexts import Context, block_prompt
from pytest_llmperf.engines.server.dialogs.playing import play
from pytest_llmperf.engines.server.failures import whole
from pytest_llmperf.engines.server.generators import Generator, Job
from pytest_llmperf.engines.server.prompts import Prompt, Prompts
from pytest_llmperf.engines.server.running import Server
from pytest_llmperf.engines.server.source import ModelSource
from pytest_llmperf.errors import InvalidRun
from pytest_llmperf.workloads import Decode, Prefill, Serve

PREFIX_HITS = 0.01
"""Share of prompt tokens that a prefix cache may hit in a run that asked for none.

Prompts that are drawn may begin alike by chance.
"""


T = TypeVar("T")


class Requests:
    """Makes the requests of workloads, in the server's protocol."""

    def __init__(self, server: Server, source: ModelSource) -> None:
        self.protocol = requests.PROTOCOLS[server.options.protocol]
        self.prompts = Prompts(source.tokenizer, chat=server.options.protocol == "openai-chat")
        self.common = requests.RequestDefaults.of(server.name, server.preset, server.options)
        self._server = server
        self._source = source

    @property
    def takes_ids(self) -> bool:
        """Whether prompts can be sent as token ids."""
        return self.common.prompt_ids and self.protocol.ids

    @property
    def url(self) -> str:
        """Where requests go."""
        return self._server.base + self.path

    @property
    def path(self) -> str:
        """The path of requests, below the server's URL."""
        return self._server.options.path or self.protocol.path

    def client(self, timeout_s: float) -> Client:
        """Return a client that sends them; `timeout_s` is its longest wait for the next bytes."""
        server = self._server
        endpoint = Endpoint(self.url, server.headers, self.protocol.parse, server.trusted)
        return Client(endpoint, server.http, timeout_s=timeout_s)

    def call(
        self, prompt: Prompt, n_tokens: int, common: requests.RequestDefaults | None = None
    ) -> Call:
        """Return the request for `n_tokens` tokens after a prompt."""
        common = common or self.common
        return Call(
            body=requests.body(self.protocol, prompt, n_tokens, common),
            n_prompt_tokens=len(prompt.ids) or None,
            n_output_tokens=n_tokens,
            exact_prompt=common.prompt_ids and self.protocol.ids and bool(prompt.ids),
        )

    def of_batch(self, work: Decode | Prefill, repetition: int) -> list[Call]:
        """Return one request for each sequence of a batch.

        The prompts are those that every engine gets: texts in their order, from where the
        repetition before ended.
        """
        first = repetition * work.batch
        prompts = [
            self.prompts.prompt(work.prompts, work.prompt_tokens, repetition, index, repeat=True)
            for index in range(first, first + work.batch)
        ]
        return [self.call(prompt, work.new_tokens) for prompt in prompts]

    def of_traffic(
        self, work: Serve, repetition: int, *, prompt_ids: bool = True
    ) -> Callable[[int], Call]:
        """Return what makes the request of a number."""
        common = dataclasses.replace(
            self.common,
            ignore_eos=self.common.ignore_eos and work.ignore_eos,
            prompt_ids=self.common.prompt_ids and prompt_ids,
        )

        def call(index: int) -> Call:
            n_prompt, n_output = _lengths(work, index)
            return self.call(self._prompt(work, n_prompt, repetition, index), n_output, common)

        return call

    def _prompt(self, work: Serve, n_prompt: int | None, repetition: int, index: int) -> Prompt:
        """Return the prompt of the request of a number: of a trace's blocks, where it has some."""
        traffic = work.traffic
        if traffic is not None and traffic.blocks and n_prompt is not None:
            blocks = traffic.blocks[index % len(traffic.blocks)]
            return block_prompt(self.prompts, blocks, traffic.block_tokens, n_prompt)
        return self.prompts.prompt(
            work.prompts, n_prompt, repetition, index, repeat=work.prefix_cache
        )

    async def converse(self, client: Client, work: Serve, repetition: int) -> ClientRun:
        """Play a load's conversations once, with tokens of their own in each repetition."""
        talks = work.conversations
        assert talks is not None  # noqa: S101 - whoever converses has some
        ignore_eos = self.common.ignore_eos and work.ignore_eos
        common = dataclasses.replace(self.common, ignore_eos=ignore_eos)
        return await play(
            client,
            work,
            lambda number: Context(self.prompts, talks, repetition, number),
            lambda prompt, n_tokens: self.call(prompt, n_tokens, common),
        )

    def of_generator(
        self, generator: Generator, work: Serve, repetition: int, program: Path
    ) -> Job:
        """Return what a generator is to do, with a folder of its own beside the server's log."""
        server = self._server
        due_s = work.due_s() if work.concurrency is None else ()
        call = self.of_traffic(work, repetition, prompt_ids=generator.ids)
        n_bodies = len(due_s) or work.requests or 0
        return Job(
            work=work,
            base=server.base,
            path=self.path,
            model=server.name,
            api_key=server.options.api_key,
            bodies=tuple(call(index).body for index in range(n_bodies)),
            due_s=due_s,
            tokenizer=self._source.tokenizer_folder,
            program=program,
            folder=_folder_of(generator, server),
        )

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Send one request that is not streamed; return the status and content of its answer."""
        server = self._server
        headers = server.headers | {"Accept": "application/json"}
        async with server.http.post(
            self.url, data=body, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await whole(response)


def _folder_of(generator: Generator, server: Server) -> Path:
    log = server.child.log if server.child is not None else log_file("x")
    return Path(tempfile.mkdtemp(prefix=f"{generator.name}-", dir=log.parent))


def _lengths(work: Serve, index: int) -> tuple[int | None, int]:
    """Return the prompt and output tokens of the request of a number."""
    n_prompt, n_output = work.prompt_tokens, work.max_new_tokens
    if work.traffic is not None:
        n_prompt = _of_turn(work.traffic.prompt_tokens, index, n_prompt)
        n_output = _of_turn(work.traffic.output_tokens, index, n_output)
    return n_prompt, n_output


def _of_turn(lengths: Sequence[int], index: int, default: T) -> int | T:
    return lengths[index % len(lengths)] if lengths else default


async def send(client: Client, work: Serve, call: Callable[[int], Call]) -> ClientRun:
    """Send one run of traffic: when requests are due, or on as many lines as the workload has."""
    if work.concurrency is None:
        due_s = work.due_s()
        return await client.open_loop([call(index) for index in range(len(due_s))], due_s)
    # Before the clock runs, as far as they are known.
    prepared = [call(index) for index in range(work.requests or work.concurrency)]
    return await client.closed_loop(
        lambda index: prepared[index] if index < len(prepared) else call(index),
        work.concurrency,
        requests=work.requests,
        duration_s=work.duration,
    )


def require_no_hits(
    traces: Sequence[RequestTrace], metrics: Mapping[str, float], *, allowed: bool
) -> None:
    """Raise InvalidRun where a prefix cache hit prompts that it was not to hit.

    The requests' own counts say it, or the server's metrics over the run.
    """
    if allowed:
        return
    n_prompt = sum(request.n_prompt_tokens for request in traces)
    n_cached = sum(request.n_cached_tokens for request in traces)
    share_of_requests = n_cached / n_prompt if n_prompt else 0.0
    share = max(share_of_requests, metrics.get("prefix_hit_share", 0.0))
    if share > PREFIX_HITS:
        raise InvalidRun(
            f"the server's prefix cache hit {share:.0%} of the prompt tokens, and this load asked "
            "for none. Turn the cache off, or say Serve(prefix_cache=True), of other workloads "
            "option 'prefix_cache'.",
        )
