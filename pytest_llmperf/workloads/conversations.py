"""Conversations: turns whose context grows by what was said and answered before. Values only.

A turn is sent when its answer's predecessor is over and its time to think has passed. What a user
or a tool says is a text, or so many drawn tokens; what the server answered is what it really said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from pytest_llmperf.core.misspelt import SuggestingMeta
from pytest_llmperf.errors import UsageError
from pytest_llmperf.workloads.checks import (
    content_hash,
    is_count,
    is_number,
    json_object,
    read_lines,
)

_EXPECTED = (
    'Expected one conversation a line, such as {"timestamp": 0.5, "turns": [{"text": "Hello", '
    '"output_tokens": 32}, {"prompt_tokens": 200, "role": "tool", "after": 1.5}]}.'
)
_SAID_BY_USERS = frozenset({"human", "user"})


class Turn(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True):
    """What is said, and how long the answer is.

    `text` is what a user or a tool says; without it `prompt_tokens` are drawn. `output_tokens` are
    those of the answer, 0 for the load's own. `after_s` is the time to think: seconds from the end
    of the answer before it (of a first turn: from the start of its conversation).
    """

    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    after_s: float = 0.0
    role: Literal["user", "tool"] = "user"


class Conversations(Struct, metaclass=SuggestingMeta, frozen=True, kw_only=True):
    """Conversations in the order in which they start; see `Serve`.

    `system` is what all of them begin with, as a text, or `system_tokens` drawn tokens: their
    shared prefix. `starts_s` are their starts where a trace says them, in seconds, ascending.
    Drawn tokens follow from `seed`.
    """

    name: str
    turns: tuple[tuple[Turn, ...], ...]
    system: str = ""
    system_tokens: int = 0
    starts_s: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def synthetic(
        cls,
        n: int,
        *,
        turns: int,
        prompt_tokens: int = 64,
        output_tokens: int = 64,
        think_s: float = 0.0,
        system_tokens: int = 0,
        seed: int = 0,
    ) -> Conversations:
        """Return `n` conversations of equal shape, each of drawn tokens.

        Raises UsageError for numbers that cannot be used.
        """
        if not (is_count(n) and is_count(turns) and is_count(prompt_tokens)):
            raise UsageError(
                f"Conversations.synthetic({n!r}, turns={turns!r}, prompt_tokens="
                f"{prompt_tokens!r}): whole numbers of at least 1 are needed."
            )
        first = Turn(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        later = Turn(prompt_tokens=prompt_tokens, output_tokens=output_tokens, after_s=think_s)
        return cls(
            name=f"{n} of {turns} turns",
            turns=((first, *((later,) * (turns - 1))),) * n,
            system_tokens=system_tokens,
            seed=seed,
        )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, system: str = "") -> Conversations:
        """Read one conversation a line: "turns", and the "timestamp" of its start where known.

        A turn has "text" or "prompt_tokens", and may have "output_tokens", "after" (seconds) and
        "role" ("user", "tool").

        Raises UsageError for a file or a line that is none, which is named.
        """
        path = Path(path)
        lines = [line for line in read_lines(path, "conversations file") if line.strip()]
        rows = [json_object(line, f"{path}:{i}", _EXPECTED) for i, line in enumerate(lines, 1)]
        turns = tuple(_turns(row, f"{path}:{i}") for i, row in enumerate(rows, 1))
        return cls(name=path.name, turns=turns, system=system, starts_s=_starts(rows, str(path)))

    @classmethod
    def from_sharegpt(
        cls, path: str | Path, *, limit: int | None = None, think_s: float = 0.0
    ) -> Conversations:
        """Read ShareGPT's JSON: "conversations" of {"from": "human"|"gpt", "value": text}.

        What the model said there is left out: the server's own answers take its place. `limit` is
        how many conversations are taken, from the first on.

        Raises UsageError for a file that is none.
        """
        path = Path(path)
        rows = _sharegpt_rows(path)
        talks = [_said_by_users(row, think_s) for row in rows]
        return cls(name=path.name, turns=tuple(talk for talk in talks if talk)[:limit])

    @property
    def n_turns(self) -> int:
        """How many requests all of them have."""
        return sum(map(len, self.turns))

    @property
    def content_hash(self) -> str:
        """SHA-256 (16 hex digits) of what is said and when; never the file's name."""
        return content_hash((self.turns, self.system, self.system_tokens, self.starts_s, self.seed))


def _check(talks: Conversations) -> None:
    if not talks.turns or not all(talks.turns):
        raise UsageError(
            f"Conversations {talks.name!r} has none, or one without a turn. {_EXPECTED}"
        )
    if talks.starts_s and len(talks.starts_s) != len(talks.turns):
        raise UsageError(
            f"Conversations {talks.name!r}: {len(talks.starts_s)} starts are given for "
            f"{len(talks.turns)} conversations."
        )
    if list(talks.starts_s) != sorted(talks.starts_s):
        raise UsageError(f"Conversations {talks.name!r}: sort them by their timestamps.")
    for at, turns in enumerate(talks.turns, 1):
        for turn in turns:
            _check_turn(turn, f"Conversations {talks.name!r}, number {at}")


def _check_turn(turn: Turn, where: str) -> None:
    if not turn.text and not is_count(turn.prompt_tokens):
        raise UsageError(f"{where}: a turn needs 'text' or 'prompt_tokens' of at least 1.")
    if not is_count(turn.output_tokens, 0):
        raise UsageError(f"{where}: output_tokens={turn.output_tokens!r} is no number of tokens.")
    if not (is_number(turn.after_s) and turn.after_s >= 0):
        raise UsageError(f"{where}: after={turn.after_s!r} are no seconds to think.")
    if turn.role not in ("user", "tool"):
        raise UsageError(f"{where}: role {turn.role!r} is not known. Roles: user, tool.")


def _turns(row: dict[str, Any], position: str) -> tuple[Turn, ...]:
    turns = row.get("turns")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UsageError(f"{position}: no list 'turns' of objects. {_EXPECTED}")
    return tuple(_turn(turn, position) for turn in turns)


def _turn(turn: dict[str, Any], position: str) -> Turn:
    text = turn.get("text", "")
    if not isinstance(text, str):
        raise UsageError(f"{position}: 'text' is {text!r:.40}, a text is needed. {_EXPECTED}")
    return Turn(
        text=text,
        prompt_tokens=turn.get("prompt_tokens", 0),
        output_tokens=turn.get("output_tokens", 0),
        after_s=turn.get("after", 0.0),
        role=turn.get("role", "user"),
    )


def _starts(rows: Sequence[dict[str, Any]], source: str) -> tuple[float, ...]:
    starts = tuple(row["timestamp"] for row in rows if "timestamp" in row)
    if starts and (len(starts) < len(rows) or not all(map(is_number, starts))):
        raise UsageError(f"{source}: 'timestamp' must be a number on every line, or on none.")
    return starts


def _sharegpt_rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read as ShareGPT's JSON: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{str(path)!r}: a list of objects with 'conversations' is needed.")
    if not any(isinstance(row.get("conversations"), list) for row in rows):
        raise UsageError(f"{str(path)!r}: no object has a list 'conversations'.")
    return rows


def _said_by_users(row: dict[str, Any], think_s: float) -> tuple[Turn, ...]:
    parts = row.get("conversations") or []
    texts = [
        part["value"]
        for part in parts
        if isinstance(part, dict) and part.get("from") in _SAID_BY_USERS and part.get("value")
    ]
    return tuple(Turn(text=text, after_s=think_s if at else 0.0) for at, text in enumerate(texts))
