"""Which URLs are those of a server. Nothing heavy is imported here: options are read with it."""

from __future__ import annotations

from urllib.parse import SplitResult

SCHEMES = ("http", "https")


def has_address(url: SplitResult) -> bool:
    """Whether it names a host by http or https, and a port that there can be, if any."""
    return url.scheme in SCHEMES and bool(url.hostname) and _has_port(url)


def _has_port(url: SplitResult) -> bool:
    """Whether the port, where there is one, is a number that a port can have."""
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False
