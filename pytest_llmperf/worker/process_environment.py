"""The environment of a running process, changed so that others see it, too."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping


def replace(changes: Mapping[str, str | None], *, in_place: Collection[str] = ()) -> None:
    """Set variables of this process; None takes one away.

    Those `in_place` are overwritten where the system keeps what the process was started with, too:
    `/proc/PID/environ`, by which others find it. The new value must be as long as the old one, and
    the variable must not have been changed since the start.

    Raises ValueError for a value of another length.
    """
    for name in in_place:
        _overwrite(name, changes[name] or "")
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _overwrite(name: str, value: str) -> None:
    old, new = os.environb[name.encode()], value.encode()
    if len(old) != len(new):
        raise ValueError(f"{name} has {len(old)} bytes and cannot be given {len(new)} in place.")
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    address = getenv(name.encode())
    ctypes.memmove(address, new, len(new))
