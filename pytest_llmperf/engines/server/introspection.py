"""What a server says of itself over HTTP: its health, models, dtype, version and metrics.

Nothing is guessed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from pytest_llmperf.core.metrics import server_metrics
from pytest_llmperf.engines.server.failures import tls_failure, whole
from pytest_llmperf.errors import LoadError, NotInEffect

ASK_S = 5.0
POLL_S = 0.05
SAMPLE_S = 1.0

_TGI_FIELDS = {"dtype": "model_dtype", "version": "version", "model": "model_id"}

MODELS_PATH = "/v1/models"
STEADY_S = 3.0
"""How long a server that ran already may answer that a path is not there, or not for us."""

_OK = 200
_ABSENT = frozenset({404, 405})
_PERMANENT = _ABSENT | {401, 403}
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


class Introspection:
    """Questions to one server. Each takes at most 5 s; what it does not answer is None."""

    def __init__(
        self,
        base: str,
        session: aiohttp.ClientSession,
        headers: dict[str, str],
        metrics: str = "/metrics",
    ) -> None:
        self._base = base
        self._metrics = metrics
        self._session = session
        self._headers = headers

    async def until_healthy(
        self, path: str, timeout_s: float, died: Callable[[], str] | None
    ) -> None:
        """Wait for status 200 (of a server that we did not start, of its list of models too).

        `died` says how a process of ours ended; None where the server ran already. Raises LoadError
        when the server dies, when it refuses for good, or when the time is up.
        """
        start_s = time.monotonic()
        last: int | str = "no connection"
        while True:
            death = died() if died is not None else ""
            if death:
                raise LoadError(f"the server died before it was healthy: {death}")
            status = await self._status(path)
            if status == _OK or (died is None and await self._lists_models(status)):
                return
            last = last if status is None else status
            waited_s = time.monotonic() - start_s
            if died is None and waited_s >= STEADY_S and last in _PERMANENT:
                raise LoadError(self._refusal(path, last))
            if waited_s >= timeout_s:
                answer = f"HTTP {last}" if isinstance(last, int) else last
                raise LoadError(
                    f"the server was not healthy within {timeout_s:g} s "
                    f"({self._base}{path}: {answer}). Give it longer with option "
                    "'start_timeout', or another path with option 'health'.",
                )
            await asyncio.sleep(POLL_S)

    async def _lists_models(self, status: int | None) -> bool:
        """Whether a server without this path of health lists its models."""
        return status in _ABSENT and await self._status(MODELS_PATH) == _OK

    def _refusal(self, path: str, status: int | str) -> str:
        """Say what to do about a status that will not change by itself."""
        if status in _ABSENT:
            remedy = (
                f"and {MODELS_PATH} is not there either. Name a path that answers 200 by option "
                "'health'. Option 'url' is what '/v1/…' is added to; a path of requests that is "
                "another is option 'path'"
            )
        else:
            remedy = "name the variable that holds the API key by option 'api_key_env'"
        return f"{self._base}{path} answers HTTP {status}, again and again: {remedy}."

    async def models(self) -> tuple[str, ...] | None:
        """Return the names that an OpenAI-compatible server serves."""
        rows = _field(await self.json(MODELS_PATH), "data")
        return _ids_in(rows) if isinstance(rows, list) else None

    async def facts(self) -> dict[str, str]:
        """Return `dtype`, `version` and `model`, as far as it says them.

        vLLM says them in /server_info and /version, TGI in /info.
        """
        facts = await self._vllm_facts() | await self._tgi_facts()
        if "dtype" in facts:
            facts["dtype"] = facts["dtype"].removeprefix("torch.")
        return facts

    async def metrics(self) -> dict[str, float]:
        """Return its Prometheus metrics, as `core.metrics.server_metrics` reads them.

        Empty where it has none.
        """
        page = await self.metrics_page()
        return {} if page is None else server_metrics.read(page)

    async def metrics_page(self) -> str | None:
        """Return the text of its Prometheus page, or None where it has none."""
        try:
            async with self._get(self._metrics) as response:
                if response.status != _OK:
                    return None
                return (await whole(response)).decode("utf-8", "replace")
        except _FAILURES:
            return None

    async def sample(self, into: list[dict[str, float]]) -> None:
        """Add the metrics to a list, once a second, until cancelled."""
        while True:
            await asyncio.sleep(SAMPLE_S)
            into.append(await self.metrics())

    async def json(self, path: str) -> Any:
        """Return what a path answers, or None where it answers nothing that is JSON."""
        try:
            async with self._get(path) as response:
                if response.status != _OK:
                    return None
                return msgspec.json.decode(await whole(response))
        except (*_FAILURES, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    async def _vllm_facts(self) -> dict[str, str]:
        info = await self.json("/server_info?config_format=json")
        version = await self.json("/version")
        model_config = _field(_field(info, "vllm_config"), "model_config")
        return _texts(
            {"dtype": _field(model_config, "dtype"), "version": _field(version, "version")}
        )

    async def _tgi_facts(self) -> dict[str, str]:
        info = await self.json("/info")
        return _texts({name: _field(info, field) for name, field in _TGI_FIELDS.items()})

    async def _status(self, path: str) -> int | None:
        try:
            async with self._get(path) as response:
                return int(response.status)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as error:
            raise LoadError(f"{self._base}{path}: {tls_failure(error)}.") from error
        except _FAILURES:
            return None

    def _get(self, path: str) -> Any:
        own = path.startswith("/")
        return self._session.get(
            self._base + path if own else path,
            # The key is the server's: another address does not get it.
            headers=self._headers if own else None,
            timeout=aiohttp.ClientTimeout(total=ASK_S),
            allow_redirects=False,
        )


def _field(answer: Any, name: str) -> Any:
    """Return a field of a JSON object; None where it is absent, or the answer is no object."""
    return answer.get(name) if isinstance(answer, dict) else None


def _ids_in(rows: list[Any]) -> tuple[str, ...]:
    return tuple(str(row.get("id")) for row in rows if isinstance(row, dict))


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """Return the values that are there, as texts."""
    return {name: str(value) for name, value in values.items() if value}


def require_model(requested: str, served: tuple[str, ...] | None) -> None:
    """Raise LoadError where a server lists its models and the one asked for is not among them."""
    if not served or _is_among(requested, served):
        return
    raise LoadError(
        f"the server does not serve {requested!r}. It serves: {', '.join(served)}. "
        "Name one by option 'name'."
    )


def _is_among(requested: str, served: tuple[str, ...]) -> bool:
    """Whether a model is served, with or without its revision."""
    return bare(requested) in {bare(name) for name in served}


def require_same_model(requested: str, answered: set[str]) -> None:
    """Raise NotInEffect where an answer says that another model made it."""
    others = _other_models(requested, answered)
    if others:
        raise NotInEffect(f"asked {requested!r}, and {', '.join(map(repr, others))} answered.")


def _other_models(requested: str, answered: set[str]) -> list[str]:
    return sorted(name for name in answered if bare(name) != bare(requested))


def bare(name: str) -> str:
    """Return a model's name without the revision that transformers' server puts behind it."""
    return name.partition("@")[0]
