"""Conversations as calls: what the next turn sends, and when it is due after the answer before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pytest_llmperf.engines.server.client import Call, Client, ClientRun, NextTurn, RequestOutcome
from pytest_llmperf.engines.server.dialogs.contexts import Context
from pytest_llmperf.engines.server.prompts import Prompt
from pytest_llmperf.workloads import Serve, Turn

MakeCall = Callable[[Prompt, int], Call]


@dataclass
class Dialog:
    """One conversation under way."""

    context: Context
    turns: tuple[Turn, ...]
    default_tokens: int
    make_call: MakeCall
    _sent: int = field(default=0)

    def next(self, previous: RequestOutcome | None) -> NextTurn | None:
        """Return the next turn after the answer before it; None at the end, or after a failure.

        Without its answer a conversation has no context to go on with.
        """
        if previous is not None:
            if previous.answer is None or previous.failure is not None:
                return None
            self.context.answer(previous.answer.text)
        if self._sent >= len(self.turns):
            return None
        turn = self.turns[self._sent]
        self._sent += 1
        prompt = self.context.say(turn, self._sent)
        call = self.make_call(prompt, turn.output_tokens or self.default_tokens)
        return NextTurn(call=call, after_s=turn.after_s, number=self._sent)


async def play(
    client: Client, work: Serve, begin: Callable[[int], Context], call: MakeCall
) -> ClientRun:
    """Play a load's conversations once: as many at once as it has lines, or when they start."""
    talks = work.conversations
    assert talks is not None  # noqa: S101 - whoever plays them has some
    dialogs = [
        Dialog(begin(number), turns, work.max_new_tokens, call)
        for number, turns in enumerate(talks.turns)
    ]
    return await client.dialogs(
        dialogs,
        lines=work.concurrency,
        starts_s=work.starts_s(),
        requests=work.requests,
        duration_s=work.duration,
    )
