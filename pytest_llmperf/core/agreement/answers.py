"""What two servers answered to the same prompts: where their texts part. Pure.

The texts are those of the requests that were timed: greedy, of one length, from equal prompts.
Versions and kernels differ in their rounding, so equal models part somewhere; models, templates or
tokenizers that differ part at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean

from msgspec import Struct

ENOUGH = 8
"""Prompts after which answers that never begin alike are those of another model."""


class SharedAnswers(Struct, frozen=True, kw_only=True):
    """How far the answers of two servers agree.

    `equal` of `prompts` answers are the same text, `begin_alike` have the same first word, and
    `prefix` is the mean share of an answer's characters before it parts from the other, 0 to 1.
    """

    prompts: int = 0
    equal: int = 0
    begin_alike: int = 0
    prefix: float = 0.0

    def __add__(self, other: SharedAnswers) -> SharedAnswers:
        """Return both together."""
        n = self.prompts + other.prompts
        total = self.prefix * self.prompts + other.prefix * other.prompts
        return SharedAnswers(
            prompts=n,
            equal=self.equal + other.equal,
            begin_alike=self.begin_alike + other.begin_alike,
            prefix=total / n if n else 0.0,
        )

    @property
    def of_another_model(self) -> str:
        """Say that the answers have nothing in common; "" where some have, or too few are known."""
        if self.prompts < ENOUGH or self.begin_alike:
            return ""
        return (
            f"none of {self.prompts} answers begins with the same word: the two serve another "
            "model, template or tokenizer"
        )

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"{self.equal} of {self.prompts} answers are the same text, {self.prefix:.0%} of their "
            "characters come before they part"
        )


def shared_answers(
    ours: Mapping[int, Sequence[str]], theirs: Mapping[int, Sequence[str]]
) -> SharedAnswers:
    """Compare the answers of the repetitions that both have; prompts are equal in equal ones."""
    pairs = [
        pair
        for repetition in ours.keys() & theirs.keys()
        for pair in zip(ours[repetition], theirs[repetition], strict=False)
        if any(pair)
    ]
    if not pairs:
        return SharedAnswers()
    return SharedAnswers(
        prompts=len(pairs),
        equal=sum(one == other for one, other in pairs),
        begin_alike=sum(one.split()[:1] == other.split()[:1] for one, other in pairs),
        prefix=fmean(_shared(one, other) for one, other in pairs),
    )


def _shared(one: str, other: str) -> float:
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in alike) / max(len(one), len(other))
