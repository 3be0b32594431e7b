"""A strategy part: a pure function over the load plan, and what it promises to be in effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_llmperf.core.effective import Promise
from pytest_llmperf.core.plan import LoadPlan


@dataclass(frozen=True, kw_only=True)
class Part:
    """One row of the table of strategies.

    `fields` are the LoadPlan fields the part sets, with their values; two parts that set one field
    conflict. A part that takes an argument (`compile:max-autotune`) names its choices in
    `arguments` (argument -> fields), or reads any text by `argument` (`wanda:0.5`, `lora:PATH`),
    which gives the fields or raises UsageError; `example` is then an argument to show, and a
    `numbered` part has its argument right behind its name (`tp2`). Several parts may set a field of
    `joins`, whose values are tuples: they are put together in order.
    """

    name: str
    kind: str
    summary: str
    fields: dict[str, object]
    promises: Callable[[LoadPlan], tuple[Promise, ...]]
    arguments: dict[str, dict[str, object]] | None = None
    argument: Callable[[str], dict[str, object]] | None = None
    example: str = ""
    joins: frozenset[str] = frozenset()
    numbered: bool = False
