"""What a server says of itself over HTTP: healthy, which models, its dtype and version, its metrics. Nothing is guessed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.errors import LoadError, NotInEffect

ASK_S = 5.0
POLL_S = 0.05
SAMPLE_S = 1.0


class Saying:
    """Questions to one server. Each takes at most 5 s; what it does not answer is None."""

    def __init__(self, base: str, session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
        self._base = base
        self._session = session
        self._headers = headers

    async def until_healthy(self, path: str, timeout_s: float, died: Callable[[], str]) -> None:
        """Wait for status 200. Raises LoadError when the server dies, or when the time is up."""
        end_s = time.monotonic() + timeout_s
        last = "no connection"
        while True:
            gone = died()
            if gone:
                raise LoadError(f"the server died before it was healthy: {gone}")
            status = await self._status(path)
            if status == 200:  # noqa: PLR2004 - OK
                return
            last = last if status is None else f"HTTP {status}"
            if time.monotonic() >= end_s:
                raise LoadError(
                    f"the server was not healthy within {timeout_s:g} s ({self._base}{path}: {last}). Give it longer with option "
                    "'start_timeout', or another path with option 'health'.",
                )
            await asyncio.sleep(POLL_S)

    async def models(self) -> tuple[str, ...] | None:
        """Names that an OpenAI-compatible server serves."""
        said = await self.json("/v1/models")
        rows = said.get("data") if isinstance(said, dict) else None
        return (
            tuple(str(row.get("id")) for row in rows if isinstance(row, dict))
            if isinstance(rows, list)
            else None
        )

    async def facts(self) -> dict[str, str]:
        """`dtype`, `version` and `model`, as far as it says them (vLLM's /server_info and /version, TGI's /info)."""
        found = dict(await self._vllm())
        info = await self.json("/info")
        if isinstance(info, dict):
            names = {"dtype": "model_dtype", "version": "version", "model": "model_id"}
            found |= {ours: str(info[theirs]) for ours, theirs in names.items() if info.get(theirs)}
        if "dtype" in found:
            found["dtype"] = found["dtype"].removeprefix("torch.")
        return found

    async def metrics(self) -> dict[str, float]:
        """Its Prometheus metrics, as `core.metrics.server_metrics` reads them.

        Empty where it has none.
        """
        try:
            async with self._get("/metrics") as response:
                return server_metrics.read(await response.text()) if response.status == 200 else {}  # noqa: PLR2004
        except (aiohttp.ClientError, TimeoutError, OSError):
            return {}

    async def sample(self, into: list[dict[str, float]]) -> None:
        """Add the metrics to a list, once a second, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            into.append(await self.metrics())

    async def json(self, path: str) -> Any:
        """What a path answers, or None where it answers nothing that is JSON."""
        try:
            async with self._get(path) as response:
                return (
                    msgspec.json.decode(await response.read()) if response.status == 200 else None  # noqa: PLR2004
                )
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
            return None

    async def _vllm(self) -> list[tuple[str, str]]:
        info, version = (
            await self.json("/server_info?config_format=json"),
            await self.json("/version"),
        )
        found = []
        config = info.get("vllm_config") if isinstance(info, dict) else None
        model = config.get("model_config") if isinstance(config, dict) else None
        if isinstance(model, dict) and model.get("dtype"):
            found.append(("dtype", str(model["dtype"])))
        if isinstance(version, dict) and version.get("version"):
            found.append(("version", str(version["version"])))
        return found

    async def _status(self, path: str) -> int | None:
        try:
            async with self._get(path) as response:
                return int(response.status)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def _get(self, path: str) -> Any:
        return self._session.get(
            self._base + path,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=ASK_S),
            allow_redirects=False,
        )


def require_model(asked: str, served: tuple[str, ...] | None) -> None:
    """Raise LoadError where a server lists its models and the one asked for is not among them."""
    if served and asked not in served and bare(asked) not in {bare(name) for name in served}:
        raise LoadError(
            f"the server does not serve {asked!r}. It serves: {', '.join(served)}. Name one by option 'name'."
        )


def require_same_model(asked: str, answered: set[str]) -> None:
    """Raise NotInEffect where an answer says that another model made it."""
    others = {name for name in answered if bare(name) != bare(asked)}
    if others:
        raise NotInEffect(f"asked {asked!r}, and {', '.join(sorted(map(repr, others)))} answered.")


def bare(name: str) -> str:
    """A model's name without the revision that transformers' server puts behind it."""
    return name.partition("@")[0]
