"""Options of a server engine (`@pytest.mark.llmperf(options={…})`), read and checked before anything is started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.server.presets import PROTOCOLS, Preset
from pytest_llmperf.errors import did_you_mean

KINDS: dict[str, type | tuple[type, ...]] = {
    "command": str,
    "url": str,
    "args": str,
    "program": str,
    "health": str,
    "protocol": str,
    "name": str,
    "api_key_env": str,
    "prefix_cache": bool,
    "prompt_ids": bool,
    "ignore_eos": bool,
    "start_timeout": (int, float),
    "stop_timeout": (int, float),
    "tokenizer": str,
}
"""Option -> its type. Their meaning is in docs/servers.md."""

SCHEMES = ("http", "https")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a plan asks of its server. Times in s.

    `command` and `url` exclude each other: one is there, or a preset's is.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    args: tuple[str, ...] = ()
    program: str = ""
    health: str
    protocol: str
    name: str = ""
    api_key: str = ""
    prefix_cache: bool = False
    prompt_ids: bool = False
    ignore_eos: bool = True
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    tokenizer: str = ""


def read_options(plan: LoadPlan, preset: Preset) -> ServerOptions:
    """The options of a plan that `refuse_options` has nothing against."""
    given = dict(plan.options)
    return ServerOptions(
        command=tuple(shlex.split(str(given.get("command", "")))),
        url=str(given.get("url", "")).rstrip("/"),
        args=tuple(shlex.split(str(given.get("args", "")))),
        program=str(given.get("program", "")),
        health=str(given.get("health", preset.health)),
        protocol=str(given.get("protocol", preset.protocol)),
        name=str(given.get("name", "")),
        api_key=os.environ.get(str(given.get("api_key_env", "")), ""),
        prefix_cache=bool(given.get("prefix_cache", False)),
        prompt_ids=bool(given.get("prompt_ids", preset.prompt_ids)),
        ignore_eos=bool(given.get("ignore_eos", True)),
        start_timeout_s=float(given.get("start_timeout", 600)),
        stop_timeout_s=float(given.get("stop_timeout", 10)),
        tokenizer=str(given.get("tokenizer", "")),
    )


def refuse_options(plan: LoadPlan, preset: Preset) -> str | None:
    """The first thing that is wrong with the options of a plan, in words that name the value.

    Or None.
    """
    given = dict(plan.options)
    for name, value in given.items():
        wanted = KINDS.get(name)
        if wanted is None:
            return f"option {name!r} is not known.{did_you_mean(name, KINDS)} Options: {', '.join(KINDS)}."
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            return f"option {name} = {value!r}: {_words(wanted)} is needed."
    return _refuse_where(given, preset) or _refuse_values(given)


def _refuse_where(given: Mapping[str, object], preset: Preset) -> str | None:
    named = [name for name in ("command", "url") if given.get(name)]
    if len(named) > 1:
        return "options 'command' and 'url' exclude each other: a server is started, or it runs already."
    if not preset.name and not named:
        return "which server? Give option 'command' (with {port} in it) or 'url', or a preset: engine='server:vllm'."
    if preset.name and "command" in named:
        return f"engine 'server:{preset.name}' has a command. Add to it with option 'args', or use engine='server'."
    command = str(given.get("command", ""))
    if command and "{port}" not in command:
        return f"option command = {command!r} has no {{port}}: the server would not listen where we ask it to."
    url = urlsplit(str(given.get("url", "http://localhost")))
    if url.scheme not in SCHEMES or not url.hostname:
        return f"option url = {given['url']!r}: an http or https URL is needed, for example 'http://127.0.0.1:8000'."
    return None


def _refuse_values(given: Mapping[str, object]) -> str | None:
    protocol = str(given.get("protocol", PROTOCOLS[0]))
    if protocol not in PROTOCOLS:
        near = did_you_mean(protocol, PROTOCOLS)
        return (
            f"option protocol = {protocol!r} is not known.{near} Protocols: {', '.join(PROTOCOLS)}."
        )
    variable = str(given.get("api_key_env", ""))
    if variable and not os.environ.get(variable):
        return f"option api_key_env = {variable!r}: that variable is not set. Set it to the server's API key."
    for name in ("start_timeout", "stop_timeout"):
        value = given.get(name, 1)
        if isinstance(value, int | float) and value <= 0:
            return f"option {name} = {value!r}: seconds above 0 are needed."
    return None


def _words(wanted: type | tuple[type, ...]) -> str:
    return " or ".join(t.__name__ for t in wanted) if isinstance(wanted, tuple) else wanted.__name__
