"""Another server for the tests of server engines: what `--llmperf-server` names.

`--llmperf-against` takes the same words: two servers are then measured side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from pytest_llmperf.errors import UsageError

_ENGINE = "server"
_SCHEMES = ("http", "https")
_KINDS = ("image", "command", "program", "args")
_WHOLE = frozenset({"url", "command", "program", "image"})
"""Options that say which server is measured: a target has one of them."""

_OF_A_PROCESS = frozenset({"args", "image_args", "restart"})

EXPECTED = (
    "A server is a URL (http://10.0.0.7:8000), image:NAME, command:… (with {port} in it), "
    "program:PATH (the executable of a preset) or args:… (its arguments)"
)


class ServerTarget(Struct, frozen=True, kw_only=True):
    """One server: the option of a server engine that names it, and its value."""

    kind: Literal["url", "image", "command", "program", "args"]
    value: str


def is_server(text: str) -> bool:
    """Whether a text names a server: a URL, or a kind and its value."""
    kind, colon, _ = text.strip().partition(":")
    return bool(colon) and kind.lower() in (*_SCHEMES, *_KINDS)


def find_server(text: str, option: str = "--llmperf-server") -> ServerTarget | None:
    """Return what a text names; None for an empty one. Raises UsageError where it is no server."""
    text = text.strip()
    if not text:
        return None
    kind, colon, value = text.partition(":")
    if kind.lower() in _SCHEMES and urlsplit(text).hostname:
        return ServerTarget(kind="url", value=text)
    if not colon or kind not in _KINDS or not value.strip():
        raise UsageError(f"{option}={text!r} names no server. {EXPECTED}.")
    if kind == "command" and "{port}" not in value:
        raise UsageError(
            f"{option}={text!r} has no {{port}}: the server would not listen where we ask it to."
        )
    named: Any = kind
    return ServerTarget(kind=named, value=value.strip())


def serves(engine: str) -> bool:
    """Whether an engine's tests can be measured on another server."""
    return engine.partition(":")[0] == _ENGINE


def with_server(
    options: Mapping[str, Any], engine: str, target: ServerTarget | None
) -> dict[str, Any]:
    """Return the options of a test's engine on another server; as they are for other engines.

    Names, keys, paths and tokenizers stay. Raises UsageError for a server that the engine has no
    use for.
    """
    if target is None or not serves(engine):
        return dict(options)
    _require_use(engine, target)
    # A preset's own arguments stay with another program or image; a URL has none.
    dropped = _WHOLE if target.kind in {"image", "program", "args"} else _WHOLE | _OF_A_PROCESS
    kept = {name: value for name, value in options.items() if name not in dropped}
    if target.kind in {"image", "args"} and engine == _ENGINE and "command" in options:
        kept["command"] = options["command"]
    if target.kind == "args":
        kept |= {name: options[name] for name in ("program", "image") if name in options}
    return {**kept, target.kind: target.value}


def _require_use(engine: str, target: ServerTarget) -> None:
    is_preset = engine != _ENGINE
    if is_preset and target.kind == "command":
        raise UsageError(
            f"engine {engine!r} has a command of its own: name program:PATH, args:… or image:NAME "
            f"in the place of command:{target.value}."
        )
    if not is_preset and target.kind == "program":
        raise UsageError(
            f"engine 'server' has no program but its command: name command:… in the place of "
            f"program:{target.value}."
        )
