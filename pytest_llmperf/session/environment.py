"""Where a run was made: the facts of its device, host, project and packages."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from pytest_llmperf.core.record import Environment, Fact
from pytest_llmperf.devices.host import host_facts, project_facts, project_name
from pytest_llmperf.devices.inventory import SIMULATED


def collect_environment(
    device_facts: Mapping[str, Any], versions: Mapping[str, str], root: Path
) -> Environment:
    """Return the facts of this host, the worker's device, the packages, and the project at `root`.

    The device's facts win over the host's. The host is asked once a process, the project once a
    folder.
    """
    worker = {name: _fact(value) for name, value in device_facts.items()}
    packages: dict[str, Fact] = {f"version_{name}": version for name, version in versions.items()}
    return Environment(facts={**_host(), **worker, **packages, **_project(root)})


@cache
def _host() -> dict[str, Fact]:
    simulated = {"simulated_gpus": os.environ[SIMULATED]} if SIMULATED in os.environ else {}
    return {**host_facts(), "python": platform.python_version(), **simulated}


@cache
def _project(root: Path) -> dict[str, Fact]:
    return {**project_facts(root), "project": project_name(root)}


def _fact(value: Any) -> Fact:
    """Return one plain value; lists and tables from a worker become their JSON."""
    if _is_plain(value):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _is_plain(value: object) -> TypeGuard[Fact]:
    return value is None or isinstance(value, str | int | float | bool)
