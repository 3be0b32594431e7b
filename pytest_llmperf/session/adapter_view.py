"""A loaded model under some of its adapters: it is switched for each command, and switched back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NoReturn

from msgspec import structs

from pytest_llmperf.core.loaded import ModelFacts
from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.strategies.adapters import BASE, switched
from pytest_llmperf.wire.commands import Command, R, UseAdapters
from pytest_llmperf.workers.pool import OpenModel

if TYPE_CHECKING:
    from pytest_llmperf.core.plan import LoadPlan


@dataclass(frozen=True, eq=False)
class UsingAdapters(OpenModel):
    """`OpenModel` whose commands go through `adapters`.

    Switching is a command of its own, outside every timed path.
    """

    adapters: tuple[str, ...] = ()

    def call(self, command: Command[R]) -> R:
        """Switch, do the command, and switch back to the default, while the device is held once.

        It switches back whatever became of the command.
        """
        with self.alone():
            self._send(UseAdapters(names=self.adapters))
            try:
                return self._send(command)
            finally:
                self._send(UseAdapters(names=()))

    def _send(self, command: Command[R]) -> R:
        return self.channel.call(command, deadline_s=self.timeout_s)


def using(model: OpenModel, names: tuple[str, ...]) -> UsingAdapters:
    """Return `model` going through `names`.

    Its strategy says so, in records too; what is in force is asked of the worker.
    """
    parts = {field.name: getattr(model, field.name) for field in fields(OpenModel)}
    used_names = _names_in_use(UsingAdapters(**parts, adapters=names))
    parts["plan"] = view_of(model.plan, names)
    parts["promises"] = switched(model.promises, names)
    parts["opened"] = _opened_with(model.opened, used_names)
    return UsingAdapters(**parts, adapters=names)


def _names_in_use(view: UsingAdapters) -> tuple[str, ...]:
    """Switch once and back, and return the adapters that the worker says it used."""
    used = OpenModel.call(view, UseAdapters(names=view.adapters))
    OpenModel.call(view, UseAdapters(names=()))
    return tuple(name for name in used.names if name != BASE)


def _opened_with(opened: ModelFacts, adapters: tuple[str, ...]) -> ModelFacts:
    effective = structs.replace(opened.effective, adapters=adapters)
    return structs.replace(opened, effective=effective)


def view_of(plan: LoadPlan, names: tuple[str, ...]) -> LoadPlan:
    """Return `plan` with only the adapters of `names`, and a strategy text that names them.

    Without names it is the plan itself.
    """
    if not names:
        return plan
    folders = dict(zip(plan.adapter_names, plan.adapters, strict=True))
    used = tuple(folders[name] for name in dict.fromkeys(names) if name in folders)
    return structs.replace(
        plan, adapters=used, strategy=f"{plan.strategy} (using {', '.join(names)})"
    )


def require_usable(plan: LoadPlan, names: tuple[str, ...]) -> None:
    """Raise UsageError unless `plan` loads these adapters and can switch them."""
    known = (*plan.adapter_names, BASE)
    if not plan.adapters or not names:
        _refuse_all(plan, names)
    for name in names:
        if name not in known:
            near = did_you_mean(str(name), known, otherwise=f"There are: {', '.join(known)}.")
            raise UsageError(f"llm.using({name!r}): adapter {name!r} is not loaded.{near}")
    _require_switchable(plan, names[0])


def _refuse_all(plan: LoadPlan, names: tuple[str, ...]) -> NoReturn:
    raise UsageError(
        f"{_call_text(names)}: names of adapters that {plan.strategy!r} loads are needed; it loads "
        f"{', '.join(plan.adapter_names) or 'none'}. "
        "Add 'lora:PATH' to the strategy, once for each.",
    )


def _require_switchable(plan: LoadPlan, name: str) -> None:
    for field, part in (("merge_adapters", "':merged'"), ("compile", "'compile'")):
        if getattr(plan, field):
            raise _not_switchable(name, plan.strategy, part)


def _not_switchable(name: str, strategy: str, part: str) -> UsageError:
    return UsageError(
        f"llm.using({name!r}): under {strategy!r} it cannot be switched. Leave out {part}."
    )


def _call_text(names: tuple[str, ...]) -> str:
    """Return the call as the test wrote it."""
    return f"llm.using({', '.join(map(repr, names))})"
