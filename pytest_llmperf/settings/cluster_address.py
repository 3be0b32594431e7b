"""The value of --llmperf-cluster, and whether this interpreter can follow it. Imports no Ray."""

from __future__ import annotations

import importlib.util
import re

from pytest_llmperf.errors import UsageError, did_you_mean

AUTO = "auto"
_CLIENT = re.compile(r"ray://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/:\[\]]+):(?P<port>\d{1,5})")


def parse(text: str) -> str:
    """The address as it is used: "" for no cluster, "auto", or "ray://HOST:PORT".

    Raises UsageError for anything else.
    """
    value = text.strip()
    if value in ("", AUTO) or _port(value):
        return value
    hints = f"{did_you_mean(value, [AUTO])}{_advice(value)}"
    raise UsageError(
        f"--llmperf-cluster={text!r} is not an address of a Ray cluster.{hints} Choices: "
        "'auto' (this machine is one of the cluster's hosts) and "
        "'ray://HOST:PORT' (Ray's client server, port 10001 by default)."
    )


def host_and_port(address: str) -> tuple[str, int] | None:
    """Where a client connects; None for "auto"."""
    match = _CLIENT.fullmatch(address)
    return None if match is None else (match["host"].strip("[]"), int(match["port"]))


def require_ray(address: str) -> None:
    """Raise UsageError where this interpreter lacks Ray or what its client needs.

    The message says what to install.
    """
    if importlib.util.find_spec("ray") is None:
        lack = "Ray is not installed here"
    elif address != AUTO and importlib.util.find_spec("grpc") is None:
        lack = "Ray's client needs grpcio, which is not installed here"
    else:
        return
    raise UsageError(
        f"--llmperf-cluster={address!r}: {lack}. Run pip install 'pytest-llmperf[ray]', with the "
        "version of Ray that the cluster runs, or leave the option out: models are then loaded "
        "on this machine."
    )


def _port(value: str) -> bool:
    match = _CLIENT.fullmatch(value)
    return match is not None and 0 < int(match["port"]) < 2**16


def _advice(value: str) -> str:
    if re.fullmatch(r"ray://[^\s/:]+/?", value):
        return f" Add the port: '{value.rstrip('/')}:10001'."
    if re.fullmatch(r"[^\s/:]+:\d{1,5}", value):
        host = value.partition(":")[0]
        return f" Ray's own address has no scheme; a client's is 'ray://{host}:10001'."
    return ""
