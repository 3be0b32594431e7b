"""LoRA adapters: what `lora:PATH` sets and promises, and where its folder is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from os.path import expanduser
from pathlib import Path

from msgspec import structs

from pytest_llmperf.core.effective import AdapterGroup, Effective, Promise
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

BASE = "base"
"""In a workload's `adapters`: rows without an adapter. No adapter may be called so."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MERGED = "merged"
_FORCE = "the adapters asked for are in force"


def _fields(argument: str) -> dict[str, object]:
    path, _, how = argument.rpartition(":")
    merged = how == MERGED
    folder = path if merged else argument
    if not folder:
        raise UsageError(
            "strategy part 'lora' needs the folder of an adapter, for example 'lora:adapters/mine'."
        )
    return {"adapters": (folder,)} | ({"merge_adapters": True} if merged else {})


def _promises(plan: LoadPlan) -> tuple[Promise, ...]:
    return (
        *(_in_place(name, plan) for name in plan.adapter_names),
        _in_force(plan.adapter_names[:1]),
    )


def switched(promises: Iterable[Promise], names: Sequence[str]) -> tuple[Promise, ...]:
    """The promises of a strategy whose model goes through `names` (`BASE` for none) instead of its first adapter."""
    used = tuple(dict.fromkeys(name for name in names if name != BASE))
    return (*(promise for promise in promises if promise.text != _FORCE), _in_force(used))


def _in_place(name: str, plan: LoadPlan) -> Promise:
    """The modules hold every tensor of the adapter's file, unmerged or merged as asked."""

    def broken(effective: Effective) -> str | None:
        found = next((group for group in effective.resident_adapters if group.name == name), None)
        if found is None:
            names = ", ".join(group.name for group in effective.resident_adapters) or "none"
            return f"adapter {name!r} is not there; the modules hold {names}"
        return _what_is_wrong(found, merged=plan.merge_adapters)

    return Promise(f"adapter {name} is in its modules", broken, part="lora")


def _in_force(names: tuple[str, ...]) -> Promise:
    """Forward passes go through these, and no others."""
    asked = ", ".join(map(repr, names)) or "none"

    def broken(effective: Effective) -> str | None:
        found = tuple(dict.fromkeys(effective.adapters))
        return (
            None
            if found == names
            else f"in force are {', '.join(found) or 'no adapters'}, asked for {asked}"
        )

    return Promise(_FORCE, broken, part="lora")


def _what_is_wrong(found: AdapterGroup, *, merged: bool) -> str | None:
    if found.layers == 0 or found.tensors == 0:
        return f"adapter {found.name!r} sits in {found.layers} layers with {found.tensors} tensors"
    if found.tensors_equal != found.tensors:
        return (
            f"{found.tensors_equal} of {found.tensors} tensors of adapter {found.name!r} ({found.content_hash[:12]}) are those "
            f"of its file: another adapter, or another version of it, is applied"
        )
    if found.merged != merged:
        return f"adapter {found.name!r} is {'merged' if found.merged else 'not merged'}, asked for the other"
    return None


LORA = Part(
    name="lora",
    kind="adapter",
    summary="a LoRA adapter (peft's format) on the weights; ':merged' folds it in; of several the first is in force",
    fields={},
    promises=_promises,
    argument=_fields,
    example="adapters/mine",
    joins=frozenset({"adapters"}),
)


def located(plan: LoadPlan, root: Path) -> LoadPlan:
    """`plan` with its adapters as absolute folders, and a strategy text that is the same on every machine.

    A relative PATH is looked up from the project's root, then from the current folder. The text names a folder below the
    root by its relative path, another one by its name alone; its content is told by the record.

    Raises:
        UsageError: a folder is not there or is no adapter, two have one name, or one is called 'base'.

    """
    if not plan.adapters:
        return plan
    folders = [_folder(path, root) for path in plan.adapters]
    _require_names([folder.name for folder in folders])
    shown = dict(zip(plan.adapters, (_shown(folder, root) for folder in folders), strict=True))
    parts = (_with_path(part, shown) for part in plan.strategy.split("+"))
    return structs.replace(plan, adapters=tuple(map(str, folders)), strategy="+".join(parts))


def _folder(path: str, root: Path) -> Path:
    given = Path(expanduser(path))  # noqa: PTH111  pathlib's raises for a user that does not exist
    places = dict.fromkeys(
        (root / given).resolve() if i == 0 else given.resolve() for i in range(2)
    )
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise UsageError(
            f"strategy part 'lora:{path}': there is no folder {' or '.join(map(str, places))}. "
            "Give the folder that peft's save_pretrained wrote, relative to the project's root or absolute.",
        )
    missing = [name for name in (CONFIG, WEIGHTS) if not (found / name).is_file()]
    if missing:
        raise UsageError(
            f"strategy part 'lora:{path}': {found} holds no {' and no '.join(missing)}. "
            "Give the folder that peft's save_pretrained wrote.",
        )
    return found


def _require_names(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(
            f"two adapters are called {twice[0]!r}: adapters are told apart by their folder's name. Rename one."
        )
    unusable = [name for name in names if name == BASE or "." in name]
    if unusable:
        raise UsageError(
            f"adapter {unusable[0]!r}: a folder's name without dots, other than {BASE!r}, is needed. Rename it."
        )


def _shown(folder: Path, root: Path) -> str:
    inside = folder.is_relative_to(root.resolve()) and "+" not in str(folder)
    return folder.relative_to(root.resolve()).as_posix() if inside else folder.name


def _with_path(part: str, shown: dict[str, str]) -> str:
    name, _, argument = part.partition(":")
    if name != LORA.name:
        return part
    path, colon, how = argument.rpartition(":")
    merged = how == MERGED
    return f"{name}:{shown[path if merged else argument]}{colon + how if merged else ''}"
