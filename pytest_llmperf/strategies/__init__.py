"""Strategies: what a load plan asks of an engine, as `+`-joined parts, and what each promises."""

from pytest_llmperf.strategies.base import Part
from pytest_llmperf.strategies.grammar import (
    ChosenPart,
    Strategy,
    check_engine_can,
    parse,
    require_in_effect,
)
from pytest_llmperf.strategies.table import KINDS, TABLE

__all__ = [
    "KINDS",
    "TABLE",
    "ChosenPart",
    "Part",
    "Strategy",
    "check_engine_can",
    "parse",
    "require_in_effect",
]
