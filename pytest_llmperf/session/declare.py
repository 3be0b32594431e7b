"""From a test's marker, parametrisation and options to a load plan.

Nothing is loaded; every error names its value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from msgspec import structs

from pytest_llmperf import engines
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.devices.placement import resolve_device
from pytest_llmperf.engines.models.available import missing_model, missing_package
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.settings.limits import checked_limits
from pytest_llmperf.settings.server_target import with_server
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.strategies import check_engine_can, parse
from pytest_llmperf.strategies.adapters import located
from pytest_llmperf.strategies.assistance import LOOKUP
from pytest_llmperf.strategies.quantized import located as checkpoint_located
from pytest_llmperf.workers.place import Place

DEFAULT_STRATEGY = "auto"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What `@pytest.mark.llmperf(...)` says of a test.

    The closest marker wins, argument by argument.
    """

    model: str | None = None
    strategy: str | None = None
    strategies: Sequence[str] = ()
    engine: str = "transformers"
    device: str | None = None
    budget: float | None = None
    precision: float | None = None
    label: str = ""
    revision: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    gate: Mapping[str, float] = field(default_factory=dict)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "strategy": str,
    "strategies": (list, tuple),
    "engine": str,
    "device": str,
    "budget": (int, float),
    "precision": (int, float),
    "label": str,
    "revision": str,
    "trust_remote_code": bool,
    "seed": int,
    "options": Mapping,
    "gate": Mapping,
}


def declaration(marks: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> Declaration:
    """Merge the arguments of a test's markers, closest first.

    Raises UsageError for an unknown or ill-typed argument.
    """
    merged: dict[str, Any] = {}
    for args, kwargs in marks:
        if args:
            raise UsageError(
                f"@pytest.mark.llmperf({args[0]!r}): arguments are given by name, "
                f"for example model={args[0]!r}."
            )
        for name, value in kwargs.items():
            merged.setdefault(name, _checked(name, value))
    return Declaration(**merged)


def load_plan(
    declared: Declaration,
    strategy: str,
    settings: Settings,
    *,
    place: Place,
    engine: str | None = None,
) -> LoadPlan:
    """Return the load plan of a declaration under a strategy. Nothing is loaded.

    It is on one of the GPUs of `place` where it can be. Raises UsageError.
    """
    name = _model_name(declared)
    row = engines.engine(engine or declared.engine)
    parsed = parse(strategy)
    model = model_ref(
        name,
        trust_remote_code=declared.trust_remote_code,
        revision=declared.revision,
        root=settings.root,
    )
    bare = LoadPlan(
        model=model,
        engine=row.name,
        device=resolve_device(
            declared.device or settings.device, row.load_capabilities(), lambda: place.gpus
        ),
        options=tuple(sorted(with_server(declared.options, row.name, settings.server).items())),
        seed=declared.seed,
    )
    plan = _assistant_located(parsed.apply(bare), settings.root)
    plan = checkpoint_located(located(plan, settings.root), settings.root)
    _require_loadable(plan, row, settings, place)
    return plan


def _assistant_located(plan: LoadPlan, root: Path) -> LoadPlan:
    """Return `plan` with its assistant where every process finds it.

    Raises UsageError for a name that means nothing.
    """
    if plan.assist in (None, LOOKUP):
        return plan
    name = str(plan.assist)
    location = model_ref(name, root=root).location
    # Workers start in the working directory: a name that is found from there stays as it is.
    if Path(location).is_absolute() and not Path(name).expanduser().exists():
        return structs.replace(plan, assist=location)
    return plan


def _require_loadable(
    plan: LoadPlan, row: engines.EngineRow, settings: Settings, place: Place
) -> None:
    """Raise UsageError for a plan that the engine cannot load here."""
    capabilities = row.load_capabilities()
    check_engine_can(plan, capabilities, row.name)
    # Another interpreter, or host, has its own packages.
    uses_our_packages = place.has_our_packages and row.name not in settings.pythons
    if not uses_our_packages:
        return
    lacking = (
        capabilities.missing_library(plan) or missing_package(row) or missing_model(plan.model, row)
    )
    if lacking is not None:
        raise UsageError(lacking)


def _model_name(declared: Declaration) -> str:
    if declared.model is None:
        raise UsageError(
            "no model is named. Give one on the test, its module or class: "
            "@pytest.mark.llmperf(model='smollm2-135m') "
            "(a Hugging Face id, a local folder, a GGUF file, an alias, or 'pkg.mod:build').",
        )
    return declared.model


def _checked(name: str, value: Any) -> Any:
    """Return the value of a marker's argument. Raises UsageError for one that cannot be used."""
    _require_known(name)
    _require_type(name, value)
    if name == "strategies":
        _require_strategies(value)
    if name in {"budget", "precision"} and value <= 0:
        raise UsageError(f"@pytest.mark.llmperf({name}={value!r}): a number above 0 is needed.")
    if name == "gate":
        return checked_limits(value, "@pytest.mark.llmperf(gate=…)")
    return value


def _require_known(name: str) -> None:
    known = [argument.name for argument in fields(Declaration)]
    if name not in known:
        raise _unknown_argument(name, known)


def _unknown_argument(name: str, known: Sequence[str]) -> UsageError:
    near = did_you_mean(name, known, otherwise=f"Arguments: {', '.join(known)}.")
    return UsageError(f"@pytest.mark.llmperf({name}=…): argument {name!r} is not known.{near}")


def _require_type(name: str, value: object) -> None:
    if not _has_needed_type(name, value):
        raise _wrong_type(name, value)


def _wrong_type(name: str, value: object) -> UsageError:
    return UsageError(
        f"@pytest.mark.llmperf({name}={value!r}): "
        f"{_type_text(_TYPES[name])} is needed, not {type(value).__name__}."
    )


def _has_needed_type(name: str, value: object) -> bool:
    """Whether a value is of its argument's type: a bool is not a number."""
    needed = _TYPES[name]
    if isinstance(value, bool):
        return needed is bool
    return isinstance(value, needed)


def _require_strategies(strategies: Sequence[object]) -> None:
    if strategies and all(isinstance(strategy, str) for strategy in strategies):
        return
    raise UsageError(
        f"@pytest.mark.llmperf(strategies={strategies!r}): at least one strategy is needed, each a "
        "text such as 'bf16'. For marks and ids of single ones: "
        "@pytest.mark.parametrize('llm', [pytest.param('bf16', …)], indirect=True).",
    )


def _type_text(needed: type | tuple[type, ...]) -> str:
    if isinstance(needed, tuple):
        return " or ".join(kind.__name__ for kind in needed)
    return "dict" if needed is Mapping else needed.__name__
