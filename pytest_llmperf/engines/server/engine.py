"""The server engine: starts a command or takes a URL, and is its client."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Mapping

from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.server.child import Child, find_program, free_port, log_file
from pytest_llmperf.engines.server.client import connections
from pytest_llmperf.engines.server.introspection import Saying, require_model
from pytest_llmperf.engines.server.loaded import ServedModel
from pytest_llmperf.engines.server.options import ServerOptions, read_options
from pytest_llmperf.engines.server.presets import Preset, preset_of
from pytest_llmperf.engines.server.running import Server
from pytest_llmperf.engines.server.source import Source, source_of


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
        source = source_of(plan, preset, options)
        runner = asyncio.Runner()
        with contextlib.ExitStack() as undo:
            undo.callback(runner.close)
            start_s = time.perf_counter()
            child, base, name = _started(plan, preset, options, source)
            if child is not None:
                undo.callback(child.end, options.stop_timeout_s)
            server = runner.run(_healthy(preset, options, child, base, name))
            undo.callback(lambda: runner.run(server.http.close()))
            session = ServedModel(plan, server, source, runner)
            session.probe()
            session.load_s = time.perf_counter() - start_s
            undo.pop_all()
        return session


def _started(
    plan: LoadPlan, preset: Preset, options: ServerOptions, source: Source
) -> tuple[Child | None, str, str]:
    """The child, its base URL, and the name that the model is served as."""
    name = options.name or plan.model.name
    if options.url:
        return None, options.url, name
    port = free_port()
    values = {"port": str(port), "model": source.location, "name": name}
    command = [*_program(preset, options), *_filled(options.command or preset.command, values)]
    command += [*_chosen(plan, preset), *([] if options.prefix_cache else preset.no_prefix_cache)]
    command += [*(preset.dummy_weights if source.dummy else ()), *options.args]
    served = options.name or _filled((preset.served_as,), values)[0]
    env = preset.env | (preset.cpu_env if plan.device == "cpu" else {})
    child = Child(command, env=env, log=log_file(f"server-{preset.name or 'command'}"))
    return child, f"http://127.0.0.1:{port}", served


def _program(preset: Preset, options: ServerOptions) -> list[str]:
    if preset.module:
        return [options.program or sys.executable, "-m", preset.module]
    if not preset.program:
        return []
    variable = "LLMPERF_SERVER_" + "".join(c if c.isalnum() else "_" for c in preset.name.upper())
    return [find_program(preset.program, options.program, variable)]


def _filled(parts: tuple[str, ...], values: Mapping[str, str]) -> list[str]:
    filled = []
    for part in parts:
        for name, value in values.items():
            # Not format(): a command may hold other braces.
            part = part.replace(f"{{{name}}}", value)  # noqa: PLW2901
        filled.append(part)
    return filled


def _chosen(plan: LoadPlan, preset: Preset) -> tuple[str, ...]:
    if plan.weights_dtype == "auto" or preset.dtype is None:
        return ()
    return preset.dtype(plan.weights_dtype)


async def _healthy(
    preset: Preset, options: ServerOptions, child: Child | None, base: str, name: str
) -> Server:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    http = connections(60.0)
    try:
        saying = Saying(base, http, headers)
        await saying.until_healthy(
            options.health, options.start_timeout_s, child.died if child is not None else str
        )
        if options.protocol != "tgi":
            require_model(name, await saying.models())
        facts = await saying.facts()
        if options.protocol == "tgi" and "model" in facts:
            require_model(name, (facts["model"],))
    except BaseException:
        await http.close()
        raise
    return Server(
        preset=preset,
        options=options,
        base=base,
        name=name,
        headers=headers,
        http=http,
        saying=saying,
        child=child,
        facts=facts,
    )
