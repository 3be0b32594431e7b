"""Where the ranks of one model meet: a store of torch's that listens on one address alone.

torch's own rendezvous (env://) listens on every interface of the host, and lets everybody in.
Imports no torch: it is given torch.distributed.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

SECRET = "LLMPERF_RENDEZVOUS"  # noqa: S105 - the name of the variable that holds it
"""What every key of the store begins with: nobody else on the host can guess it."""


def store(dist: Any, timeout: timedelta) -> dict[str, Any]:
    """Return the arguments of `init_process_group` with which the ranks of this launch meet.

    Rank 0 listens on MASTER_ADDR, and on no other address. `dist` is torch.distributed.

    Raises:
        RuntimeError: as torch, where the ranks do not meet in time. OSError: the port is taken.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    listening = _listening(host, port) if rank == 0 else None
    keys = dist.TCPStore(
        host_name=host,
        port=port,
        world_size=world,
        is_master=rank == 0,
        timeout=timeout,
        **({} if listening is None else {"master_listen_fd": listening}),
    )
    secret = os.environ.get(SECRET, "")
    own_keys = dist.PrefixStore(secret, keys) if secret else keys
    return {"store": own_keys, "rank": rank, "world_size": world}


def _listening(host: str, port: int) -> int:
    """Return the descriptor of a socket that listens on one address. The store closes it."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener.detach()
