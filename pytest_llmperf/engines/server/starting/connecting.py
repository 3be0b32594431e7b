"""Connections to a server: how they are kept, and whether it takes one."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any
from urllib.parse import urlsplit

import aiohttp

KEEP_ALIVE_S = 2.0
"""Idle connections are closed before servers close them (llama.cpp's after 5 s).

A request must not meet one that is being closed.
"""

AT_ONCE_S = 0.05
"""A connection that was idle and is closed breaks a request sooner: the server never saw it."""

_PORTS = {"http": 80, "https": 443}


def connections(timeout_s: float, trusted: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """Return a session without a limit of connections, proxies or cookies.

    Bytes that do not come for `timeout_s` are an error. `trusted` has the certificates to trust
    beside those of the system.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=trusted if trusted is not None else True
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[_notes_reuse()],
    )


class Reuse:
    """Whether a request went over a connection that had served another before."""

    def __init__(self) -> None:
        self.is_reused = False


def _notes_reuse() -> aiohttp.TraceConfig:
    """Return what sets `is_reused` of the Reuse that a request carries."""

    async def note(_session: object, context: Any, _parameters: object) -> None:
        reuse = context.trace_request_ctx
        if isinstance(reuse, Reuse):
            reuse.is_reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(note)
    return config


async def takes_connections(base: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at a URL accepts a connection, or at least does not refuse it.

    A busy server may let it wait.
    """
    url = urlsplit(base)
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(url.hostname, url.port or _PORTS[url.scheme]), timeout_s
        )
    except TimeoutError:
        return True
    except OSError:
        return False
    writer.close()
    return True
