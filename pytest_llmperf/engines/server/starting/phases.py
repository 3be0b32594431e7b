"""What a server's log says of its start: seconds of its phases, and the size of its cache. Pure.

The lines are those of vLLM (weights, torch.compile, graphs, KV cache) and of SGLang. Ranks log
their own: the slowest counts, since the others wait for it.
"""

from __future__ import annotations

import re

from pytest_llmperf.core.trace import Startup

_WEIGHTS = (
    re.compile(r"Loading weights took ([\d.]+) seconds"),
    re.compile(r"Load weight end\..*?elapsed=([\d.]+) s"),
)
_COMPILE = (
    re.compile(r"torch\.compile (?:takes|took) ([\d.]+) s in total"),
    re.compile(r"Graph capturing finished in ([\d.]+) sec"),
    re.compile(r"Capture (?:cuda|cpu) graph end\. Time elapsed: ([\d.]+) s"),
)
_TOKENS = (
    re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens"),
    re.compile(r"max_total_num_tokens=(\d+)"),
)

UNSAID = "the server's log does not say it"


def startup(log: str, healthy_s: float, load_s: float) -> Startup:
    """Return the phases of a start that was healthy after `healthy_s` and answered at `load_s`."""
    weights_s = _slowest(log, _WEIGHTS)
    compiles_s = [seconds for kind in _COMPILE if (seconds := _slowest(log, (kind,))) is not None]
    compile_s = sum(compiles_s) if compiles_s else None
    return Startup(
        process_s=_rest(healthy_s, weights_s, compile_s),
        weights_s=weights_s,
        compile_s=compile_s,
        warm_s=max(0.0, load_s - healthy_s),
        reason="" if weights_s is not None and compile_s is not None else UNSAID,
    )


def _rest(healthy_s: float, weights_s: float | None, compile_s: float | None) -> float | None:
    """Return what of a start was neither; None where its log does not say how long weights took."""
    if weights_s is None:
        return None
    return max(0.0, healthy_s - weights_s - (compile_s or 0.0))


def kv_tokens(log: str) -> int | None:
    """Return the tokens that the KV cache holds; of several ranks or replicas the smallest."""
    sizes = [int(text.replace(",", "")) for kind in _TOKENS for text in kind.findall(log)]
    return min(filter(None, sizes), default=None)


def _slowest(log: str, kinds: tuple[re.Pattern[str], ...]) -> float | None:
    return max((_seconds(text) for kind in kinds for text in kind.findall(log)), default=None)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
