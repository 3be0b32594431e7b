"""Options of a server engine (`@pytest.mark.llmperf(options={…})`).

They are read and checked before anything is started.
"""

from __future__ import annotations

import os
import re
import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.refusals import first_reason
from pytest_llmperf.engines.server.presets import PROTOCOLS, Preset
from pytest_llmperf.engines.server.proof.asked import expect_refusal
from pytest_llmperf.engines.server.proof.self_report import METRICS
from pytest_llmperf.engines.server.starting.addresses import has_address
from pytest_llmperf.errors import did_you_mean
from pytest_llmperf.secrets import hide

KINDS: dict[str, tuple[type, ...]] = {
    "command": (str,),
    "url": (str,),
    "args": (str,),
    "program": (str,),
    "image": (str,),
    "image_args": (str,),
    "restart": (str,),
    "health": (str,),
    "path": (str,),
    "protocol": (str,),
    "add_fields": (str,),
    "rename_fields": (str,),
    "drop_fields": (str,),
    "name": (str,),
    "api_key_env": (str,),
    "prefix_cache": (bool,),
    "prompt_ids": (bool,),
    "ignore_eos": (bool,),
    "ca_file": (str,),
    "timeout": (int, float),
    "start_timeout": (int, float),
    "stop_timeout": (int, float),
    "tokenizer": (str,),
    "expect": (str,),
    "probe": (bool,),
    "metrics": (str,),
    "client_processes": (int,),
}
"""Option -> its types. Their meaning is in docs/servers.md."""

ANSWER_TIMEOUT_S = 600.0
"""Longest wait for the next message of an answer, where nothing else is asked for."""

_API_ROOT = "/v1"
_FIELD_NAMES = re.compile(r"[,\s]+")


@dataclass(frozen=True, kw_only=True)
class FieldChanges:
    """What is added to the fields of each request, what is left out, and what has another name."""

    added: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()


NO_CHANGES = FieldChanges()


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a plan asks of its server. Times in s.

    `command` and `url` exclude each other: one is there, or a preset's is.
    """

    command: tuple[str, ...] = ()
    url: str = ""
    args: tuple[str, ...] = ()
    program: str = ""
    image: str = ""
    image_args: tuple[str, ...] = ()
    restart: str = ""
    health: str
    path: str = ""
    protocol: str
    fields: FieldChanges = NO_CHANGES
    name: str = ""
    api_key: str = ""
    prefix_cache: bool = False
    prompt_ids: bool = False
    ignore_eos: bool = True
    ca_file: str = ""
    timeout_s: float = ANSWER_TIMEOUT_S
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    tokenizer: str = ""
    expect: str = ""
    probe: bool = True
    metrics: str = METRICS
    client_processes: int = 1


def read_options(plan: LoadPlan, preset: Preset) -> ServerOptions:
    """Return the options of a plan that `options_refusal` has nothing against."""
    options = dict(plan.options)

    def text(name: str, default: str = "") -> str:
        return str(options.get(name, default))

    api_key = os.environ.get(text("api_key_env"), "").strip()
    hide(api_key)
    return ServerOptions(
        command=tuple(shlex.split(text("command"))),
        url=_base(text("url")),
        args=tuple(shlex.split(text("args"))),
        image_args=tuple(shlex.split(text("image_args"))),
        health=text("health", preset.health),
        protocol=text("protocol", preset.protocol),
        fields=_field_changes(options),
        api_key=api_key,
        prompt_ids=bool(options.get("prompt_ids", preset.prompt_ids)),
        metrics=text("metrics", METRICS),
        **_texts(options),
        **_switches_and_numbers(options),
    )


_TEXTS = ("program", "image", "restart", "path", "name", "ca_file", "tokenizer", "expect")
"""Options that are taken as they are; "" where they are not given."""


def _texts(options: Mapping[str, object]) -> dict[str, Any]:
    return {name: str(options.get(name, "")) for name in _TEXTS}


def _switches_and_numbers(options: Mapping[str, object]) -> dict[str, Any]:
    """Return the options that are truth values, seconds and counts."""
    values: dict[str, Any] = dict(options)
    return {
        "prefix_cache": bool(values.get("prefix_cache", False)),
        "ignore_eos": bool(values.get("ignore_eos", True)),
        "probe": bool(values.get("probe", True)),
        "timeout_s": float(values.get("timeout", ANSWER_TIMEOUT_S)),
        "start_timeout_s": float(values.get("start_timeout", 600)),
        "stop_timeout_s": float(values.get("stop_timeout", 10)),
        "client_processes": int(values.get("client_processes", 1)),
    }


def _base(url: str) -> str:
    """Return the URL below which paths begin: without /v1, as OpenAI's client wants it."""
    return url.rstrip("/").removesuffix(_API_ROOT).rstrip("/")


def _field_changes(options: Mapping[str, object]) -> FieldChanges:
    added = str(options.get("add_fields", ""))
    return FieldChanges(
        added=msgspec.json.decode(added) if added else {},
        renamed=dict(_pair(word) for word in _words(options, "rename_fields")),
        dropped=frozenset(_words(options, "drop_fields")),
    )


def _words(options: Mapping[str, object], name: str) -> list[str]:
    return [word for word in _FIELD_NAMES.split(str(options.get(name, ""))) if word]


def _pair(word: str) -> tuple[str, str]:
    name, _, new_name = word.partition("=")
    return name, new_name


def options_refusal(plan: LoadPlan, preset: Preset) -> str | None:
    """Return the first thing that is wrong with the options of a plan, or None.

    The words name the value.
    """
    options = dict(plan.options)
    return (
        _types_refusal(options)
        or _command_or_url_refusal(options, preset)
        or first_reason(check(options) for check in _CHECKS)
    )


def _types_refusal(options: Mapping[str, object]) -> str | None:
    return first_reason(_type_refusal(name, value) for name, value in options.items())


def _type_refusal(name: str, value: object) -> str | None:
    types = KINDS.get(name)
    if types is None:
        return _unknown_option(name)
    return None if _has_type(value, types) else _mistyped_option(name, value, types)


def _unknown_option(name: str) -> str:
    near = did_you_mean(name, KINDS, otherwise=f"Options: {', '.join(KINDS)}.")
    return f"option {name!r} is not known.{near}"


def _mistyped_option(name: str, value: object, types: tuple[type, ...]) -> str:
    return f"option {name} = {value!r}: {' or '.join(t.__name__ for t in types)} is needed."


def _has_type(value: object, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; a bool does not count as a number."""
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types)


def _command_or_url_refusal(options: Mapping[str, object], preset: Preset) -> str | None:
    """Refuse options that name no server, or two."""
    command, url = bool(options.get("command")), bool(options.get("url"))
    if command and url:
        return (
            "options 'command' and 'url' exclude each other: "
            "a server is started, or it runs already."
        )
    if url and options.get("image"):
        return "options 'image' and 'url' exclude each other: a server at a URL runs already."
    if options.get("restart") and not url:
        return "option 'restart' is for a server at a URL: every other one is started anew by us."
    if not preset.name and not (command or url):
        return (
            "which server? Give option 'command' (with {port} in it) or 'url', "
            "or a preset: engine='server:vllm'."
        )
    if preset.name and command:
        return (
            f"engine 'server:{preset.name}' has a command. "
            "Add to it with option 'args', or use engine='server'."
        )
    return None


def _command_refusal(options: Mapping[str, object]) -> str | None:
    command = str(options.get("command", ""))
    if not command or "{port}" in command:
        return None
    return (
        f"option command = {command!r} has no {{port}}: "
        "the server would not listen where we ask it to."
    )


_URL_NEEDED = "an http or https URL is needed, for example 'http://127.0.0.1:8000'."


def _url_refusal(options: Mapping[str, object]) -> str | None:
    try:
        url = urlsplit(str(options.get("url", "http://localhost")))
    except ValueError as error:
        return f"option url = {options['url']!r} is no URL ({error}): {_URL_NEEDED}"
    if url.query or url.fragment:
        return (
            f"option url = {options['url']!r} has a query or a fragment: only what paths are added "
            "to is needed. Name the path of requests by option 'path'."
        )
    if url.username or url.password:
        return (
            "option url has a user or a password in it, and it goes on record. "
            "Name the variable that holds the API key by option 'api_key_env'."
        )
    if has_address(url):
        return None
    return f"option url = {options['url']!r}: {_URL_NEEDED}"


def _path_refusal(options: Mapping[str, object]) -> str | None:
    for name in ("path", "health"):
        path = str(options.get(name, "/"))
        if not path.startswith("/"):
            return f"option {name} = {path!r}: a path begins with '/', for example '/{path}'."
    return None


def _fields_refusal(options: Mapping[str, object]) -> str | None:
    for word in _words(options, "rename_fields"):
        if not all(_pair(word)):
            return (
                f"option rename_fields = {options['rename_fields']!r}: pairs of names are needed, "
                "for example 'max_tokens=max_completion_tokens'."
            )
    added = str(options.get("add_fields", "{}"))
    if _is_json_object(added):
        return None
    return (
        f"option add_fields = {added!r}: a JSON object is needed, for example '{{\"top_k\": 1}}'."
    )


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _ca_file_refusal(options: Mapping[str, object]) -> str | None:
    ca_file = str(options.get("ca_file", ""))
    if not ca_file:
        return None
    try:
        ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        return (
            f"option ca_file = {ca_file!r} cannot be read as certificates: {error}. "
            "Name a PEM file of those to trust."
        )
    return None


def _protocol_refusal(options: Mapping[str, object]) -> str | None:
    protocol = str(options.get("protocol", PROTOCOLS[0]))
    return None if protocol in PROTOCOLS else _unknown_protocol(protocol)


def _unknown_protocol(protocol: str) -> str:
    near = did_you_mean(protocol, PROTOCOLS, otherwise=f"Protocols: {', '.join(PROTOCOLS)}.")
    return f"option protocol = {protocol!r} is not known.{near}"


def _api_key_refusal(options: Mapping[str, object]) -> str | None:
    variable = str(options.get("api_key_env", ""))
    key = os.environ.get(variable, "").strip()
    if variable and key and not key.isprintable():
        return (
            f"option api_key_env = {variable!r}: the key in it has a line break or another control "
            "character inside, which no header can have. Is there more than the key in it?"
        )
    if not variable or key:
        return None
    return (
        f"option api_key_env = {variable!r}: that variable is not set. "
        "Set it to the server's API key."
    )


def _timeout_refusal(options: Mapping[str, object]) -> str | None:
    for name in ("timeout", "start_timeout", "stop_timeout"):
        value = options.get(name, 1)
        if _is_no_time(value):
            return f"option {name} = {value!r}: seconds above 0 are needed."
    return None


def _is_no_time(value: object) -> bool:
    return isinstance(value, int | float) and value <= 0


def _expect_refusal(options: Mapping[str, object]) -> str | None:
    return expect_refusal(str(options.get("expect", "")))


def _processes_refusal(options: Mapping[str, object]) -> str | None:
    value = options.get("client_processes", 1)
    if isinstance(value, int) and value >= 1:
        return None
    return f"option client_processes = {value!r}: a whole number of at least 1 is needed."


def _metrics_refusal(options: Mapping[str, object]) -> str | None:
    page = str(options.get("metrics", METRICS))
    if page.startswith("/") or has_address(urlsplit(page)):
        return None
    return (
        f"option metrics = {page!r}: a path below the server's URL, or a URL of its own, is "
        "needed, for example '/metrics' or 'http://127.0.0.1:8080/metrics'."
    )


_CHECKS = (
    _expect_refusal,
    _processes_refusal,
    _metrics_refusal,
    _command_refusal,
    _url_refusal,
    _path_refusal,
    _fields_refusal,
    _ca_file_refusal,
    _protocol_refusal,
    _api_key_refusal,
    _timeout_refusal,
)
