"""The connection to Ray: made with what can be said when it fails, and Ray's errors as ours."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from typing import Any

from pytest_llmperf.errors import LlmperfError, UsageError, WorkerError
from pytest_llmperf.settings.cluster_address import AUTO, host_and_port

_CONNECT_S = 5.0


def connected(address: str) -> Any:
    """Return the module ray, connected. Raises UsageError with what was tried and what to do."""
    # A session that is gone does not come back.
    os.environ.setdefault("RAY_CLIENT_RECONNECT_GRACE_PERIOD", "0")
    ray = import_module("ray")
    client_server = host_and_port(address)
    if client_server is not None:
        _require_open(address, client_server)
    try:
        ray.init(address=address, namespace="pytest-llmperf", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--llmperf-cluster={address!r}: {_first_line(error)}. {_advice(address)}"
        ) from error
    return ray


def as_own_error(error: Exception, address: str) -> Exception:
    """Return an error that says what to do, for what Ray raises of a host that cannot run our part.

    A host may lack pytest-llmperf, or be gone.
    """
    if isinstance(error, LlmperfError):
        return error
    text = str(error)
    if "pytest_llmperf" in text and ("ModuleNotFoundError" in text or "No module named" in text):
        return UsageError(
            f"--llmperf-cluster={address!r}: a host of the cluster has no pytest-llmperf in the "
            "Python that Ray runs with. Install the same version there, with the engine's "
            f"packages. Ray says: {_first_line(error)}.",
        )
    return WorkerError(f"--llmperf-cluster={address!r}: {type(error).__name__}: {text}")


def last_line(error: BaseException) -> str:
    """Return what was raised on another host, of which Ray says the traceback first."""
    return str(error).rstrip().rpartition("\n")[2]


def _first_line(error: BaseException) -> str:
    lines = (line.strip().rstrip(".") for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)


def _require_open(address: str, client_server: tuple[str, int]) -> None:
    try:
        socket.create_connection(client_server, timeout=_CONNECT_S).close()
    except OSError as error:
        raise UsageError(
            f"--llmperf-cluster={address!r}: nothing answers there ({error}). {_advice(address)}"
        ) from error


def _advice(address: str) -> str:
    if address == AUTO:
        return (
            "'auto' takes the cluster that this machine is a host of: start it with 'ray start "
            "--head', join one with 'ray start --address=HOST:6379', set RAY_ADDRESS, or name a "
            "client server with 'ray://HOST:10001'."
        )
    return (
        "'ray start --head' on that host opens its client server, at port 10001 unless told "
        "otherwise ('ray status' there)."
    )
