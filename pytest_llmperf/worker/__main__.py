"""`python -m pytest_llmperf.worker --fd N --rank R --world-size W`.

One rank of one loaded model, started by the session.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import socket

from pytest_llmperf.processes import die_with_parent, keep_to_cores, lead_own_group
from pytest_llmperf.wire.frames import worker_end
from pytest_llmperf.worker.host import Host
from pytest_llmperf.worker.loop import serve


def main(argv: list[str] | None = None) -> None:
    """Serve commands on the inherited socket until Close, or until the session ends."""
    options = _parser().parse_args(argv)
    lead_own_group()
    keep_to_cores()
    if options.die_with_parent:
        die_with_parent()
    work(options.fd, rank=options.rank)


def work(fd: int, *, rank: int) -> None:
    """Serve commands on this socket until Close, or until the session ends."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.set_inheritable(fd, False)
    serve(worker_end(socket.socket(fileno=fd)), Host(rank=rank))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_llmperf.worker", description=__doc__)
    parser.add_argument(
        "--fd", type=int, required=True, help="inherited stream socket to the session"
    )
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world-size", type=int, default=1)
    parser.add_argument(
        "--die-with-parent",
        action="store_true",
        help="let the kernel kill this process with its parent thread",
    )
    return parser


if __name__ == "__main__":
    main()
