"""A host of models in pytest's own process, spoken to as if it were a worker."""

from __future__ import annotations

from collections.abc import Callable

from pytest_llmperf.wire.commands import Command, R
from pytest_llmperf.wire.messages import Heartbeat
from pytest_llmperf.worker.host import Host


class InProcess:
    """See `workers.pool.Channel`.

    It has no deadline and sends no heartbeat: to end it, the test's own process would have to die.
    """

    started = "in pytest's process"
    fork_failure = ""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.alive = True

    def call(
        self,
        command: Command[R],
        *,
        deadline_s: float,  # noqa: ARG002 - there is none
        on_beat: Callable[[Heartbeat], None] | None = None,  # noqa: ARG002 - nobody beats
    ) -> R:
        """Do the command here and now; what it raises goes through."""
        return self._host.handle(command)

    def close(self) -> None:
        """Take no further command. What is loaded goes with the host."""
        self.alive = False
