"""Why a request failed, in words: what a server answered, and what a user can do about it."""

from __future__ import annotations

import aiohttp

from pytest_llmperf.engines.server.messages.words import shown

FIELDS_HINT = (
    ". Options 'drop_fields', 'rename_fields' and 'add_fields' change the fields of what is sent"
)

_REFUSED_FIELDS = frozenset({400, 422})
_ERROR_BYTES = 300
_LARGEST_BYTES = 2**24


def no_message(timeout_s: float, came: str) -> str:
    """Say that nothing came for too long, after what had come."""
    return (
        f"no message came for {timeout_s:g} s, after {came}. Give it longer with "
        "Serve(timeout=…), other workloads with option 'timeout'"
    )


def broken(error: Exception, n_chunks: int, timeout_s: float) -> str:
    """Say why a request broke after so many pieces of the answer."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return tls_failure(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"the connection was refused ({error.os_error.strerror or error.os_error})"
    if isinstance(error, TimeoutError):
        return no_message(timeout_s, f"{n_chunks} pieces of the answer")
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"the stream broke after {n_chunks} pieces of the answer ({reason})"


async def status_failure(response: aiohttp.ClientResponse) -> str:
    """Say which status an answer had, with the beginning of its text."""
    text = (await response.content.read(_ERROR_BYTES)).decode("utf-8", "replace")
    status = f"HTTP {response.status}{_reason(response.status)}"
    hint = FIELDS_HINT if response.status in _REFUSED_FIELDS else ""
    return f"{status}: {shown(text, _ERROR_BYTES)}".rstrip(": ") + hint


async def whole(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an answer that is no stream.

    Raises aiohttp.ClientPayloadError where it is larger than any that a server has to give.
    """
    body = bytearray()
    async for data in response.content.iter_any():
        body += data
        if len(body) > _LARGEST_BYTES:
            raise aiohttp.ClientPayloadError(f"more than {_LARGEST_BYTES} bytes came")
    return bytes(body)


def is_encoded(response: aiohttp.ClientResponse) -> bool:
    """Whether an answer is compressed."""
    return response.headers.get("Content-Encoding", "identity").strip().lower() != "identity"


def encoding_failure(response: aiohttp.ClientResponse) -> str:
    """Say that a compressed answer has no times."""
    encoding = response.headers["Content-Encoding"]
    return (
        f"the answer is compressed (Content-Encoding: {encoding}) although identity was asked for: "
        "a compressed stream has no times of tokens. Turn compression off, in the server or in the "
        "proxy before it"
    )


def tls_failure(error: Exception) -> str:
    """Say why no trusted connection could be made."""
    reason = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return (
        f"TLS failed ({' '.join(str(reason).split())}). For a certificate of your own give option "
        "'ca_file', a file of certificates to trust"
    )


def _reason(status: int) -> str:
    known = {
        401: "the API key is missing or wrong",
        403: "forbidden",
        429: "too many requests",
        503: "unavailable",
    }
    return f" ({known[status]})" if status in known else ""
