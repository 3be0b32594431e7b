"""LoRA adapters: what `lora:PATH` sets and promises, and where its folder is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec import structs

from pytest_llmperf.core.effective import AdapterGroup, Effective, Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies import folders
from pytest_llmperf.strategies.base import Part

BASE = "base"
"""In a workload's `adapters`: rows without an adapter. No adapter may be called so."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_MERGED = "merged"
_IN_FORCE = "the adapters asked for are in force"


def _fields(argument: str) -> dict[str, object]:
    folder, merged = _path_and_merged(argument)
    if not folder:
        raise UsageError(
            "strategy part 'lora' needs the folder of an adapter, for example 'lora:adapters/mine'."
        )
    fields: dict[str, object] = {"adapters": (folder,)}
    if merged:
        fields["merge_adapters"] = True
    return fields


def _path_and_merged(argument: str) -> tuple[str, bool]:
    path, _, suffix = argument.rpartition(":")
    return (path, True) if suffix == _MERGED else (argument, False)


def _promises(plan: LoadPlan) -> tuple[Promise, ...]:
    in_place = (_in_place(name, merged=plan.merge_adapters) for name in plan.adapter_names)
    return (*in_place, _in_force(plan.adapter_names[:1]))


def switched(promises: Iterable[Promise], names: Sequence[str]) -> tuple[Promise, ...]:
    """Return the promises of a strategy whose model goes through `names`, not its first adapter.

    `BASE` among the names stands for no adapter.
    """
    adapters = tuple(dict.fromkeys(name for name in names if name != BASE))
    others = (promise for promise in promises if promise.text != _IN_FORCE)
    return (*others, _in_force(adapters))


def _in_place(name: str, *, merged: bool) -> Promise:
    """Promise that the modules hold every tensor of the adapter's file, merged if asked for."""
    return Promise(
        f"adapter {name} is in its modules",
        lambda effective: _misplaced(effective, name, merged=merged),
        part="lora",
    )


def _misplaced(effective: Effective, name: str, *, merged: bool) -> str | None:
    adapters = {group.name: group for group in effective.resident_adapters}
    if name not in adapters:
        return f"adapter {name!r} is not there; the modules hold {', '.join(adapters) or 'none'}"
    adapter = adapters[name]
    return _wrong_tensors(adapter) or _wrong_merge(adapter, merged=merged) or _bypassed(adapter)


def _in_force(names: tuple[str, ...]) -> Promise:
    """Promise that forward passes go through these adapters, and no others."""
    return Promise(_IN_FORCE, lambda effective: _others_in_force(effective, names), part="lora")


def _others_in_force(effective: Effective, names: tuple[str, ...]) -> str | None:
    adapters = tuple(dict.fromkeys(effective.adapters))
    if adapters == names:
        return None
    in_force = ", ".join(adapters) or "no adapters"
    return f"in force are {in_force}, asked for {', '.join(map(repr, names)) or 'none'}"


def _wrong_tensors(adapter: AdapterGroup) -> str | None:
    name, n_tensors = adapter.name, adapter.tensors
    if adapter.layers == 0 or n_tensors == 0:
        return f"adapter {name!r} sits in {adapter.layers} layers with {n_tensors} tensors"
    if adapter.tensors_equal != n_tensors:
        return (
            f"{adapter.tensors_equal} of {n_tensors} tensors of adapter {name!r} "
            f"({adapter.content_hash[:12]}) are those of its file: "
            "another adapter, or another version of it, is applied"
        )
    return None


def _wrong_merge(adapter: AdapterGroup, *, merged: bool) -> str | None:
    if adapter.merged == merged:
        return None
    state = "merged" if adapter.merged else "not merged"
    return f"adapter {adapter.name!r} is {state}, asked for the other"


def _bypassed(adapter: AdapterGroup) -> str | None:
    if not adapter.bypassed_layers:
        return None
    return (
        f"adapter {adapter.name!r}: a forward pass went past {adapter.bypassed_layers} of its "
        f"{adapter.layers} layers. The modules around them multiply with their weights and do not "
        "call them, as fused code does; merge the adapter (':merged')"
    )


LORA = Part(
    name="lora",
    kind="adapter",
    summary=(
        "a LoRA adapter (peft's format) on the weights; ':merged' folds it in; "
        "of several the first is in force"
    ),
    fields={},
    promises=_promises,
    argument=_fields,
    example="adapters/mine",
    joins=frozenset({"adapters"}),
)


def located(plan: LoadPlan, root: Path) -> LoadPlan:
    """Return `plan` with its adapters as absolute folders, and a text that holds on every machine.

    A relative PATH is looked up from the project's root, then from the current folder. The text
    names a folder below the root by its relative path, another one by its name alone; its content
    is told by the record.

    Raises:
        UsageError: a folder is not there or is no adapter, two have one name, or one is called
            'base'.
    """
    if not plan.adapters:
        return plan
    adapters = {path: _folder(path, root) for path in plan.adapters}
    _require_names([adapters[path].name for path in plan.adapters])
    names = {path: folders.portable_name(folder, root) for path, folder in adapters.items()}
    return structs.replace(
        plan,
        adapters=tuple(str(adapters[path]) for path in plan.adapters),
        strategy=_with_paths(plan.strategy, names),
    )


def _with_paths(strategy: str, names: Mapping[str, str]) -> str:
    return "+".join(_with_path(part, names) for part in strategy.split("+"))


def _folder(path: str, root: Path) -> Path:
    candidates = folders.candidates(path, root)
    folder = folders.first(candidates, Path.is_dir)
    if folder is None:
        raise UsageError(
            f"strategy part 'lora:{path}': there is no folder {folders.or_listed(candidates)}. "
            "Give the folder that peft's save_pretrained wrote, relative to the project's root "
            "or absolute.",
        )
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"strategy part 'lora:{path}': {folder} holds no {' and no '.join(missing)}. "
            "Give the folder that peft's save_pretrained wrote.",
        )
    return folder


def _require_names(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"two adapters are called {twice[0]!r}: adapters are told apart by their folder's "
            "name. Rename one."
        )
    unusable = [name for name in names if name == BASE or "." in name]
    if unusable:
        raise UsageError(
            f"adapter {unusable[0]!r}: a folder's name without dots, other than {BASE!r}, is "
            "needed. Rename it."
        )


def _with_path(part: str, names: Mapping[str, str]) -> str:
    """Return a part of a strategy, with the portable name in place of an adapter's path."""
    name, _, argument = part.partition(":")
    if name != LORA.name:
        return part
    path, merged = _path_and_merged(argument)
    return f"{name}:{names[path]}:{_MERGED}" if merged else f"{name}:{names[path]}"
