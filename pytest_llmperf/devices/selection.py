"""Which GPUs a test needs, which the session may use, and whether these meet the need. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

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
        conditions = self._conditions()
        return _count(self.least) + (f" with {', '.join(conditions)}" if conditions else "")

    def _conditions(self) -> list[str]:
        texts = []
        if self.memory:
            texts.append(f"memory >= {_gb(self.memory)}")
        if self.total_memory:
            texts.append(f"total_memory >= {_gb(self.total_memory)}")
        if self.capability:
            texts.append(f"capability >= {self.capability[0]}.{self.capability[1]}")
        if self.name:
            texts.append(f"name {self.name!r}")
        return texts


class Shortfall(Struct, frozen=True, kw_only=True):
    """Why a need cannot be met: how many devices are needed, and how many in the pool would do."""

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
    """The GPUs that this session may use, and the option that names them."""

    gpus: tuple[Gpu, ...]
    option: str
    inventory: Inventory

    def __str__(self) -> str:
        if not self.inventory.gpus:
            return f"no GPU is seen: {self.inventory.why_none}"
        devices = _by_kind(self.gpus)
        return f"{devices}; {self._source()}" if devices else self._source()

    def _source(self) -> str:
        """Return the option that names the pool, and how many GPUs there were to choose from."""
        return f"--llmperf-gpus={self.option}, {len(self.inventory.gpus)} seen"


def _by_kind(gpus: Sequence[Gpu]) -> str:
    kinds = Counter(map(_kind, gpus))
    return ", ".join(f"{n} x {kind}" for kind, n in kinds.items())


def _kind(gpu: Gpu) -> str:
    return f"{gpu.name}, {gpu.total_bytes / 1e9:.0f} GB"


def need_of(marks: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Need | None:
    """Return what the closest `llmperf_gpus` marker asks for; None without one.

    Raises UsageError for its arguments.
    """
    return None if not marks else _need(*marks[0])


def pool(option: str, inventory: Inventory) -> GpuPool:
    """Return the GPUs of `--llmperf-gpus`.

    The option is "all", a count, or a list of indices and UUIDs ("0,2"; "1," for one).

    Raises:
        UsageError: the value cannot be read, or asks for what is not there.
    """
    text = option.strip()
    if text == "all":
        gpus = inventory.gpus
    elif text.isascii() and text.isdigit():
        if int(text) > len(inventory.gpus):
            raise _too_many(option, inventory)
        gpus = inventory.gpus[: int(text)]
    else:
        gpus = _listed(option, inventory)
    return GpuPool(gpus=gpus, option=option, inventory=inventory)


def eligible(need: Need, gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return those of `gpus` that one need can be met with.

    Slices of a GPU (MIG) cannot be combined with anything.
    """
    fitting = tuple(gpu for gpu in gpus if _meets_conditions(need, gpu))
    return fitting if need.least == 1 else _undivided(fitting)


def _undivided(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    return tuple(gpu for gpu in gpus if not gpu.mig)


def _meets_conditions(need: Need, gpu: Gpu) -> bool:
    return all(is_met(need, gpu) for is_met in _CONDITIONS.values())


def shortfall(need: Need, pool: GpuPool) -> Shortfall | None:
    """Return why the pool cannot meet the need; None when it can."""
    able = eligible(need, pool.gpus)
    if len(able) >= need.least:
        return None
    reasons = _refusals(need, pool.gpus)
    would_do = f", of which {len(able)} would do ({'; '.join(reasons)})" if reasons else ""
    text = f"needs {need}, the pool has {len(pool.gpus)}{would_do} ({pool})"
    return Shortfall(needs=need.least, pool=len(pool.gpus), eligible=len(able), text=text)


def candidates(need: Need, pool: GpuPool) -> tuple[int, tuple[Gpu, ...]]:
    """Return how many devices a test gets whose need the pool can meet, and out of which."""
    able = eligible(need, pool.gpus)
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


def _refusals(need: Need, gpus: Sequence[Gpu]) -> list[str]:
    """Return how many GPUs will not do, by reason."""
    counts = {
        reason: sum(not meets(need, gpu) for gpu in gpus) for reason, meets in _CONDITIONS.items()
    }
    slices = sum(gpu.mig for gpu in gpus)
    if need.least > 1 and slices:
        counts["that are MIG slices, which cannot work together"] = slices
    return [f"{n} {reason}" for reason, n in counts.items() if n]


_ARGUMENTS = ("n", "min", "max", "memory", "total_memory", "capability", "name")


def _need(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Need:
    arguments = _checked_arguments(args, kwargs)
    least, most = _range(arguments)
    return Need(
        least=least,
        most=most,
        memory=_size(arguments, "memory"),
        total_memory=_size(arguments, "total_memory"),
        capability=_capability(arguments.get("capability")),
        name=_text(arguments.get("name", "")),
    )


def _checked_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the marker's arguments by name. Raises UsageError for one that is not known."""
    if len(args) > 1 or (args and "n" in kwargs):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus{args!r}: one count is needed, for example llmperf_gpus(2)."
        )
    arguments = {**kwargs, "n": args[0]} if args else dict(kwargs)
    unknown = next((name for name in arguments if name not in _ARGUMENTS), None)
    if unknown is not None:
        all_arguments = f"Arguments: {', '.join(_ARGUMENTS)}."
        near = did_you_mean(unknown, _ARGUMENTS, otherwise=all_arguments)
        raise UsageError(
            f"@pytest.mark.llmperf_gpus({unknown}=…): argument {unknown!r} is not known.{near}"
        )
    return arguments


def _range(arguments: Mapping[str, Any]) -> tuple[int, int | None]:
    """Return the least and the most devices; None: as many as there are."""
    has_range = "min" in arguments or "max" in arguments
    if "n" in arguments and has_range:
        raise UsageError("@pytest.mark.llmperf_gpus: a count or min=/max= is needed, not both.")
    if not has_range:
        n = _whole("n", arguments.get("n", 1))
        return n, n
    least = _whole("min", arguments.get("min", 1))
    most = _whole("max", arguments["max"]) if "max" in arguments else None
    if most is not None and most < least:
        raise UsageError(f"@pytest.mark.llmperf_gpus(min={least}, max={most}): max is below min.")
    return least, most


def _whole(name: str, value: object) -> int:
    if not _is_count(value):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus({name}={value!r}): a whole number of at least 1 is needed."
        )
    return value


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _size(arguments: Mapping[str, Any], name: str) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < float("inf"):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus({name}={value!r}): bytes above 0 are needed, "
            "for example 40 * GB."
        )
    return int(value)


def _capability(value: object) -> tuple[int, int] | None:
    """Return major and minor of (9, 0), "9.0" or 9.0."""
    if value is None:
        return None
    words = value if isinstance(value, list | tuple) else str(value).split(".")
    if [str(word).isdigit() for word in words] == [True, True]:
        return int(words[0]), int(words[1])
    raise UsageError(
        f"@pytest.mark.llmperf_gpus(capability={value!r}): a compute capability is needed, "
        "for example (9, 0) or '9.0'.",
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(
            f"@pytest.mark.llmperf_gpus(name={value!r}): a part of the GPU's name is needed, "
            "for example 'H200'."
        )
    return value


def _listed(option: str, inventory: Inventory) -> tuple[Gpu, ...]:
    """Return the GPUs of a list of indices and UUIDs. Raises UsageError."""
    words = [word.strip() for word in option.split(",") if word.strip()]
    if not words or ("," not in option and not words[0].startswith(("GPU-", "MIG-"))):
        raise UsageError(
            f"--llmperf-gpus={option!r}: a count, a list of indices or UUIDs, or 'all' is needed, "
            "for example 2, '0,2' or '1,'.",
        )
    gpus = tuple(_gpu_called(word, option, inventory) for word in words)
    if len({gpu.uuid for gpu in gpus}) < len(gpus):
        raise UsageError(f"--llmperf-gpus={option!r} names a GPU twice. Name each once.")
    return gpus


def _gpu_called(word: str, option: str, inventory: Inventory) -> Gpu:
    matches = [gpu for gpu in inventory.gpus if _is_called(gpu, word)]
    if len(matches) != 1:
        gpus = [f"{gpu} ({gpu.uuid})" for gpu in inventory.gpus]
        listing = "; ".join(gpus) or f"none ({inventory.why_none})"
        raise UsageError(
            f"--llmperf-gpus={option!r}: {word!r} names {len(matches)} GPUs. Seen here: {listing}."
        )
    return matches[0]


def _is_called(gpu: Gpu, word: str) -> bool:
    """Whether a word is the GPU's index, or a beginning of its UUID."""
    return word == str(gpu.index) or (not word.isdigit() and gpu.uuid.startswith(word))


def _too_many(option: str, inventory: Inventory) -> UsageError:
    return UsageError(
        f"--llmperf-gpus={option}: {_count(int(option))} asked for, {len(inventory.gpus)} seen "
        f"here: {_listing(inventory)}. Ask for fewer, or for 'all'.",
    )


def _listing(inventory: Inventory) -> str:
    """Return all GPUs of an inventory in words, or why there are none."""
    return "; ".join(map(str, inventory.gpus)) or f"no GPU ({inventory.why_none})"


def _count(n: int) -> str:
    return f"{n} GPU{'' if n == 1 else 's'}"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:g} GB"
