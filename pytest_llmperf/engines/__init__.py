"""The table of engines.

Strings only: an engine's module is imported in its worker and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

from pytest_llmperf.errors import UsageError, did_you_mean
from pytest_llmperf.names import ENGINE_MEANINGS

if TYPE_CHECKING:
    from pytest_llmperf.engines.base import Capabilities, Engine


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """Where an engine and its capabilities are found.

    `capabilities` names a module that imports nothing heavy. `reads_hub`: a model that is named
    like a repository of the Hugging Face Hub is one, which the worker looks for on this machine.
    """

    name: str
    target: str
    capabilities: str
    extra: str = ""
    requires: tuple[str, ...] = ()
    reads_hub: bool = False

    def load(self) -> Engine:
        """Import the engine (heavy; worker only) and return one."""
        loaded: Engine = _resolve(self.target)()
        return loaded

    def load_capabilities(self) -> Capabilities:
        """Return the engine's capabilities (light; any process)."""
        capabilities: Capabilities = _resolve(self.capabilities)
        return capabilities


TABLE = {
    row.name: row
    for row in (
        EngineRow(
            name="transformers",
            target="pytest_llmperf.engines.transformers:TransformersEngine",
            capabilities="pytest_llmperf.engines.capabilities:TRANSFORMERS",
            extra="transformers",
            requires=("torch>=2.11", "transformers>=5.17"),
            reads_hub=True,
        ),
        EngineRow(
            name="vllm",
            target="pytest_llmperf.engines.vllm.engine:VllmEngine",
            capabilities="pytest_llmperf.engines.vllm.capabilities:VLLM",
            extra="vllm",
            requires=("vllm>=0.25",),
            reads_hub=True,
        ),
        EngineRow(
            name="scripted",
            target="pytest_llmperf.engines.scripted.loaded:ScriptedEngine",
            capabilities="pytest_llmperf.engines.capabilities:SCRIPTED",
        ),
        EngineRow(
            name="server",
            target="pytest_llmperf.engines.server.engine:ServerEngine",
            capabilities="pytest_llmperf.engines.server.capabilities:ANY_SERVER",
            extra="server",
            requires=("aiohttp>=3.11", "tokenizers>=0.20"),
        ),
    )
}

SERVERS = ("vllm", "transformers", "llama.cpp", "xllamacpp", "tgi", "openllm", "ray", "mii")
"""Presets of the server engine (`engines.server.presets`).

Each is an engine of its own: `server:vllm`.
"""

TABLE |= {
    f"server:{name}": replace(
        TABLE["server"],
        name=f"server:{name}",
        capabilities=f"pytest_llmperf.engines.server.capabilities:{name.replace('.', '_')}",
    )
    for name in SERVERS
}

ENTRY_POINTS = "pytest_llmperf.engines"
"""The group of entry points under which a distribution offers an EngineRow of its own."""

WRAPPER = "pytest_llmperf.engines.transformers.wrapped:WrappedEngine"


def wrapped(model: object, tokenizer: object) -> Engine:
    """Return an engine around a model that this process has loaded already.

    Raises UsageError for what is not such a model.
    """
    wrapper: Engine = _resolve(WRAPPER)(model, tokenizer)
    return wrapper


def engine(name: str) -> EngineRow:
    """Return the row of an engine.

    It is built in, or from the entry-point group `pytest_llmperf.engines`. Raises UsageError.
    """
    if name in TABLE:
        return TABLE[name]
    entries = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
    if name in entries:
        return _row_of(entries[name])
    known = [*TABLE, *entries]
    all_engines = f"Engines: {', '.join(known)}."
    near = did_you_mean(name, known, ENGINE_MEANINGS, otherwise=all_engines)
    raise UsageError(f"engine {name!r} is not known.{near}")


def _row_of(entry: metadata.EntryPoint) -> EngineRow:
    row = entry.load()
    if not isinstance(row, EngineRow):
        raise UsageError(
            f"engine {entry.name!r}: entry point {entry.value!r} is a {type(row).__name__}, "
            "an EngineRow is needed.",
        )
    return row


def _resolve(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
