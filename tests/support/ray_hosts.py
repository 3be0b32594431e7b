"""A Ray cluster of two nodes on this machine, one CPU each, until standard input ends.

Prints its two addresses.

Its own nodes alone end with it: `ray stop` would end every Ray process of the machine.
"""

from __future__ import annotations

import socket
import sys

from ray.cluster_utils import Cluster

STORE_BYTES = 80_000_000  # the least that Ray takes; nothing of ours goes through it


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    client_port = free_port()
    node = {
        "num_cpus": 1,
        "num_gpus": 0,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
    }
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "ray_client_server_port": client_port}
    )
    cluster.add_node(**node)
    cluster.wait_for_nodes()
    # Read by the test.
    print(f"hosts {cluster.address} ray://127.0.0.1:{client_port}", flush=True)  # noqa: T201
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
