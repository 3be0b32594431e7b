"""The likeliest next tokens after a prompt, as a value."""

from __future__ import annotations

from msgspec import Struct

from pytest_llmperf.core.agreement.comparison import TopToken


class TopTokens(Struct, frozen=True, kw_only=True):
    """The k likeliest tokens after a prompt, the likeliest first; a tie goes to the smaller id.

    `prompt_ids` are what went in: hand them to another model, so that a text is tokenised once.
    `token in top` asks by id.
    """

    prompt_ids: tuple[int, ...]
    tokens: tuple[TopToken, ...]

    @property
    def first(self) -> TopToken:
        """The greedy choice."""
        return self.tokens[0]

    @property
    def ids(self) -> tuple[int, ...]:
        """Token ids, the likeliest first."""
        return tuple(token.token_id for token in self.tokens)

    def __contains__(self, token: object) -> bool:
        return (token.token_id if isinstance(token, TopToken) else token) in self.ids

    def __str__(self) -> str:
        return "  ".join(f"{token.text!r} {token.logit:.2f}" for token in self.tokens)
