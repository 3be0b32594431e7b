"""What one side of a measurement is, as the record of a run has it.

It is enough to say whether two sides can be compared.
"""

from __future__ import annotations

from msgspec import Struct


class SideFacts(Struct, frozen=True, kw_only=True):
    """Work, strategy, model and environment of what is about to be measured."""

    workload_key: str
    workload_text: str
    strategy: str
    engine: str
    model: str
    model_hash: str
    environment_key: str
    facts: dict[str, str | int | float | bool | None]
