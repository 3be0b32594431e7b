"""Ranks meet on the loopback interface alone, under keys that nobody else can guess."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

from pytest_llmperf.engines import rendezvous
from pytest_llmperf.workers.process import free_port, rank_environment

RANK = """
import json, os, sys
from datetime import timedelta
import psutil, torch, torch.distributed as dist
from pytest_llmperf.engines import rendezvous

def addresses():
    connections = psutil.Process().net_connections("inet")
    return sorted({c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN})

def meet(**store):
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", timeout=limit, **store)
    total = torch.ones(1)
    dist.all_reduce(total)
    seen = addresses()
    dist.barrier()
    dist.destroy_process_group()
    return seen, total.item()

meetings = [meet(**rendezvous.store(dist, timedelta(seconds=60)))]
os.environ["MASTER_PORT"] = sys.argv[1]
os.environ.pop("GLOO_SOCKET_IFNAME")
meetings.append(meet())
print(json.dumps(meetings))
"""


def test_ranks_listen_on_loopback_alone():
    """With torch's own rendezvous, after it, the check sees that rank 0 listens everywhere."""
    base = {**os.environ, rendezvous.SECRET: "a secret"}
    port, other_port = free_port(), free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(other_port)],
            env=rank_environment(rank=rank, ranks=2, port=port, base=base),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (ours, theirs), other_rank = (json.loads(rank.communicate()[0]) for rank in ranks)
    assert ours == other_rank[0] == [["127.0.0.1"], 2.0]
    assert set(theirs[0]) & {"::", "0.0.0.0"}  # noqa: S104 - what torch does


def test_the_loopback_interface_is_kept_to_unless_the_user_names_one():
    alone = rank_environment(rank=0, ranks=2, port=1, base={})
    assert alone["GLOO_SOCKET_IFNAME"] in {name for _, name in socket.if_nameindex()}
    named = rank_environment(rank=0, ranks=2, port=1, base={"GLOO_SOCKET_IFNAME": "eth7"})
    assert named["GLOO_SOCKET_IFNAME"] == "eth7"
    elsewhere = rank_environment(rank=0, ranks=2, port=1, base={}, host="10.0.0.1")
    assert "GLOO_SOCKET_IFNAME" not in elsewhere
