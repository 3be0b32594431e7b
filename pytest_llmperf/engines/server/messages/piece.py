"""What one message of a streamed answer says, in every protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sign = Literal["none", "role", "end", "empty"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one message says. None: it does not say.

    `text` is what it adds to the answer, in any channel, `n_tokens` the token ids that it carries.
    `empty` says what a choice without text is there for: a "role", the "end" (a choice that has
    nothing but a finish reason), a text that is "empty" (perhaps a token without a text), or "none"
    where the message has a text or no choice.

    `finish` is the reason why the answer ended. `n_prompt`, `n_output`, `n_cached` and
    `n_reasoning` are the usage so far. `n_choices` is how many choices it has.
    """

    text: str = ""
    n_tokens: int | None = None
    empty: Sign = "none"
    reasons: bool = False
    finish: str = ""
    n_prompt: int | None = None
    n_output: int | None = None
    n_cached: int | None = None
    n_reasoning: int | None = None
    n_choices: int = 1
    model: str | None = None
    error: str | None = None
