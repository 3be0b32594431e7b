"""The GPUs of this host as values, and which of them this process may see.

Pure; `drivers` looks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

from pytest_llmperf.errors import UsageError

SIMULATED = "LLMPERF_SIMULATED_GPUS"
"""Environment variable that replaces the drivers' answer, for tests and for `llmperf audit`.

Its GPUs have UUIDs that no driver knows, so that no model can be loaded on a real GPU under it, and
every record says so.
"""

_NOTHING = frozenset({"", "-1", "NoDevFiles", "none", "void"})
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIMULATED_GPU = re.compile(r"(\d+)x(\d+(?:\.\d+)?)(MB|GB|MiB|GiB)(?::([^:,]+))?(?::(\d+)\.(\d+))?")


class Gpu(Struct, frozen=True, kw_only=True):
    """One device that work can be given to: a GPU, or a slice of one (MIG).

    `index` is its place among those that this process sees, as in "cuda:1". `selector` is what the
    variable that hides GPUs calls it (CUDA_VISIBLE_DEVICES; HIP_VISIBLE_DEVICES for AMD).
    `total_bytes` is the driver's total.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    capability: tuple[int, int] = (0, 0)
    vendor: Literal["nvidia", "amd"] = "nvidia"
    mig: bool = False
    selector: str = ""

    @property
    def torch_name(self) -> str:
        """What torch calls it in this process."""
        return f"cuda:{self.index}"

    def __str__(self) -> str:
        return f"{self.torch_name} {self.name}, {self.total_bytes / 1e9:.0f} GB"


class Inventory(Struct, frozen=True, kw_only=True):
    """The GPUs that this process sees, in torch's order. `notes` say what was not seen, and why."""

    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()
    simulated: bool = False

    @property
    def why_none(self) -> str:
        """Why there is no GPU."""
        return "; ".join(self.notes) or "the drivers list none"


class Usage(Struct, frozen=True, kw_only=True):
    """Memory of one device now: in use by anyone, free, and in use by each compute process.

    What the driver keeps for itself is not counted. `by_pid` has None for a process whose figure
    the driver hides. Containers may hide processes altogether or show foreign ids for them.
    """

    used_bytes: int
    free_bytes: int
    by_pid: dict[int, int | None] = {}


class Physical(Struct, frozen=True, kw_only=True):
    """A GPU as the driver lists it, with the slices it is cut into.

    `parts` is the GPU itself where it is whole.
    """

    uuid: str
    parts: tuple[Gpu, ...]


def visible(
    listed: Sequence[Physical], variable: str | None, name: str = "CUDA_VISIBLE_DEVICES"
) -> Inventory:
    """Return what CUDA shows of `listed` under that value of the variable (None: not set).

    The rules are CUDA's own: entries are indices, or the beginning of a UUID of a GPU or of a MIG
    slice. The first entry that is none of these ends the list, and naming one device twice hides
    all. An index of a GPU that is cut up means its first slice. Where the variable is not set all
    slices are listed, since a worker of ours is given one by its UUID.
    """
    if variable is None:
        return Inventory(gpus=_numbered(_all_parts(listed)))
    words = [word.strip() for word in variable.split(",")]
    if words[0] in _NOTHING:
        return Inventory(notes=(f"{name}={variable!r} hides all {len(listed)} GPUs",))
    gpus = _leading_gpus(listed, words)
    if len({gpu.uuid for gpu in gpus}) < len(gpus):
        return Inventory(notes=(f"{name}={variable!r} names a GPU twice, which hides all",))
    if len(gpus) == len(words):
        return Inventory(gpus=_numbered(gpus))
    unknown = f"{words[len(gpus)]!r} names no GPU here, it and what follows are hidden"
    return Inventory(gpus=_numbered(gpus), notes=(f"{name}={variable!r}: {unknown}",))


def simulated(text: str) -> Inventory:
    """Return the inventory that a text such as "2x141GB:NVIDIA H200:9.0,1x24GB" describes.

    "0" describes none.

    Raises UsageError.
    """
    gpus: list[Gpu] = []
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in {"", "0"}:
            gpus += _simulated_gpus(_simulated_match(word, text), len(gpus))
    note = f"simulated ({SIMULATED}={text})"
    return Inventory(gpus=_numbered(gpus), notes=(note,), simulated=True)


def environment_of(gpus: Sequence[Gpu]) -> Mapping[str, str]:
    """Return the variable that shows a process these GPUs alone, in this order."""
    return {_visibility_variable(gpus): ",".join(gpu.selector for gpu in gpus)}


def _visibility_variable(gpus: Sequence[Gpu]) -> str:
    """Return the name of the variable that the GPUs' vendor reads."""
    amd = any(gpu.vendor == "amd" for gpu in gpus)
    return "HIP_VISIBLE_DEVICES" if amd else "CUDA_VISIBLE_DEVICES"


def _simulated_match(word: str, text: str) -> re.Match[str]:
    match = _SIMULATED_GPU.fullmatch(word)
    if match is None:
        raise UsageError(
            f"{SIMULATED}={text!r}: {word!r} is not COUNTxMEMORY[:NAME[:CAPABILITY]], "
            "for example '2x141GB:NVIDIA H200:9.0'.",
        )
    return match


def _simulated_gpus(match: re.Match[str], start: int) -> list[Gpu]:
    count, size, unit, name, major, minor = match.groups()
    return [
        Gpu(
            index=0,
            uuid=f"GPU-simulated-{start + i}",
            name=name or "simulated GPU",
            total_bytes=int(float(size) * _UNITS[unit]),
            capability=(int(major or 0), int(minor or 0)),
            selector=f"GPU-simulated-{start + i}",
        )
        for i in range(int(count))
    ]


def _leading_gpus(listed: Sequence[Physical], words: Sequence[str]) -> list[Gpu]:
    """Return the devices that the entries name, up to the first entry that names none."""
    gpus: list[Gpu] = []
    for word in words:
        gpu = _entry(listed, word)
        if gpu is None:
            break
        gpus.append(gpu)
    return gpus


def _entry(listed: Sequence[Physical], word: str) -> Gpu | None:
    """Return the device that one entry of the variable names; None for no device.

    An entry is an index, or a beginning that only one UUID has.
    """
    if word.isascii() and word.isdigit():
        matches = _first_parts(listed[int(word) : int(word) + 1])
    elif word.startswith("GPU-"):
        matches = _first_parts([gpu for gpu in listed if gpu.uuid.startswith(word)])
    elif word.startswith("MIG-"):
        slices = [part for part in _all_parts(listed) if part.mig]
        matches = [part for part in slices if part.uuid.startswith(word)]
    else:
        matches = []
    return matches[0] if len(matches) == 1 else None


def _all_parts(listed: Sequence[Physical]) -> list[Gpu]:
    return [part for gpu in listed for part in gpu.parts]


def _first_parts(listed: Sequence[Physical]) -> list[Gpu]:
    return [gpu.parts[0] for gpu in listed if gpu.parts]


def _numbered(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    import msgspec.structs  # noqa: PLC0415 - a submodule, needed only here

    return tuple(msgspec.structs.replace(gpu, index=i) for i, gpu in enumerate(gpus))
