"""The bodies of requests in each protocol, and what reads the answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_llmperf.engines.server.messages.protocols import Parse, parse_openai, parse_tgi
from pytest_llmperf.engines.server.options import NO_CHANGES, FieldChanges, ServerOptions
from pytest_llmperf.engines.server.presets import Preset
from pytest_llmperf.engines.server.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A path, the body of a request for so many tokens, and the reader of a message."""

    path: str
    body: Callable[[Prompt, int, RequestDefaults], dict[str, Any]]
    parse: Parse
    ids: bool = False


@dataclass(frozen=True, kw_only=True)
class RequestDefaults:
    """What is the same for all requests of a server."""

    model: str
    preset: Preset
    prompt_ids: bool
    ignore_eos: bool
    fields: FieldChanges = NO_CHANGES

    @classmethod
    def of(cls, model: str, preset: Preset, options: ServerOptions) -> RequestDefaults:
        """Take them from a server's preset and options."""
        return cls(
            model=model,
            preset=preset,
            prompt_ids=options.prompt_ids,
            ignore_eos=options.ignore_eos,
            fields=options.fields,
        )

    def fixed(self, n: int) -> dict[str, Any]:
        """Return the fields for a fixed length of `n`; none where an output may end by itself."""
        return self.preset.fixed_length(n) if self.ignore_eos else {}

    @property
    def stream(self) -> dict[str, Any]:
        """Fields of every streamed request: greedy, with usage where the server can."""
        fields: dict[str, Any] = {"model": self.model, "stream": True, "temperature": 0}
        if self.preset.stream_options:
            fields["stream_options"] = self.preset.stream_options
        return fields


def body(protocol: Protocol, prompt: Prompt, n: int, defaults: RequestDefaults) -> bytes:
    """Return the JSON of one request, with the changes of its fields that were asked for."""
    return msgspec.json.encode(changed(protocol.body(prompt, n, defaults), defaults.fields))


def changed(fields: Mapping[str, Any], changes: FieldChanges) -> dict[str, Any]:
    """Return the fields of a request without those to drop, renamed, and with those to add."""
    renamed = {
        changes.renamed.get(name, name): value
        for name, value in fields.items()
        if name not in changes.dropped
    }
    return renamed | changes.added


def _completions(prompt: Prompt, n: int, defaults: RequestDefaults) -> dict[str, Any]:
    ids_or_text = _ids_or_text(prompt, defaults)
    return {**defaults.stream, "prompt": ids_or_text, "max_tokens": n, **defaults.fixed(n)}


def _ids_or_text(prompt: Prompt, defaults: RequestDefaults) -> list[int] | str:
    """Return a prompt's ids where the server takes them and we have them, else its text."""
    return list(prompt.ids) if defaults.prompt_ids and prompt.ids else prompt.text


def _chat(prompt: Prompt, n: int, defaults: RequestDefaults) -> dict[str, Any]:
    return {
        **defaults.stream,
        "messages": list(prompt.messages) or [{"role": "user", "content": prompt.text}],
        "max_tokens": n,
        **defaults.fixed(n),
    }


def _tgi(prompt: Prompt, n: int, defaults: RequestDefaults) -> dict[str, Any]:  # noqa: ARG001
    """TGI serves one model, and has no fixed length."""
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
