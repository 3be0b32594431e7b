"""Pruning parts: `magnitude:S`, `wanda:S`, `sparsegpt:S` (or `:2:4`) and `structured:S`.

What they ask for and what they promise. Pure.
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
"""How far the measured sparsity may be from the one asked for, as a share of the weights.

It holds for the whole model and for any one layer.
"""

_NUMBER = re.compile(r"(0|1)?\.[0-9]+|[0-9]+")
_PATTERN = "2:4"

METHODS = {
    "magnitude": "smallest weights of each linear layer set to zero",
    "wanda": "weights with the smallest |weight| x input norm of each row set to zero (Wanda)",
    "sparsegpt": (
        "weights set to zero and the others corrected for it, "
        "by the inputs' second moments (SparseGPT)"
    ),
    "structured": "attention heads and MLP channels removed: the model gets smaller",
}
"""Method -> what it does."""

STRUCTURED_FAMILIES = ("llama", "falcon")
"""transformers' model types whose heads and channels structured pruning knows."""


class Pruning(Struct, frozen=True, kw_only=True):
    """A pruning to be done: a share of the weights (0 to 1), and an N:M pattern or None."""

    method: str
    sparsity: float
    pattern: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"{self.method}:{self.pattern[0]}:{self.pattern[1]}"
        return f"{self.method}:{self.sparsity:g}"

    @property
    def structured(self) -> bool:
        """Whether weights are removed, and not set to zero."""
        return self.method == "structured"


def parse_pruning(text: str) -> Pruning:
    """Return the pruning that a part's text such as 'wanda:0.5' or 'wanda:2:4' asks for.

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
    """Promise that a share `sparsity` of the weights is gone, within TOLERANCE.

    That is measured over the whole model, and no layer lacks less.
    """
    return Promise(
        f"{sparsity:.1%} of the weights are gone",
        lambda effective: _wrong_sparsity(effective, sparsity),
        part=part,
    )


def _wrong_sparsity(effective: Effective, sparsity: float) -> str | None:
    pruned = effective.pruned
    if pruned is None or not pruned.layers:
        return f"{_nothing_pruned(effective)}, asked for {sparsity:.1%} sparsity"
    if effective.large_other_matrices:
        groups = "; ".join(map(str, effective.large_other_matrices))
        return f"linear layers alone are pruned; left as they are: {groups}"
    if abs(pruned.sparsity - sparsity) > TOLERANCE:
        return f"{_removal(pruned)}, asked for {sparsity:.1%}"
    if pruned.lowest < sparsity - TOLERANCE:
        return (
            f"{pruned.lowest_layer} lacks {pruned.lowest:.1%} of its weights, "
            f"asked for {sparsity:.1%}; {_removal(pruned)}"
        )
    return None


def _nothing_pruned(effective: Effective) -> str:
    action = "reported no pruning" if effective.pruned is None else "pruned 0 linear layers"
    return f"engine {effective.engine!r} {action} ({effective.model_class})"


def pattern_is(part: str, pattern: str) -> Promise:
    """Promise that in every group of M neighbours of a row at most N weights are not zero."""
    return Promise(
        f"zeros in a {pattern} pattern",
        lambda effective: _wrong_pattern(effective.pruned, pattern),
        part=part,
    )


def _wrong_pattern(pruned: Pruned | None, pattern: str) -> str | None:
    if pruned is None or pruned.pattern != pattern or not pruned.groups:
        verified = None if pruned is None else pruned.pattern
        return f"no {pattern} pattern was verified ({verified}), asked for {pattern}"
    if not pruned.broken_groups:
        return None
    most, width = pattern.split(":")
    return (
        f"{pruned.broken_groups} of {pruned.groups} groups of {width} hold more than {most} "
        f"weights, asked for {pattern}"
    )


def _share(method: str, argument: str) -> float:
    choices = "a share like 0.5" if method == "structured" else f"a share like 0.5, or {_PATTERN}"
    if not _NUMBER.fullmatch(argument):
        raise UsageError(
            f"strategy part {method!r}: sparsity {argument!r} is not understood. "
            f"Write {choices}: '{method}:0.5'."
        )
    share = float(argument)
    if not 0 < share < 1:
        raise UsageError(
            f"strategy part {method!r}: sparsity {argument} is not between 0 and 1."
            f"{_per_cent_hint(method, share)} Write {choices}."
        )
    return share


def _per_cent_hint(method: str, share: float) -> str:
    is_per_cent = 1 < share < 100  # noqa: PLR2004
    return f" Did you mean '{method}:{share / 100:g}'?" if is_per_cent else ""


def _removal(pruned: Pruned) -> str:
    """For example: `40000 of 100000 weights of 210 linear layers are zero (40.0 %)`."""
    if pruned.stored == "smaller":
        n_removed = pruned.weights_before - pruned.weights
        return (
            f"{n_removed} of {pruned.weights_before} weights of {pruned.layers} linear layers "
            f"were removed ({pruned.sparsity:.1%})"
        )
    return (
        f"{pruned.zeros} of {pruned.weights} weights of {pruned.layers} linear layers are zero "
        f"({pruned.sparsity:.1%})"
    )


def _fields(method: str) -> Callable[[str], dict[str, object]]:
    return lambda argument: {"pruning": str(parse_pruning(f"{method}:{argument}"))}


def _promises(plan: LoadPlan) -> tuple[Promise, ...]:
    pruning = parse_pruning(plan.pruning or "")
    sparsity = sparsity_is(str(pruning), pruning.sparsity)
    if pruning.pattern is None:
        return (sparsity,)
    return (sparsity, pattern_is(str(pruning), _PATTERN))


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
