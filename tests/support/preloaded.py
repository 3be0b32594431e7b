"""Import once what each session inside this process would import anew.

pytester forgets, after a session in its own process, what that session imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

ROOMS = (
    *("settings", "strategies", "session", "plugin", "against", "gate", "report", "history"),
    *("instruments", "workers", "devices", "core", "engines.scripted", "engines.refusals"),
)
"""Folders of ours that a session loads from and that load no engine's library."""

MODULES = (
    *(
        "engines.capabilities",
        "engines.inprocess",
        "engines.models.available",
        "engines.models.quantized_checkpoint",
    ),
    *("units", "cache_folder", "worker.host"),
)

OTHERS = (
    *("alembic.command", "alembic.config", "alembic.op", "email.parser", "mako.template"),
    "packaging.requirements",
)
"""What our modules import when they need it."""

_NOT_TO_BE_IMPORTED = ("history.migrations", "plugin.named_model")


def import_all() -> None:
    """Import what sessions with scripted models import."""
    ours = [name for room in ROOMS for name in (room, *_modules(room))]
    for name in (*ours, *MODULES):
        importlib.import_module(f"pytest_llmperf.{name}")
    for name in OTHERS:
        importlib.import_module(name)


def _modules(room: str) -> Iterator[str]:
    """Yield the names of all modules below a room."""
    package = importlib.import_module(f"pytest_llmperf.{room}")
    for module in pkgutil.iter_modules(package.__path__, f"{room}."):
        if module.name in _NOT_TO_BE_IMPORTED:
            continue
        yield module.name
        if module.ispkg:
            yield from _modules(module.name)
