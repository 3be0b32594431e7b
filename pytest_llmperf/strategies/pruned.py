"""Pruning parts: `magnitude:S`, `wanda:S`, `sparsegpt:S` (or `:2:4`) and `structured:S`.

What they ask and promise. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import Struct

from pytest_llmperf.core.effective import Effective, Promise, Pruned
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.errors import UsageError
from pytest_llmperf.strategies.base import Part

TOLERANCE = 0.005
"""How far the measured sparsity may be from the one asked for, in all and in any one layer (share of weights)."""

_NUMBER = re.compile(r"(0|1)?\.[0-9]+|[0-9]+")
_PATTERN = "2:4"

METHODS = {
    "magnitude": "smallest weights of each linear layer set to zero",
    "wanda": "weights with the smallest |weight| x input norm of each row set to zero (Wanda)",
    "sparsegpt": "weights set to zero and the others corrected for it, by the inputs' second moments (SparseGPT)",
    "structured": "attention heads and MLP channels removed: the model gets smaller",
}
"""Method -> what it does."""


STRUCTURED_FAMILIES = ("llama", "falcon")
"""transformers' model types whose heads and channels structured pruning knows."""


class Pruning(Struct, frozen=True, kw_only=True):
    """A pruning that was asked for: a share of the weights (0 to 1), and the N:M pattern where one was named."""

    method: str
    sparsity: float
    pattern: tuple[int, int] | None = None

    def __str__(self) -> str:
        return (
            f"{self.method}:{self.pattern[0]}:{self.pattern[1]}"
            if self.pattern
            else f"{self.method}:{self.sparsity:g}"
        )

    @property
    def structured(self) -> bool:
        """Whether weights are removed, and not set to zero."""
        return self.method == "structured"


def parse_pruning(text: str) -> Pruning:
    """The pruning that a part's text such as 'wanda:0.5' or 'wanda:2:4' asks for.

    Raises UsageError.
    """
    method, _, argument = text.partition(":")
    if method not in METHODS:
        raise UsageError(
            f"pruning {text!r}: method {method!r} is not known. Methods: {', '.join(METHODS)}."
        )
    if argument == _PATTERN and method != "structured":
        return Pruning(method=method, sparsity=0.5, pattern=(2, 4))
    return Pruning(method=method, sparsity=_share(method, argument))


def sparsity_is(part: str, sparsity: float) -> Promise:
    """The measured share of weights that are gone is `sparsity` within TOLERANCE: in all, and nowhere less."""

    def broken(effective: Effective) -> str | None:
        found = effective.pruned
        if found is None or not found.layers:
            pruned = "reported no pruning" if found is None else "pruned 0 linear layers"
            return f"engine {effective.engine!r} {pruned} ({effective.model_class}), asked for {sparsity:.1%} sparsity"
        if abs(found.sparsity - sparsity) > TOLERANCE:
            return f"{_gone(found)}, asked for {sparsity:.1%}"
        if found.lowest < sparsity - TOLERANCE:
            return f"{found.lowest_layer} lacks {found.lowest:.1%} of its weights, asked for {sparsity:.1%}; {_gone(found)}"
        return None

    return Promise(f"{sparsity:.1%} of the weights are gone", broken, part=part)


def pattern_is(part: str, pattern: str) -> Promise:
    """In every group of M neighbours of a row at most N weights are not zero."""

    def broken(effective: Effective) -> str | None:
        found = effective.pruned
        if found is None or found.pattern != pattern or not found.groups:
            return f"no {pattern} pattern was verified ({found.pattern if found else None}), asked for {pattern}"
        if not found.broken_groups:
            return None
        kept, width = pattern.split(":")
        return f"{found.broken_groups} of {found.groups} groups of {width} hold more than {kept} weights, asked for {pattern}"

    return Promise(f"zeros in a {pattern} pattern", broken, part=part)


def _share(method: str, argument: str) -> float:
    others = "a share like 0.5" if method == "structured" else f"a share like 0.5, or {_PATTERN}"
    if not _NUMBER.fullmatch(argument):
        raise UsageError(
            f"strategy part {method!r}: sparsity {argument!r} is not understood. Write {others}: '{method}:0.5'."
        )
    share = float(argument)
    if not 0 < share < 1:
        # Per cent.
        hint = f" Did you mean '{method}:{share / 100:g}'?" if 1 < share < 100 else ""  # noqa: PLR2004
        raise UsageError(
            f"strategy part {method!r}: sparsity {argument} is not between 0 and 1.{hint} Write {others}."
        )
    return share


def _gone(found: Pruned) -> str:
    """For example: `40000 of 100000 weights of 210 linear layers are zero (40.0 %)`."""
    if found.stored == "smaller":
        gone = found.weights_before - found.weights
        return f"{gone} of {found.weights_before} weights of {found.layers} linear layers were removed ({found.sparsity:.1%})"
    return f"{found.zeros} of {found.weights} weights of {found.layers} linear layers are zero ({found.sparsity:.1%})"


def _fields(method: str) -> Callable[[str], dict[str, object]]:
    return lambda argument: {"pruning": str(parse_pruning(f"{method}:{argument}"))}


def _promises(plan: LoadPlan) -> tuple[Promise, ...]:
    asked = parse_pruning(plan.pruning or "")
    kept = (sparsity_is(str(asked), asked.sparsity),)
    return (*kept, pattern_is(str(asked), _PATTERN)) if asked.pattern else kept


PARTS = tuple(
    Part(
        name=method,
        kind="pruning",
        summary=summary,
        fields={},
        promises=_promises,
        argument=_fields(method),
        example="0.25" if method == "structured" else "0.5",
    )
    for method, summary in METHODS.items()
)
