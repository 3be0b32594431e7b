"""Which GPUs a test needs, which the session may use, and whether the one is to be had from the other. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from pytest_llmperf.devices.inventory import Gpu, Inventory
from pytest_llmperf.errors import UsageError, did_you_mean

REASON = "llmperf-gpus: "
"""What every reason of a skip begins with."""


class Need(Struct, frozen=True, kw_only=True):
    """What `@pytest.mark.llmperf_gpus` asks for. `most` None: as many as the pool has.

    Sizes in bytes.

    `memory` is what the test takes on each device, `total_memory` how large each device must be,
    `capability` the least compute capability, `name` a part of the device's name.
    """

    least: int = 1
    most: int | None = 1
    memory: int | None = None
    total_memory: int | None = None
    capability: tuple[int, int] | None = None
    name: str = ""

    def __str__(self) -> str:
        conditions = [text for text in self._conditions().values() if text]
        return _count(self.least) + (f" with {', '.join(conditions)}" if conditions else "")

    def _conditions(self) -> dict[str, str]:
        return {
            "memory": f"memory >= {_gb(self.memory)}" if self.memory else "",
            "total_memory": f"total_memory >= {_gb(self.total_memory)}"
            if self.total_memory
            else "",
            "capability": f"capability >= {self.capability[0]}.{self.capability[1]}"
            if self.capability
            else "",
            "name": f"name {self.name!r}" if self.name else "",
        }


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a need cannot be met: how many devices are needed, and how many of the pool's would do."""

    needs: int
    pool: int
    eligible: int
    text: str

    @property
    def reason(self) -> str:
        """One line, the same form for every test."""
        return f"{REASON}{self.text}"

    def as_json(self) -> str:
        """The counts, for machines."""
        return f'{{"needs": {self.needs}, "pool": {self.pool}, "eligible": {self.eligible}}}'


class GpuPool(Struct, frozen=True, kw_only=True):
    """The GPUs that this session may use, and what was asked for to get them."""

    gpus: tuple[Gpu, ...]
    asked: str
    inventory: Inventory

    def __str__(self) -> str:
        if not self.inventory.gpus:
            return f"no GPU is seen: {self.inventory.why_none}"
        alike = Counter(f"{gpu.name}, {gpu.total_bytes / 1e9:.0f} GB" for gpu in self.gpus)
        devices = ", ".join(f"{n} x {kind}" for kind, n in alike.items())
        option = f"--llmperf-gpus={self.asked}, {len(self.inventory.gpus)} seen"
        return f"{devices}; {option}" if devices else option


def need_of(marks: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Need | None:
    """What the closest `llmperf_gpus` marker asks for; None without one.

    Raises UsageError for its arguments.
    """
    return None if not marks else _need(*marks[0])


def pool(asked: str, inventory: Inventory) -> GpuPool:
    """The GPUs of `--llmperf-gpus`: "all", a count, or a list of indices and UUIDs ("0,2".

    "1," for one).

    Raises:
        UsageError: the value cannot be read, or asks for what is not there.
    """
    text = asked.strip()
    if text == "all":
        return GpuPool(gpus=inventory.gpus, asked=asked, inventory=inventory)
    if text.isascii() and text.isdigit():
        if int(text) > len(inventory.gpus):
            raise _too_many(asked, inventory)
        return GpuPool(gpus=inventory.gpus[: int(text)], asked=asked, inventory=inventory)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or ("," not in text and not text.startswith(("GPU-", "MIG-"))):
        raise UsageError(
            f"--llmperf-gpus={asked!r}: a count, a list of indices or UUIDs, or 'all' is needed, for example 2, '0,2' or '1,'.",
        )
    gpus = tuple(_named(word, asked, inventory) for word in words)
    if len({gpu.uuid for gpu in gpus}) < len(gpus):
        raise UsageError(f"--llmperf-gpus={asked!r} names a GPU twice. Name each once.")
    return GpuPool(gpus=gpus, asked=asked, inventory=inventory)


def eligible(need: Need, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those of `gpus` that one need can be met with.

    Slices of a GPU (MIG) cannot be combined with anything.
    """
    fitting = tuple(gpu for gpu in gpus if all(test(need, gpu) for test in _CONDITIONS.values()))
    return fitting if need.least == 1 else tuple(gpu for gpu in fitting if not gpu.mig)


def shortfall(need: Need, of: GpuPool) -> Shortfall | None:
    """Why the pool cannot meet the need; None when it can."""
    able = eligible(need, of.gpus)
    if len(able) >= need.least:
        return None
    reasons = [f"{n} {what}" for what, n in _refused(need, of.gpus).items() if n]
    slices = sum(gpu.mig for gpu in of.gpus)
    if need.least > 1 and slices:
        reasons.append(f"{slices} that are MIG slices, which cannot work together")
    would_do = f", of which {len(able)} would do ({'; '.join(reasons)})" if reasons else ""
    text = f"needs {need}, the pool has {len(of.gpus)}{would_do} ({of})"
    return Shortfall(needs=need.least, pool=len(of.gpus), eligible=len(able), text=text)


def candidates(need: Need, of: GpuPool) -> tuple[int, tuple[Gpu, ...]]:
    """How many devices a test gets whose need the pool can meet, and out of which."""
    able = eligible(need, of.gpus)
    whole = tuple(gpu for gpu in able if not gpu.mig)
    n = max(need.least, min(need.most or len(whole), len(whole)))
    return n, whole if n > 1 else able


_CONDITIONS: dict[str, Callable[[Need, Gpu], bool]] = {
    "too small": lambda need, gpu: gpu.total_bytes >= max(need.memory or 0, need.total_memory or 0),
    "of lower capability": lambda need, gpu: (
        need.capability is None or gpu.capability >= need.capability
    ),
    "of another name": lambda need, gpu: need.name.casefold() in gpu.name.casefold(),
}


def _refused(need: Need, gpus: Sequence[Gpu]) -> dict[str, int]:
    return {what: sum(not test(need, gpu) for gpu in gpus) for what, test in _CONDITIONS.items()}


_ARGUMENTS = ("n", "min", "max", "memory", "total_memory", "capability", "name")


def _need(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Need:
    given = dict(kwargs)
    if len(args) > 1 or (args and "n" in given):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus{args!r}: one count is needed, for example llmperf_gpus(2)."
        )
    given |= {"n": args[0]} if args else {}
    for name in given:
        if name not in _ARGUMENTS:
            near = did_you_mean(name, _ARGUMENTS)
            raise UsageError(
                f"@pytest.mark.llmperf_gpus({name}=…): argument {name!r} is not known.{near} Arguments: {', '.join(_ARGUMENTS)}.",
            )
    least, most = _range(given)
    return Need(
        least=least,
        most=most,
        memory=_size(given, "memory"),
        total_memory=_size(given, "total_memory"),
        capability=_capability(given.get("capability")),
        name=_text(given.get("name", "")),
    )


def _range(given: Mapping[str, Any]) -> tuple[int, int | None]:
    if "n" in given and given.keys() & {"min", "max"}:
        raise UsageError("@pytest.mark.llmperf_gpus: a count or min=/max= is needed, not both.")
    if "n" in given:
        return (_whole("n", given["n"]),) * 2
    if not given.keys() & {"min", "max"}:
        return 1, 1
    least = _whole("min", given.get("min", 1))
    most = _whole("max", given["max"]) if "max" in given else None
    if most is not None and most < least:
        raise UsageError(f"@pytest.mark.llmperf_gpus(min={least}, max={most}): max is below min.")
    return least, most


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(
            f"@pytest.mark.llmperf_gpus({name}={value!r}): a whole number of at least 1 is needed."
        )
    return value


def _size(given: Mapping[str, Any], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value < float("inf")
    ):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus({name}={value!r}): bytes above 0 are needed, for example 40 * GB."
        )
    return int(value)


def _capability(value: object) -> tuple[int, int] | None:
    """(9, 0), "9.0" or 9.0."""
    if value is None:
        return None
    words = value if isinstance(value, list | tuple) else str(value).split(".")
    # Major and minor.
    if len(words) == 2 and all(str(word).isdigit() for word in words):  # noqa: PLR2004
        return int(words[0]), int(words[1])
    raise UsageError(
        f"@pytest.mark.llmperf_gpus(capability={value!r}): a compute capability is needed, for example (9, 0) or '9.0'.",
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus(name={value!r}): a part of the GPU's name is needed, for example 'H200'."
        )
    return value


def _named(word: str, asked: str, inventory: Inventory) -> Gpu:
    matches = [
        gpu
        for gpu in inventory.gpus
        if word == str(gpu.index) or (not word.isdigit() and gpu.uuid.startswith(word))
    ]
    if len(matches) != 1:
        seen = (
            "; ".join(f"{gpu} ({gpu.uuid})" for gpu in inventory.gpus)
            or f"none ({inventory.why_none})"
        )
        raise UsageError(
            f"--llmperf-gpus={asked!r}: {word!r} names {len(matches)} GPUs. Seen here: {seen}."
        )
    return matches[0]


def _too_many(asked: str, inventory: Inventory) -> UsageError:
    seen = "; ".join(str(gpu) for gpu in inventory.gpus) or f"no GPU ({inventory.why_none})"
    return UsageError(
        f"--llmperf-gpus={asked}: {_count(int(asked))} asked for, {len(inventory.gpus)} seen here: {seen}. "
        "Ask for fewer, or for 'all'.",
    )


def _count(n: int) -> str:
    return f"{n} GPU{'' if n == 1 else 's'}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:g} GB"
