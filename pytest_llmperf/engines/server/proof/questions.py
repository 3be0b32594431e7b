"""A server's settings, asked for over HTTP: its own words first, then probes for what is left."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping

import aiohttp

from pytest_llmperf.core.effective import ServerSetting
from pytest_llmperf.engines.server.client import RequestOutcome
from pytest_llmperf.engines.server.prompts import Prompt
from pytest_llmperf.engines.server.proof import asked, probes, proved, self_report
from pytest_llmperf.engines.server.proof.asked import Asked
from pytest_llmperf.engines.server.proof.self_report import KV_TOKENS, Reported
from pytest_llmperf.engines.server.running import Server, ServerLoop
from pytest_llmperf.engines.server.traffic import Requests
from pytest_llmperf.workloads import PromptSet

_OK = 200
_TOO_LONG = (400, 413, 422)
_SHOWN_BYTES = 4096
_LENGTH = re.compile(r"context|length|too (?:long|large)|tokens", re.IGNORECASE)
_SHARE_OF_CONTEXT = 4
_SHORT = 4
_WORDS = "number {} "


class Proof:
    """What was proved of one server: its settings, and the tokens that its KV cache holds."""

    def __init__(self, rows: tuple[ServerSetting, ...], reported: Mapping[str, Reported]) -> None:
        self.settings = rows
        capacity = reported.get(KV_TOKENS)
        self.kv_tokens = int(capacity.value) if capacity is not None else None

    @property
    def dtype(self) -> str:
        """The dtype that the server says it runs in; "" where it says none."""
        return next((row.value for row in self.settings if row.name == "dtype"), "")

    @property
    def notes(self) -> list[str]:
        """What it is in words."""
        return proved.notes(self.settings)


NOTHING = Proof((), {})


def prove(server: Server, requests: Requests, loop: ServerLoop) -> Proof:
    """Ask a server for its settings, and probe what it does not say.

    Raises NotInEffect where one is another than was asked for.
    """
    reported = loop.run(_reported(server))
    child = server.child
    wanted = asked.of_command(child.command) if child is not None else {}
    wanted |= asked.expected(server.options.expect)
    if server.options.probe:
        reported |= loop.run(_Probes(server, requests).shown(reported, wanted))
    return Proof(proved.settings(reported, wanted), reported)


async def _reported(server: Server) -> dict[str, Reported]:
    """Ask all paths at once: one that hangs takes no more time than all of them."""
    saying = server.saying
    plain = (self_report.SGLANG, self_report.TGI, self_report.LLAMA_CPP, self_report.MODELS)
    pages = await asyncio.gather(
        saying.json(f"{self_report.VLLM}?config_format=json"),
        *(saying.json(path) for path in plain),
        saying.metrics_page(),
    )
    paths = (self_report.VLLM, *plain, self_report.METRICS)
    return self_report.reported_settings(dict(zip(paths, pages, strict=True)), server.name)


def refused_for_length(status: int, words: str) -> bool:
    """Whether a refusal is about the length of a request. Pure."""
    return status in _TOO_LONG and _LENGTH.search(words) is not None


class _Probes:
    """Requests that show what a server does not say. One that fails shows nothing."""

    def __init__(self, server: Server, requests: Requests) -> None:
        self._server = server
        self._requests = requests
        self._client = requests.client(server.options.timeout_s)
        # No prompt of another session: a server that ran already may have kept those.
        self._prompts = PromptSet.synthetic(secrets.randbits(32))

    async def shown(
        self, reported: Mapping[str, Reported], wanted: Mapping[str, Asked]
    ) -> dict[str, Reported]:
        """Return the settings that probes show, by name."""
        context = reported.get("context")
        shown = {
            "context": await self._context(context, wanted.get("context")),
            "prefix_cache": reported.get("prefix_cache") or await self._prefix_cache(context),
        }
        return {name: value for name, value in shown.items() if value is not None}

    async def _prefix_cache(self, context: Reported | None) -> Reported | None:
        longest = int(context.value) // _SHARE_OF_CONTEXT if context else probes.PROBE_TOKENS
        length = max(1, min(probes.PROBE_TOKENS, longest))
        return await probes.prefix_cache(self._send, self._server.saying.metrics, length)

    async def _context(self, context: Reported | None, wanted: Asked | None) -> Reported | None:
        """Return the context with what a request past it shows; None where neither tells."""
        size = context.value if context is not None else wanted.value if wanted else ""
        prompt = self._prompt(0, _SHORT)
        if not (size and prompt.ids and self._requests.takes_ids):
            return context
        fits = await self._accepts(prompt, int(size) - len(prompt.ids))
        beyond = await self._accepts(prompt, int(size) - len(prompt.ids) + 1) if fits else None
        is_all = beyond is False
        if context is None:
            return Reported(size, probes.REFUSED) if is_all else None
        return Reported(size, f"{context.origin}; {probes.REFUSED}") if is_all else context

    async def _accepts(self, prompt: Prompt, n_tokens: int) -> bool | None:
        """Whether a request is answered with a stream, which is not waited for.

        False where the request is refused for its length. None where it fails for another reason,
        such as a limit of requests or a time-out, which says nothing of lengths.
        """
        body = self._requests.call(prompt, max(1, n_tokens)).body
        server = self._server
        try:
            async with server.http.post(
                self._requests.url, data=body, headers=server.headers, allow_redirects=False
            ) as response:
                if response.status == _OK:
                    return True
                words = (await response.content.read(_SHOWN_BYTES)).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        return False if refused_for_length(response.status, words) else None

    async def _send(self, number: int, n_tokens: int) -> RequestOutcome:
        call = self._requests.call(self._prompt(number, n_tokens), 1)
        (outcome,) = await self._client.together([call])
        return outcome

    def _prompt(self, number: int, n_tokens: int) -> Prompt:
        """Return a prompt of so many tokens; of words, where there is no tokenizer."""
        if self._requests.prompts.tokenizer is not None:
            return self._requests.prompts.prompt(self._prompts, n_tokens, number, 0)
        words = (_WORDS.format(self._prompts.seed + number * n_tokens + i) for i in range(n_tokens))
        return Prompt(text="".join(words))
