"""The text after "scripted:" as values: times, sizes, agreement, faults and lies of a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from pytest_llmperf import units
from pytest_llmperf.errors import UsageError, did_you_mean

_TIMES = {"ns": 1e-9, "us": units.us, "ms": units.ms, "s": units.s, "min": 60.0}
_SIZES = {
    "B": 1,
    **{name: getattr(units, name) for name in ("KB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB")},
}
_NUMBER = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)")
_FAULT = re.compile(r"([a-z_]+)@([a-z]+)(\d*)(?::rank(\d+))?")

PLACES = (
    "open",
    "describe",
    "run",
    "memory",
    "energy",
    "ceilings",
    "reference",
    "compare",
    "tokens",
    "tasks",
    "close",
)
FAULTS = {
    "die": "SIGKILL to itself",
    "exit": "leaves with exit code 3",
    "segv": "SIGSEGV to itself",
    "stop": "SIGSTOP to itself: no heartbeat any more",
    "hang": "waits for ever",
    "spin": "loops for ever in Python",
    "oom": "raises MemoryError",
    "cuda_oom": "raises an error of torch's class name OutOfMemoryError",
    "exhaust": "limits its own address space and allocates past the limit",
    "refuse": "raises LoadError",
    "invalid": "raises InvalidRun",
    "crash": "raises RuntimeError",
    "child": "starts a process that never ends, in a session of its own, and goes on",
    "short_output": "gives one token too few and does not say so",
    "unstable": "each run takes a tenth longer",
    "slow": "the run takes ten times as long",
    "right_padding": "pads on the right",
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and where: at every call of a kind, or at the `nth` only (from 1).

    On every rank, or on one.
    """

    kind: str
    place: str
    nth: int | None = None
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class ScriptedOptions:
    """Every option with its default.

    `weights_bytes` are those of float32 weights; other dtypes scale them. Without noise, `ttft_s`
    and `tpot_s` are exact for every request, whatever the batch and the prompt's length.

    `quality` is the share of teacher-forced positions where top-1 agrees with the reference; every
    other position has KL 1 nat and a log-probability lower by 1, so the perplexity ratio is
    exp(1 - quality) and the SQNR -10 log10(1 - quality) dB. `kl`, `perplexity` (ratio) and
    `sqnr_db` set one of them alone. `batch_quality` takes the place of `quality` where the batch is
    not the reference's. After a prompt that holds the token id `astray` the likeliest next tokens
    are others. A run takes `cpu_s_per_token` of CPU time for each output token, whatever the clock
    does (None: it cannot be read). Other programs use the share `others` of the cores meanwhile.

    `correlation` is the lag-1 autocorrelation of the noise from run to run of one process.
    `process` is how much processes differ: each time that the model is loaded, its times get a
    log-normal factor of this spread.

    Under traffic, `slots` requests are served at once (0: any number), the client is `late_s` late,
    and the server says that it preempted `preemptions` requests.
    """

    ttft_s: float = 0.05
    tpot_s: float = 0.01
    noise: float = 0.0
    correlation: float = 0.0
    process: float = 0.0
    warmup: int = 0
    load_s: float = 1.0
    seed: int = 0
    weights_bytes: int = 100 * units.MB
    activations_bytes: int = 10 * units.MB
    kv_bytes_per_token: int = 1 * units.KB
    vocab: int = 1000
    power_w: float | None = 100.0
    cpu_s_per_token: float | None = 0.01
    bandwidth_bytes_per_s: float = 100e9
    matmul_flop_per_s: float = 1e12
    quality: float = 1.0
    batch_quality: float | None = None
    kl: float | None = None
    perplexity: float | None = None
    sqnr_db: float | None = None
    rank: int = 1
    astray: int | None = None
    faults: tuple[Fault, ...] = ()
    lies: tuple[tuple[str, str], ...] = ()
    marks: tuple[str, ...] = ()
    others: float | None = None
    slots: int = 0
    late_s: float = 0.0
    preemptions: int = 0


Change = Callable[[ScriptedOptions], ScriptedOptions]


def parse(text: str, strategy: str) -> ScriptedOptions:
    """Return the options that hold under `strategy` (a '+'-joined list of parts).

    `key=value`, comma separated; `fault`, `lie` and `mark` may come several times. `bf16/key=value`
    holds only where all parts before the slash are in the strategy, and wins over the general one.

    Raises:
        UsageError: an unknown option, fault or place, or a value that does not parse.
    """
    parts = set(strategy.split("+"))
    options = ScriptedOptions()
    for condition, change in sorted(map(_item, _items(text)), key=lambda item: len(item[0])):
        if condition <= parts:
            options = change(options)
    return options


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _item(item: str) -> tuple[set[str], Change]:
    condition, key, value = _split(item)
    return condition, _change(key, value)


def _split(item: str) -> tuple[set[str], str, str]:
    key, equals, value = item.partition("=")
    condition, _, name = key.rpartition("/")
    if not equals:
        raise UsageError(
            f"scripted model option {item!r} has no value. "
            f"Write key=value; options: {', '.join(_READERS)}."
        )
    if name not in _READERS:
        near = did_you_mean(name, _READERS, otherwise=f"Options: {', '.join(_READERS)}.")
        raise UsageError(f"scripted model option {name!r} is not known.{near}")
    return set(condition.split("+")) if condition else set(), name, value


def _change(key: str, value: str) -> Change:
    field, read = _READERS[key]
    try:
        new = read(value)
    except ValueError as error:
        raise UsageError(f"scripted model option {key}={value!r}: {error}.") from error
    return lambda options: replace(options, **_set(options, field, new))


def _set(options: ScriptedOptions, field: str, new: object) -> dict[str, Any]:
    """Options that may come several times add up; the last of the others holds."""
    return {field: (*getattr(options, field), *new) if isinstance(new, tuple) else new}


def _quantity(text: str, scale: dict[str, float]) -> float:
    match = _NUMBER.fullmatch(text.strip())
    if match is None or match[2] not in scale:
        example = f"5{next(iter(scale))}"
        raise ValueError(
            f"a number with one of the units {', '.join(scale)} is needed, such as {example}"
        )
    return float(match[1]) * scale[match[2]]


def _time_s(text: str) -> float:
    return _quantity(text, _TIMES)


def _bytes(text: str) -> int:
    return round(_quantity(text, dict(_SIZES)))


def _watts(text: str) -> float | None:
    return None if text == "none" else _quantity(text, {"W": 1.0})


def _time_or_none_s(text: str) -> float | None:
    return None if text == "none" else _time_s(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("a share between 0 and 1 is needed")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("a whole number of at least 0 is needed")
    return value


def _fault(text: str) -> tuple[Fault, ...]:
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ValueError(
            "kind@place is needed, such as die@run, die@run3 (the third run) or crash@run:rank1"
        )
    kind, place = match.group(1, 2)
    _require_known("fault", kind, FAULTS)
    _require_known("place", place, PLACES)
    nth, rank = (int(group) if group else None for group in match.group(3, 4))
    return (Fault(kind=kind, place=place, nth=nth, rank=rank),)


def _require_known(noun: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        all_names = f"{noun.capitalize()}s: {', '.join(known)}"
        near = did_you_mean(name, known, otherwise=all_names)
        raise ValueError(f"{noun} {name!r} is not known.{near}")


def _lie(text: str) -> tuple[tuple[str, str], ...]:
    field, colon, value = text.partition(":")
    if not colon:
        raise ValueError("field:value is needed, such as weights_dtype:float32")
    return ((field, value),)


def _mark(text: str) -> tuple[str, ...]:
    return (text,)


_READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "ttft": ("ttft_s", _time_s),
    "tpot": ("tpot_s", _time_s),
    "noise": ("noise", float),
    "correlation": ("correlation", _share),
    "process": ("process", float),
    "warmup": ("warmup", _count),
    "load": ("load_s", _time_s),
    "seed": ("seed", int),
    "weights": ("weights_bytes", _bytes),
    "activations": ("activations_bytes", _bytes),
    "kv": ("kv_bytes_per_token", _bytes),
    "vocab": ("vocab", _count),
    "power": ("power_w", _watts),
    "cpu": ("cpu_s_per_token", _time_or_none_s),
    "bandwidth": ("bandwidth_bytes_per_s", _bytes),
    "matmul": ("matmul_flop_per_s", float),
    "quality": ("quality", _share),
    "batch_quality": ("batch_quality", _share),
    "kl": ("kl", float),
    "perplexity": ("perplexity", float),
    "sqnr": ("sqnr_db", float),
    "rank": ("rank", _count),
    "astray": ("astray", _count),
    "fault": ("faults", _fault),
    "lie": ("lies", _lie),
    "mark": ("marks", _mark),
    "others": ("others", _share),
    "slots": ("slots", _count),
    "late": ("late_s", _time_s),
    "preemptions": ("preemptions", _count),
}
