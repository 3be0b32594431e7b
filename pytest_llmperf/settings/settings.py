"""What a session was asked to do: the options of `settings/options.py`, read and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.names import DEVICE_MEANINGS
from pytest_llmperf.settings.options import OPTIONS, Option

if TYPE_CHECKING:
    from pytest_llmperf.settings.against_target import Target
    from pytest_llmperf.settings.server_target import ServerTarget

DEVICES = ("auto", "cuda", "cpu")
START_METHODS = ("forkserver", "spawn")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What this session was asked to do. Times in seconds; `precision` is a relative half-width."""

    skip: bool
    disable: bool
    strict: bool
    in_process: bool
    allow_load: bool
    gate: dict[str, float] | None
    require_accepted: bool
    any_tree: bool
    against: Target | None
    against_limits: dict[str, float] | None
    against_budget_s: float
    against_build: str
    server: ServerTarget | None
    start_method: str
    device: str
    gpus: str
    cluster: str
    wait_s: float
    plan_json: Path | None
    waivers: Path
    again_budget_s: float
    strategies: tuple[str, ...]
    reference: str
    store: str
    json: Path | None
    budget_s: float
    precision: float
    processes: int | None
    timeout_s: float
    pythons: dict[str, str]
    benchmark_json: Path | None
    html: Path | None
    root: Path


_AS_THEY_ARE = (
    "skip",
    "disable",
    "strict",
    "in-process",
    "allow-load",
    "require-accepted",
    "any-tree",
    "against-build",
    "gpus",
    "store",
)
SECONDS = ("against-budget", "wait", "again-budget", "budget", "timeout")
_FILES = ("plan-json", "json", "benchmark-json", "html")


def read(raw: Callable[[Option], Any], root: Path) -> Settings:
    """Settings from a function that gives each option's raw value.

    Raises UsageError for a value that cannot be used.
    """
    values = {option.name: raw(option) for option in OPTIONS}
    return Settings(
        **_plain_fields(values, root),
        **_judged(values, root),
        device=READERS["device"](values["device"]),
        start_method=READERS["start-method"](values["start-method"]),
        cluster=read_cluster(values["cluster"], values["against"]),
        server=READERS["server"](values["server"]),
        strategies=READERS["strategy"](values["strategy"]),
        reference=READERS["reference"](values["reference"]),
        precision=READERS["precision"](values["precision"]),
        processes=READERS["processes"](values["processes"]),
        pythons=READERS["python"](values["python"]),
        root=root,
    )


def _plain_fields(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Options that are taken as they are, times, and files of the project."""
    fields = {name: values[name] for name in _AS_THEY_ARE}
    fields |= {f"{name}-s": positive(name, values[name]) for name in SECONDS}
    fields |= {name: root / values[name] if values[name] else None for name in _FILES}
    return {name.replace("-", "_"): value for name, value in fields.items()}


def _judged(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """What is judged, and against what."""
    return {
        "gate": _gate(values["gate"]),
        "against": against(values["against"], root),
        "against_limits": READERS["against-limits"](values["against-limits"]),
        "waivers": root / values["waivers"],
    }


def _choice(
    name: str, value: str, choices: tuple[str, ...], meanings: Mapping[str, str] | None = None
) -> str:
    if value not in choices:
        all_choices = f"Choices: {', '.join(choices)}."
        near = did_you_mean(value, choices, meanings, otherwise=all_choices)
        raise UsageError(f"--llmperf-{name}={value!r} is not known.{near}")
    return value


def read_cluster(text: str, against: str) -> str:
    """What `--llmperf-cluster` names, "" for this host. Raises UsageError."""
    if not text.strip():
        return ""
    # Only where a cluster is named.
    from pytest_llmperf.settings.cluster_address import parse  # noqa: PLC0415

    if against:
        raise UsageError(
            f"--llmperf-cluster={text!r} and --llmperf-against={against!r}: "
            "the hosts of a cluster have one version of this project, so there is nothing to "
            "compare it with there. Leave one of the two out."
        )
    return parse(text)


def _strategies(text: str) -> tuple[str, ...]:
    strategies = tuple(filter(None, map(str.strip, text.split(","))))
    for strategy in strategies:
        _strategy("strategy", strategy)
    return strategies


def _strategy(name: str, text: str) -> str:
    # The table of strategies, once tests are collected.
    from pytest_llmperf.strategies import parse  # noqa: PLC0415

    try:
        parse(text)
    except UsageError as error:
        raise UsageError(f"--llmperf-{name}={text!r}: {error}") from error
    return text


def _gate(text: str) -> dict[str, float] | None:
    # The table of metrics, once tests are collected.
    from pytest_llmperf.settings.limits import parse_gate  # noqa: PLC0415

    return parse_gate(text)


def against(text: str, root: Path) -> Target | None:
    """What `--llmperf-against` names. Raises UsageError."""
    if not text:
        return None
    # Git is asked, only where it is needed.
    from pytest_llmperf.settings.against_target import find_target  # noqa: PLC0415

    return find_target(text, root)


def _against_limits(text: str) -> dict[str, float] | None:
    from pytest_llmperf.settings.limits import parse_limits  # noqa: PLC0415 - as above

    return parse_limits(text, "--llmperf-against-limits") if text.strip() else None


def _server(text: str) -> ServerTarget | None:
    from pytest_llmperf.settings.server_target import find_server  # noqa: PLC0415 - as above

    return find_server(text)


def positive(name: str, value: str) -> float:
    """The number that an option has. Raises UsageError for any that is not above 0."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UsageError(
            f"--llmperf-{name}={value!r}: a number above 0 is needed, "
            f"for example --llmperf-{name}={_plain_number(value) or _default(name)}."
        )
    return number


def _plain_number(value: str) -> str:
    """The number of a text such as '20s' or '1%', without its unit; "" where there is none."""
    number = value.strip().rstrip("s%").strip()
    return number if number.replace(".", "", 1).isdecimal() and float(number) > 0 else ""


_COUNT = re.compile("0*[1-9][0-9]{0,8}", re.ASCII)


def _processes(text: str) -> int | None:
    """The number of processes, None for as many as pay."""
    if text.strip() == "auto":
        return None
    if not _COUNT.fullmatch(text.strip()):
        raise UsageError(
            f"--llmperf-processes={text!r}: a whole number of at least 1 is needed, or auto."
        )
    return int(text)


def sessions(text: str) -> int:
    """The number of sessions of --llmperf-record. Raises UsageError."""
    if not _COUNT.fullmatch(text.strip()):
        raise UsageError(
            f"--llmperf-record={text!r}: a whole number of at least 1 is needed. "
            "The gate needs 8 sessions: --llmperf-record=8."
        )
    return int(text)


def _default(name: str) -> str:
    return next(option.default for option in OPTIONS if option.name == name)


def _interpreter(text: str) -> tuple[str, str]:
    engine, separator, path = text.partition("=")
    # Pathlib raises for a name that is too long.
    if not separator or not os.path.isfile(path):  # noqa: PTH113
        raise UsageError(
            f"--llmperf-python={text!r}: ENGINE=PATH with an existing interpreter is needed, "
            "for example transformers=.venv/bin/python.",
        )
    from pytest_llmperf import engines  # noqa: PLC0415 - only where an interpreter is named
    from pytest_llmperf.workloads.serve_checks import GENERATORS  # noqa: PLC0415 - as above

    if engine in GENERATORS:
        return engine, str(Path(path).absolute())
    return engines.engine(engine).name, str(Path(path).absolute())


def _interpreters(texts: Iterable[str]) -> dict[str, str]:
    return dict(map(_interpreter, texts))


READERS: Mapping[str, Callable[[Any], Any]] = {
    "device": lambda text: _choice("device", text, DEVICES, DEVICE_MEANINGS),
    "start-method": lambda text: _choice("start-method", text, START_METHODS),
    "strategy": _strategies,
    "reference": lambda text: _strategy("reference", text),
    "against-limits": _against_limits,
    "server": _server,
    "precision": lambda text: positive("precision", text) / 100,
    "processes": _processes,
    "python": _interpreters,
    "record": sessions,
}
"""Option -> what makes its value of the text that was given. Each raises UsageError."""
