"""Which settings a server's command line asks for, and which a test says it expects. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_llmperf.engines.server.proof.self_report import NONE, OFF, ON, SETTINGS, UNRESOLVED
from pytest_llmperf.errors import did_you_mean


class Asked(NamedTuple):
    """What was asked for, and by which words."""

    value: str
    words: str


_FLAGS: dict[str, str] = {
    "--dtype": "dtype",
    "--quantization": "quantization",
    "-q": "quantization",
    "--quantize": "quantization",
    "--tensor-parallel-size": "tensor_parallel",
    "-tp": "tensor_parallel",
    "--tp-size": "tensor_parallel",
    "--tp": "tensor_parallel",
    "--num-shard": "tensor_parallel",
    "--kv-cache-dtype": "kv_dtype",
    "--max-model-len": "context",
    "--context-length": "context",
    "--max-total-tokens": "context",
    "--ctx-size": "context",
    "-c": "context",
    "--speculative-config": "speculation",
    "--speculative-algorithm": "speculation",
    "--speculate": "speculation",
    "--model-draft": "speculation",
    "-md": "speculation",
}
"""Flags with a value, of vLLM, SGLang, TGI and llama.cpp -> the setting that each asks for."""

_SWITCHES: dict[str, tuple[str, str]] = {
    "--enable-prefix-caching": ("prefix_cache", ON),
    "--no-enable-prefix-caching": ("prefix_cache", OFF),
    "--disable-radix-cache": ("prefix_cache", OFF),
}
"""Flags without a value -> the setting, and what they ask for."""

_ALIASES = {
    "half": "float16",
    "fp16": "float16",
    "float": "float32",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "false": OFF,
    "true": ON,
}
_THOUSANDS = re.compile(r"(\d+)([kK])")
_K = {"k": 1000, "K": 1024}

_SEPARATOR = re.compile(r"[,\s]+")


def of_command(command: Sequence[str]) -> dict[str, Asked]:
    """Return what the arguments of a server ask for; the last of equal flags counts."""
    asked: dict[str, Asked] = {}
    for flag, value in _pairs(command):
        if flag in _SWITCHES:
            name, switched = _SWITCHES[flag]
            asked[name] = Asked(switched, flag)
        elif flag in _FLAGS and value is not None:
            name = _FLAGS[flag]
            wanted = _wanted(name, value)
            if wanted:
                asked[name] = Asked(wanted, f"{flag} {value}")
    return asked


def _pairs(command: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Give every flag with the word after it, or after its '='."""
    for at, word in enumerate(command):
        if not word.startswith("-"):
            continue
        flag, equals, value = word.partition("=")
        following = command[at + 1] if at + 1 < len(command) else None
        yield flag.replace("_", "-"), value if equals else following


def _wanted(name: str, value: str) -> str:
    if name == "speculation":
        return OFF if value in UNRESOLVED | {"0"} else ON
    if name == "quantization" and value in UNRESOLVED:
        return NONE
    if name in {"context", "tensor_parallel"}:
        return _number(value)
    return "" if value in UNRESOLVED else plain(value)


def _number(value: str) -> str:
    """Return a whole number above 0 as text; "" for `auto`, `-1` and the like."""
    thousands = _THOUSANDS.fullmatch(value)
    if thousands:
        return str(int(thousands[1]) * _K[thousands[2]])
    return value if value.isdecimal() and int(value) else ""


def plain(value: str) -> str:
    """Return a value under its own name: `bf16` is bfloat16, every 8-bit float of a cache fp8."""
    text = value.removeprefix("torch.")
    return _ALIASES.get(text.lower(), text)


def expected(text: str) -> dict[str, Asked]:
    """Return what option `expect` says, as `expect_refusal` has nothing against."""
    pairs = (word.partition("=") for word in words(text))
    return {name: Asked(plain(value), f"expect {name}={value}") for name, _, value in pairs}


def words(text: str) -> list[str]:
    """Return the pairs of option `expect`: parted by blanks or commas."""
    return [word for word in _SEPARATOR.split(text) if word]


def expect_refusal(text: str) -> str | None:
    """Return what is wrong with option `expect`, or None."""
    for word in words(text):
        name, equals, value = word.partition("=")
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS)
            return (
                f"option expect = {text!r}: {name!r} is not a setting.{near} "
                f"Settings: {', '.join(SETTINGS)}."
            )
        if not equals or not value:
            return f"option expect = {text!r}: {name} needs a value, for example '{_example(name)}'"
    return None


def _example(name: str) -> str:
    examples: Mapping[str, str] = {
        "dtype": "bfloat16",
        "kv_dtype": "fp8",
        "quantization": "awq",
        "tensor_parallel": "2",
        "context": "4096",
    }
    return f"{name}={examples.get(name, OFF)}"


def agrees(asked: str, proved: str) -> bool:
    """Whether a proved value is what was asked for; "on" asks for any kind of it."""
    if asked == ON:
        return proved != OFF
    return plain(asked) == plain(proved) or plain(proved).startswith(f"{asked},")
