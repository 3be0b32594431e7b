"""The server engine: starts a command or takes a URL, and is its client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.server.child import Child, find_program, free_port, log_file
from pytest_llmperf.engines.server.introspection import ASK_S, Introspection, require_model
from pytest_llmperf.engines.server.loaded import ServedModel
from pytest_llmperf.engines.server.options import ServerOptions, read_options
from pytest_llmperf.engines.server.presets import Preset, preset_of
from pytest_llmperf.engines.server.running import Server
from pytest_llmperf.engines.server.source import ModelSource, model_source
from pytest_llmperf.engines.server.starting.connecting import connections
from pytest_llmperf.engines.server.starting.container import container, files_of
from pytest_llmperf.engines.server.starting.restart import restart


class ServerEngine:
    """See engines.base.Engine."""

    def open(self, plan: LoadPlan) -> ServedModel:
        """Start the server (or find it) and wait until it answers.

        Raises:
            LoadError: it died (with the tail of its log), was not healthy in time, or does not
                serve the model.
            UsageError: its command cannot be run.
        """
        preset = preset_of(plan.engine)
        options = read_options(plan, preset)
        source = model_source(plan, preset, options)
        with contextlib.ExitStack() as undo:
            runner = asyncio.Runner()
            undo.callback(runner.close)
            start_s = time.perf_counter()
            address = _start(plan, preset, options, source)
            if address.child is not None:
                undo.callback(address.child.end, options.stop_timeout_s)
            server = runner.run(_wait_until_healthy(preset, options, address))
            healthy_s = time.perf_counter() - start_s
            undo.callback(lambda: runner.run(server.http.close()))
            loaded = _probe(ServedModel(plan, server, source, runner), start_s, healthy_s)
            undo.pop_all()
        return loaded


def _probe(loaded: ServedModel, start_s: float, healthy_s: float) -> ServedModel:
    """Wait for the first answer, which ends the load time; then have its settings proved."""
    loaded.probe()
    loaded.started(healthy_s, time.perf_counter() - start_s)
    loaded.prove()
    return loaded


@dataclass(frozen=True)
class _Address:
    """Where a server answers, what the model is served as, and its process if it is ours.

    `image` is the hash of the container image that it runs from, "" without one.
    """

    base: str
    name: str
    child: Child | None = None
    image: str = ""


def _start(plan: LoadPlan, preset: Preset, options: ServerOptions, source: ModelSource) -> _Address:
    """Start the server, unless it runs already; then it is started anew by its own command."""
    name = options.name or plan.model.name
    if options.url:
        restart(options.restart, options.start_timeout_s)
        return _Address(options.url, name)
    values = {"port": str(free_port()), "model": source.location, "name": name}
    words = _command(plan, preset, options, values, dummy=source.dummy)
    env = preset.env | (preset.cpu_env if plan.device == "cpu" else {})
    log = log_file(f"server-{preset.name or 'command'}")
    served_name = options.name or _with_values(preset.served_as, values)
    base = f"http://127.0.0.1:{values['port']}"
    if not options.image:
        return _Address(base, served_name, Child(words, env=env, log=log))
    box = container(options.image, options.image_args)
    command = box.command(
        words, environment=env, files=files_of(source.location), gpus=_gpus_of(plan)
    )
    child = Child(command, env={}, log=log, at_end=box.removal)
    return _Address(base, served_name, child, box.image_id())


def _gpus_of(plan: LoadPlan) -> str:
    """Return the GPUs that this process was given, as a container is told them."""
    return "" if plan.device == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "all")


def _command(
    plan: LoadPlan,
    preset: Preset,
    options: ServerOptions,
    values: Mapping[str, str],
    *,
    dummy: bool,
) -> list[str]:
    """Return the command of a server with all its arguments."""
    return [
        *_program(preset, options),
        *(_with_values(part, values) for part in options.command or preset.command),
        *_precision(plan, preset),
        *(() if options.prefix_cache else preset.no_prefix_cache),
        *(preset.dummy_weights if dummy else ()),
        *options.args,
    ]


def _program(preset: Preset, options: ServerOptions) -> list[str]:
    if options.image:
        # The image's own: nothing of it is on this host.
        program = options.program or preset.program or ("python3" if preset.module else "")
        module = ["-m", preset.module] if preset.module else []
        return [*([program] if program else []), *module]
    if preset.module:
        return [options.program or sys.executable, "-m", preset.module]
    if not preset.program:
        return []
    name = "".join(c if c.isalnum() else "_" for c in preset.name.upper())
    return [find_program(preset.program, options.program, f"LLMPERF_SERVER_{name}")]


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of their names. Not by format(): a command may hold other braces."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _precision(plan: LoadPlan, preset: Preset) -> tuple[str, ...]:
    if plan.weights_dtype == "auto" or preset.dtype is None:
        return ()
    return preset.dtype(plan.weights_dtype)


async def _wait_until_healthy(preset: Preset, options: ServerOptions, address: _Address) -> Server:
    """Wait until the server is healthy, and ask it what it is."""
    headers = _headers(options)
    trusted = ssl.create_default_context(cafile=options.ca_file) if options.ca_file else None
    http = connections(ASK_S, trusted)
    try:
        introspection = Introspection(address.base, http, headers, options.metrics)
        died = address.child.died if address.child is not None else None
        await introspection.until_healthy(options.health, options.start_timeout_s, died)
        facts = await _checked_facts(introspection, options, address.name)
    except BaseException:
        await http.close()
        raise
    return Server(
        preset=preset,
        options=options,
        base=address.base,
        name=address.name,
        headers=headers,
        http=http,
        saying=introspection,
        child=address.child,
        trusted=trusted,
        facts=facts | ({"image": address.image} if address.image else {}),
    )


def _headers(options: ServerOptions) -> dict[str, str]:
    headers = stream_headers()
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    return headers


def stream_headers() -> dict[str, str]:
    """Return the headers of every request: bytes as they are, since compressed ones wait."""
    return {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
    }


async def _checked_facts(
    introspection: Introspection, options: ServerOptions, name: str
) -> dict[str, str]:
    """Return what the server says of itself. Raises LoadError where it serves another model."""
    if options.protocol != "tgi":
        require_model(name, await introspection.models())
    facts = await introspection.facts()
    if options.protocol == "tgi" and "model" in facts:
        require_model(name, (facts["model"],))
    return facts
