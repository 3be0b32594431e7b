"""The JSON Schema of a record, and whether a changed one still reads older records. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pytest_llmperf.core.record import SCHEMA_VERSION, Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFINITIONS = "#/$defs/"
_NUMBER = f"{_DEFINITIONS}Number"
_NUMBER_DEFINITION = {
    "title": "Number",
    "description": "JSON has no NaN and no infinity: they are written as these texts.",
    "anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}],
}
_NO_MEANING = frozenset({"description", "title"})


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one line of `record_json.encode`.

    Fields that it does not name are allowed: readers skip them.
    """
    schema = _rewritten(msgspec.json.schema(Record))
    definitions = {**schema["$defs"], "Number": _NUMBER_DEFINITION}
    definitions["Record"]["properties"]["schema_version"] = {
        "const": SCHEMA_VERSION,
        "default": SCHEMA_VERSION,
    }
    return {
        "$schema": DIALECT,
        "$id": f"urn:pytest-llmperf:record:{SCHEMA_VERSION}",
        "title": "A record of pytest-llmperf",
        **schema,
        "$defs": dict(sorted(definitions.items())),
    }


def broken(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what makes `new` another version than `old`.

    That is a field that is gone, means something else, or is missing in older lines. A new field
    with a default is no such change: it is filled in for older lines, and older readers skip it.
    Nor is another name of a definition, which no line holds: definitions are paired by the fields
    that lead to them.
    """
    old_definitions, new_definitions = old["$defs"], new["$defs"]
    names = _paired_names(old_definitions, new_definitions)
    return [
        change
        for name, old_definition in old_definitions.items()
        for change in _changes(name, old_definition, new_definitions.get(names[name]), names)
    ]


def _paired_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Return the new name of each old definition.

    They are found by walking the same fields of both, from the names that both have.
    """
    paired = {name: name for name in old}
    todo = [name for name in old if name in new]
    while todo:
        name = todo.pop()
        for old_name, new_name in _referred(_fields(old[name]), _fields(new[paired[name]])):
            if old_name != new_name and old_name not in new:
                paired[old_name] = new_name
                todo.append(old_name)
    return paired


def _fields(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = definition.get("properties", {})
    return fields


def _referred(
    old_fields: Mapping[str, Any], new_fields: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the old and the new name of each definition that a field of both refers to."""
    for field in old_fields.keys() & new_fields.keys():
        yield from zip(_references(old_fields[field]), _references(new_fields[field]), strict=False)


def _references(kind: Any) -> list[str]:
    """Return the names of the definitions that a field's type refers to, in order."""
    if isinstance(kind, list):
        return [name for item in kind for name in _references(item)]
    if not isinstance(kind, dict):
        return []
    own = [kind["$ref"].removeprefix(_DEFINITIONS)] if "$ref" in kind else []
    return own + [name for value in kind.values() for name in _references(value)]


def _changes(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any] | None, names: Mapping[str, str]
) -> Iterator[str]:
    """Yield what changed in one definition for a reader of older lines."""
    if new is None:
        yield f"{name} is gone"
        return
    if not _fields(old):
        yield from _changed_meaning(name, old, new, names)
    for field, kind in _fields(old).items():
        if field not in _fields(new):
            yield f"{name}.{field} is gone"
        else:
            yield from _changed_meaning(f"{name}.{field}", kind, _fields(new)[field], names)
    for field in sorted(_required(new) - _required(old)):
        yield f"{name}.{field} has no default, and older lines may lack it"


def _required(definition: Mapping[str, Any]) -> set[str]:
    return set(definition.get("required", ()))


def _changed_meaning(
    name: str, old: Mapping[str, Any], new: Mapping[str, Any], names: Mapping[str, str]
) -> Iterator[str]:
    if _meaning(old, names) != _meaning(new):
        yield f"{name} was {_meaning(old)}, is {_meaning(new)}"


def _meaning(kind: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return what a type says of the data, with its references by their new names."""
    own = {key: value for key, value in kind.items() if key not in _NO_MEANING}
    return own if names is None else _renamed(own, names)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {key: _renamed(item, names) for key, item in value.items()}
    if "$ref" in renamed:
        name = renamed["$ref"].removeprefix(_DEFINITIONS)
        renamed["$ref"] = _DEFINITIONS + names.get(name, name)
    return renamed


def _rewritten(value: Any) -> Any:
    """Return the schema as it is published.

    Descriptions are without the code's indentation, numbers are as they are written, and
    alternatives in an order of our own, since that of msgspec differs between its versions.
    """
    if isinstance(value, list | tuple):
        return [_rewritten(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value == {"type": "number"}:
        return {"$ref": _NUMBER}
    return _tidied({key: _rewritten(item) for key, item in value.items()})


def _tidied(definition: dict[str, Any]) -> dict[str, Any]:
    description = definition.get("description")
    if isinstance(description, str):
        definition["description"] = inspect.cleandoc(description)
    if "anyOf" in definition:
        definition["anyOf"] = sorted(definition["anyOf"], key=_null_last)
    return definition


def _null_last(alternative: Any) -> tuple[bool, str]:
    return alternative == {"type": "null"}, str(alternative)
