"""The JSON Schema of a record, made from its fields.

And whether a changed one still reads what was written before. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from pytest_llmperf.core.record import SCHEMA_VERSION, Record

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFINITIONS = "#/$defs/"
_NUMBER = f"{_DEFINITIONS}Number"
_NO_MEANING = frozenset({"description", "title"})


def record_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one line of `record_json.encode`.

    Fields that it does not name are allowed: readers skip them.
    """
    found = _rewritten(msgspec.json.schema(Record))
    found["$defs"]["Record"]["properties"]["schema_version"] = {
        "const": SCHEMA_VERSION,
        "default": SCHEMA_VERSION,
    }
    found["$defs"]["Number"] = {
        "title": "Number",
        "description": "JSON has no NaN and no infinity: they are written as these texts.",
        "anyOf": [{"type": "number"}, {"enum": ["nan", "inf", "-inf"]}],
    }
    head = {
        "$schema": DIALECT,
        "$id": f"urn:pytest-llmperf:record:{SCHEMA_VERSION}",
        "title": "A record of pytest-llmperf",
    }
    return {**head, **found, "$defs": dict(sorted(found["$defs"].items()))}


def broken(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What makes `new` another version than `old`: fields that are gone, mean something else, or are missing in older lines.

    A new field with a default is no such change: it is filled in for older lines, and older readers skip it. Nor is another
    name of a definition, which no line holds: definitions are paired by the fields that lead to them.
    """
    names = _paired_names(old["$defs"], new["$defs"])
    pairs = [(name, was, new["$defs"].get(names[name])) for name, was in old["$defs"].items()]
    return [line for name, was, now in pairs for line in _changes(name, was, now, names)]


def _paired_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Each definition's old name -> its name now, found by walking the same fields of both from the same names."""
    paired = {name: name for name in old}
    todo = [name for name in old if name in new]
    while todo:
        name = todo.pop()
        fields, fields_now = (
            defs[key].get("properties", {}) for defs, key in ((old, name), (new, paired[name]))
        )
        for field in fields.keys() & fields_now.keys():
            for was, now in zip(
                _references(fields[field]), _references(fields_now[field]), strict=False
            ):
                if was != now and was not in new:
                    paired[was] = now
                    todo.append(was)
    return paired


def _references(kind: Any) -> list[str]:
    """Names of the definitions that a field's type refers to, in order."""
    if isinstance(kind, list):
        return [name for item in kind for name in _references(item)]
    if not isinstance(kind, dict):
        return []
    own = [kind["$ref"].removeprefix(_DEFINITIONS)] if "$ref" in kind else []
    return own + [name for value in kind.values() for name in _references(value)]


def _changes(
    name: str, was: Mapping[str, Any], now: Mapping[str, Any] | None, names: Mapping[str, str]
) -> Iterator[str]:
    if now is None:
        yield f"{name} is gone"
        return
    fields, fields_now = was.get("properties", {}), now.get("properties", {})
    if not fields and _meaning(was, names) != _meaning(now):
        yield f"{name} was {_meaning(was)}, is {_meaning(now)}"
    for field, kind in fields.items():
        if field not in fields_now:
            yield f"{name}.{field} is gone"
        elif _meaning(kind, names) != _meaning(fields_now[field]):
            yield f"{name}.{field} was {_meaning(kind)}, is {_meaning(fields_now[field])}"
    for field in now.get("required", ()):
        if field not in was.get("required", ()):
            yield f"{name}.{field} has no default, and older lines may lack it"


def _meaning(kind: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a type says of the data, with its references by their names now."""
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
    """Descriptions without the code's indentation; numbers as they are written.

    Alternatives in an order of our own.
    """
    if isinstance(value, list | tuple):
        return [_rewritten(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value == {"type": "number"}:
        return {"$ref": _NUMBER}
    found = {key: _rewritten(item) for key, item in value.items()}
    if "anyOf" in found:  # whose order differs between versions of msgspec
        found["anyOf"] = sorted(
            found["anyOf"], key=lambda each: (each == {"type": "null"}, str(each))
        )
    if isinstance(text := found.get("description"), str):
        found["description"] = inspect.cleandoc(text)
    return found
