"""A loaded model under some of its adapters: it is switched for each command, and switched back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from msgspec import structs

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
        """Switch, do the command, and switch back to the default, whatever became of it, while the device is held once."""
        with self.alone():
            self._send(UseAdapters(names=self.adapters))
            try:
                return self._send(command)
            finally:
                self._send(UseAdapters(names=()))

    def _send(self, command: Command[R]) -> R:
        return self.channel.call(command, deadline_s=self.timeout_s)


def using(model: OpenModel, names: tuple[str, ...]) -> UsingAdapters:
    """`model` going through `names`.

    Its strategy says so, in records too; what is in force is asked of the worker.
    """
    kept = {field.name: getattr(model, field.name) for field in fields(OpenModel)}
    view = UsingAdapters(**kept, adapters=names)
    used = OpenModel.call(view, UseAdapters(names=names))
    OpenModel.call(view, UseAdapters(names=()))
    kept["plan"] = view_of(model.plan, names)
    kept["promises"] = switched(model.promises, names)
    kept["opened"] = structs.replace(
        model.opened,
        effective=structs.replace(
            model.opened.effective, adapters=tuple(n for n in used.names if n != BASE)
        ),
    )
    return UsingAdapters(**kept, adapters=names)


def view_of(plan: LoadPlan, names: tuple[str, ...]) -> LoadPlan:
    """`plan` with only the adapters of `names`, and a strategy text that names them.

    The plan itself without names.
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
        raise UsageError(
            f"llm.using({', '.join(map(repr, names))}): names of adapters that {plan.strategy!r} loads are needed; it loads "
            f"{', '.join(plan.adapter_names) or 'none'}. Add 'lora:PATH' to the strategy, once for each.",
        )
    for name in names:
        if name not in known:
            raise UsageError(
                f"llm.using({name!r}): adapter {name!r} is not loaded.{did_you_mean(str(name), known)} "
                f"There are: {', '.join(known)}.",
            )
    for field, why in (("merge_adapters", "':merged'"), ("compile", "'compile'")):
        if getattr(plan, field):
            raise UsageError(
                f"llm.using({names[0]!r}): under {plan.strategy!r} it cannot be switched. Leave out {why}."
            )
