"""The highest rate that each load generator can drive, seen from the server.

python benchmarks/client_rates.py [--seconds 5] [--vllm vllm-env/bin/vllm]
    [--aiperf aiperf-env/bin/aiperf] [--guidellm guidellm-env/bin/guidellm]

The server is a stub that streams 64 tokens a request. Every generator sends requests at a constant
rate, and the stub notes when each came. How late they are, after a schedule of equal gaps laid
through the earliest, says whether the generator kept its rate, whatever it says of itself. A rate
is kept with a 99th percentile below 5 ms. Rates are doubled until one is not kept, then halved in
between. Stub and generator share the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import urllib.request
from collections.abc import Callable

from load_generators import bench_serve, opened, ours, with_generators

from pytest_llmperf.core.metrics.rate_search import Probe, next_rate
from pytest_llmperf.engines.server.loaded import ServedModel
from pytest_llmperf.workloads import Serve

LIMIT_S = 0.005
TOKENS = 64
Send = Callable[[ServedModel, Serve, int], object]


def lateness_p99_s(arrivals_ns: list[int], rate: float) -> float:
    """How late requests came after equal gaps, laid through the one that was earliest by them.

    99th percentile.
    """
    late = [at / 1e9 - i / rate for i, at in enumerate(sorted(arrivals_ns))]
    return sorted(at - min(late) for at in late)[math.ceil(0.99 * len(late)) - 1]


def arrivals(session: ServedModel) -> list[int]:
    """Return when the stub saw requests (ns) since the last call."""
    base = session._server.base  # noqa: SLF001 - its address
    # The stub, on this host.
    with urllib.request.urlopen(f"{base}/arrivals", timeout=10) as response:  # noqa: S310
        arrivals_ns: list[int] = json.load(response)
    return arrivals_ns


def highest(name: str, send: Send, session: ServedModel, options: argparse.Namespace) -> None:
    """Print every rate that was tried, and the highest that was kept."""
    probes: list[Probe] = []
    while (rate := next_rate(probes, first=options.first, within=options.within)) is not None:
        n = max(20, round(rate * options.seconds))
        arrivals_ns = arrivals_at(rate, n, lambda work: send(session, work, len(probes)), session)
        late_s = lateness_p99_s(arrivals_ns, rate)
        is_kept = len(arrivals_ns) == n and late_s < LIMIT_S
        why = "" if is_kept else f"{1e3 * late_s:.1f} ms late"
        probes.append(Probe(rate=rate, attainment=1.0, sustained=is_kept, why=why))
        print(
            f"  {name} {rate:.0f}/s: {len(arrivals_ns)} requests, p99 {1e3 * late_s:.2f} ms late"
            f"{'' if is_kept else ', not kept'}",
            flush=True,
        )
    kept_rates = [probe.rate for probe in probes if probe.sustained]
    print(f"{name}: {max(kept_rates, default=0):.0f}/s", flush=True)


def arrivals_at(
    rate: float, n: int, send: Callable[[Serve], object], session: ServedModel
) -> list[int]:
    """Send `n` requests at a constant rate, and return when the stub saw them."""
    work = Serve(
        rate=rate,
        arrivals="constant",
        requests=n,
        prompt_tokens=8,
        max_new_tokens=TOKENS,
        prefix_cache=True,
    )
    arrivals(session)
    send(work)
    return arrivals(session)[-n:]  # a generator may ask once beforehand


def by(generator: str, program: str) -> Send:
    """A generator behind `Serve`."""

    def send(session: ServedModel, work: Serve, n: int) -> object:
        fields = {name: getattr(work, name) for name in work.__struct_fields__}
        return ours(session, Serve(**fields | {"generator": generator}), n, program)

    return send


def main() -> None:
    """Each generator in turn."""
    options = parser().parse_args()
    senders: dict[str, Send] = {"this package": ours}
    senders |= {
        name: by(name, program)
        for name in ("aiperf", "guidellm")
        if (program := getattr(options, name))
    }
    if options.vllm:
        senders["vllm bench serve"] = lambda session, work, n: bench_serve(
            session, work, n, options.vllm
        )
    stub = argparse.Namespace(
        engine="stub", model=options.model, device="cpu", strategy="auto", args=""
    )
    with opened(stub) as session:
        ours(
            session, Serve(concurrency=2, requests=4, prompt_tokens=8, max_new_tokens=TOKENS), 10**6
        )
        for name, send in senders.items():
            highest(name, send, session, options)


def parser() -> argparse.ArgumentParser:
    """How long each rate is held, and where the other generators are."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--model", default="smollm2-135m", help="whose tokenizer makes the prompts"
    )
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--first", type=float, default=50.0)
    arguments.add_argument("--within", type=float, default=0.3)
    return with_generators(arguments)


if __name__ == "__main__":
    main()
