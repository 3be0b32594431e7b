"""The bodies of requests in each protocol, and what reads the answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_llmperf.engines.server.options import ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.engines.server.prompts import Prompt
from pytest_llmperf.engines.server.stream import Piece, parse_openai, parse_tgi


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A path, the body of a request for so many tokens, and the reader of a message."""

    path: str
    body: Callable[[Prompt, int, Asked], dict[str, Any]]
    parse: Callable[[bytes], Piece]
    ids: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is the same for all requests of a server.

    `fixed` makes an output have exactly the tokens asked for.
    """

    model: str
    preset: Preset
    prompt_ids: bool
    ignore_eos: bool

    @classmethod
    def of(cls, model: str, preset: Preset, options: ServerOptions) -> Asked:
        """From a server's preset and options."""
        return cls(
            model=model, preset=preset, prompt_ids=options.prompt_ids, ignore_eos=options.ignore_eos
        )

    def fixed(self, n: int) -> dict[str, Any]:
        """Fields for a fixed length of `n`; none where an output may end by itself."""
        return self.preset.fixed_length(n) if self.ignore_eos else {}

    @property
    def stream(self) -> dict[str, Any]:
        """Fields of every streamed request: greedy, with usage where the server can."""
        options = (
            {"stream_options": self.preset.stream_options} if self.preset.stream_options else {}
        )
        return {"model": self.model, "stream": True, "temperature": 0, **options}


def body(protocol: Protocol, prompt: Prompt, n: int, asked: Asked) -> bytes:
    """The JSON of one request."""
    return msgspec.json.encode(protocol.body(prompt, n, asked))


def _completions(prompt: Prompt, n: int, asked: Asked) -> dict[str, Any]:
    text: object = list(prompt.ids) if asked.prompt_ids and prompt.ids else prompt.text
    return {**asked.stream, "prompt": text, "max_tokens": n, **asked.fixed(n)}


def _chat(prompt: Prompt, n: int, asked: Asked) -> dict[str, Any]:
    return {
        **asked.stream,
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": n,
        **asked.fixed(n),
    }


# TGI serves one model, and has no fixed length.
def _tgi(prompt: Prompt, n: int, asked: Asked) -> dict[str, Any]:  # noqa: ARG001
    return {
        "inputs": prompt.text,
        "parameters": {"max_new_tokens": n, "do_sample": False, "details": True},
    }


PROTOCOLS = {
    "openai-completions": Protocol(
        path="/v1/completions", body=_completions, parse=parse_openai, ids=True
    ),
    "openai-chat": Protocol(path="/v1/chat/completions", body=_chat, parse=parse_openai),
    "tgi": Protocol(path="/generate_stream", body=_tgi, parse=parse_tgi),
}
