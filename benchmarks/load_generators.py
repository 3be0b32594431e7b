"""One server, one load, and the load generators in turn.

python benchmarks/load_generators.py --model smollm2-135m --engine server:vllm --rate 0.5
    --requests 16 [--concurrency 4 | --arrivals constant] [--vllm vllm-env/bin/vllm]
    [--aiperf aiperf-env/bin/aiperf] [--guidellm guidellm-env/bin/guidellm]

They are this package's client, `vllm bench serve`, aiperf and guidellm. With `--engine stub` the
server is the scripted one of the tests. Every generator sends as many requests of the same lengths;
the order is drawn anew each round. Prints medians over the rounds of output throughput, TTFT p50
and TPOT p50, and each ratio to this package's.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from pytest_llmperf.core.metrics.serving import client_mark, reduce_serving
from pytest_llmperf.core.plan import LoadPlan
from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.engines.server.engine import ServerEngine
from pytest_llmperf.engines.server.loaded import ServedModel
from pytest_llmperf.strategies import parse
from pytest_llmperf.workloads import Serve

STUB = Path(__file__).parents[1] / "tests" / "support" / "stub_server.py"
NAMES = ("output tok/s", "TTFT p50 s", "TPOT p50 s")
Figures = tuple[float, float, float]


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[ServedModel]:
    """The server, ended afterwards, also where this program is ended by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended by SIGTERM"))
    engine_options: dict[str, str | float] = {"args": options.args} if options.args else {}
    engine = options.engine
    if engine == "stub":
        command = f"{sys.executable} {STUB} --port {{port}} --model tiny --ttft-ms 50 --token-ms 5"
        engine, engine_options = "server", {"command": command, "name": "tiny", "stop_timeout": 1.0}
    base = LoadPlan(
        model=model_ref(options.model),
        engine=engine,
        device=options.device,
        options=tuple(engine_options.items()),
    )
    session = ServerEngine().open(parse(options.strategy).apply(base))
    try:
        yield session
    finally:
        session.close()


def ours(session: ServedModel, work: Serve, repetition: int, program: str = "") -> Figures:
    """By this package, or by the generator that the work names."""
    served = session.serve(work, repetition, program)
    late = client_mark(served.trace, 0.0)
    if late is not None:
        print(f"    {work.generator or 'this package'}: {late.detail}")
    metrics = reduce_serving([served.trace], work)
    if metrics.n_failed:
        failures = metrics.serving.failures if metrics.serving else ""
        print(f"    {metrics.n_failed} requests failed: {failures}")
    return metrics.throughput.value, metrics.ttft.p50.value, metrics.tpot.p50.value


def bench_serve(session: ServedModel, work: Serve, repetition: int, program: str) -> Figures:
    """Measure by `vllm bench serve`, with its own random prompts of the same lengths."""
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "bench", "serve", *_bench_arguments(session, work)]
        command += [f"--seed={repetition}", f"--result-dir={folder}", "--result-filename=r.json"]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode:
            sys.exit(f"vllm bench serve failed:\n{process.stdout[-2000:]}{process.stderr[-2000:]}")
        result = json.loads((Path(folder) / "r.json").read_text(encoding="utf-8"))
    ttft_s, tpot_s = result["median_ttft_ms"] / 1e3, result["median_tpot_ms"] / 1e3
    return result["output_throughput"], ttft_s, tpot_s


def _bench_arguments(session: ServedModel, work: Serve) -> list[str]:
    """Return the server and the load as `vllm bench serve` takes them."""
    # Its address and its tokenizer.
    server, source = session._server, session._source  # noqa: SLF001
    load = (
        f"--max-concurrency={work.concurrency}"
        if work.rate is None
        else f"--request-rate={work.rate}"
    )
    return [
        "--backend=openai",
        f"--base-url={server.base}",
        f"--model={server.name}",
        f"--tokenizer={source.tokenizer_folder}",
        "--dataset-name=random",
        f"--num-prompts={work.requests}",
        f"--random-input-len={work.prompt_tokens}",
        f"--random-output-len={work.max_new_tokens}",
        "--ignore-eos",
        "--save-result",
        "--disable-tqdm",
        "--temperature=0",
        load,
        *(["--burstiness=1e9"] if work.arrivals == "constant" else []),
    ]


def generators(options: argparse.Namespace) -> dict[str, Callable[[ServedModel, int], Figures]]:
    """Each by name, as a function of the server and the number of the round."""
    work = Serve(
        rate=None if options.concurrency else options.rate,
        concurrency=options.concurrency,
        arrivals=options.arrivals,
        requests=options.requests,
        prompt_tokens=options.prompt_tokens,
        max_new_tokens=options.new_tokens,
        prefix_cache=True,
    )
    by_name: dict[str, Callable[[ServedModel, int], Figures]] = {}
    by_name["this package"] = lambda session, n: ours(session, seeded(work, n), n)
    for name in ("aiperf", "guidellm"):
        if program := getattr(options, name):
            by_name[name] = lambda session, n, name=name, program=program: ours(
                session,
                seeded(work, n, name),
                n,
                str(Path(program).absolute()),
            )
    if options.vllm:
        by_name["vllm bench serve"] = lambda session, n: bench_serve(session, work, n, options.vllm)
    return by_name


def seeded(work: Serve, n: int, generator: str = "") -> Serve:
    """The load of a round: arrivals drawn anew."""
    fields = {name: getattr(work, name) for name in work.__struct_fields__}
    return Serve(**fields | {"seed": n, "generator": generator})


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    with opened(options) as session:
        warm_up = Serve(
            concurrency=2, requests=4, prompt_tokens=options.prompt_tokens, max_new_tokens=8
        )
        ours(session, warm_up, 10**6)
        figures = rounds(session, generators(options), options.rounds)
    for name, rows in figures.items():
        for i, figure in enumerate(NAMES):
            own = median(row[i] for row in figures["this package"])
            other = median(row[i] for row in rows)
            print(f"{name:18} {figure:13} {other:.5g}  ratio to ours {other / own:.4f}")


def rounds(
    session: ServedModel, measure: dict[str, Callable[[ServedModel, int], Figures]], n_rounds: int
) -> dict[str, list[Figures]]:
    """Return the figures of every generator in each round; the order is drawn anew each time."""
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    figures: dict[str, list[Figures]] = {name: [] for name in measure}
    for n in range(n_rounds):
        for name in draw.sample(list(measure), len(measure)):
            figures[name].append(measure[name](session, n))
            texts = ", ".join(f"{value:.5g}" for value in figures[name][-1])
            print(f"  round {n + 1}, {name}: {texts}", flush=True)
    return figures


def with_generators(arguments: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, with an option for the command of each other generator."""
    for name in ("vllm", "aiperf", "guidellm"):
        arguments.add_argument(f"--{name}", default="", help=f"the command {name}")
    return arguments


def parser() -> argparse.ArgumentParser:
    """The server, the load, and where the other generators are."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--engine", default="server:vllm")
    arguments.add_argument("--strategy", default="auto")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--args", default="", help="more arguments of the server's command")
    arguments.add_argument("--rate", type=float, default=1.0)
    arguments.add_argument("--concurrency", type=int)
    arguments.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    arguments.add_argument("--requests", type=int, default=32)
    arguments.add_argument("--prompt-tokens", type=int, default=32)
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=3)
    return with_generators(arguments)


if __name__ == "__main__":
    main()
