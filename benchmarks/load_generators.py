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

STUB = Path(__file__).parents[1] / "tests" / "server" / "stub_server.py"
NAMES = ("output tok/s", "TTFT p50 s", "TPOT p50 s")
Figures = tuple[float, float, float]


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[ServedModel]:
    """The server, ended afterwards, also where this program is ended by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit("ended by SIGTERM"))
    given: dict[str, str | float] = {"args": options.args} if options.args else {}
    engine = options.engine
    if engine == "stub":
        command = f"{sys.executable} {STUB} --port {{port}} --model tiny --ttft-ms 50 --token-ms 5"
        engine, given = "server", {"command": command, "name": "tiny", "stop_timeout": 1.0}
    base = LoadPlan(
        model=model_ref(options.model),
        engine=engine,
        device=options.device,
        options=tuple(given.items()),
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
    found = reduce_serving([served.trace], work)
    if found.n_failed:
        failures = found.serving.failures if found.serving else ""
        print(f"    {found.n_failed} requests failed: {failures}")
    return found.throughput.value, found.ttft.p50.value, found.tpot.p50.value


def bench_serve(session: ServedModel, work: Serve, repetition: int, program: str) -> Figures:
    """By `vllm bench serve`, with its own random prompts of the same lengths."""
    # Its address and its tokenizer.
    server, source = session._server, session._source  # noqa: SLF001
    load = (
        ["--request-rate", str(work.rate)]
        if work.rate is not None
        else ["--max-concurrency", str(work.concurrency)]
    )
    load += ["--burstiness", "1e9"] if work.arrivals == "constant" else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                program,
                "bench",
                "serve",
                "--backend",
                "openai",
                "--base-url",
                server.base,
                "--model",
                server.name,
            ),
            *(
                "--tokenizer",
                str(source.tokenizer_folder),
                "--dataset-name",
                "random",
                "--num-prompts",
                str(work.requests),
            ),
            *(
                "--random-input-len",
                str(work.prompt_tokens),
                "--random-output-len",
                str(work.max_new_tokens),
            ),
            *(
                "--seed",
                str(repetition),
                "--ignore-eos",
                "--save-result",
                "--result-dir",
                folder,
                "--result-filename",
                "r.json",
            ),
            *("--disable-tqdm", "--temperature", "0", *load),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"vllm bench serve failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        said = json.loads((Path(folder) / "r.json").read_text(encoding="utf-8"))
    return said["output_throughput"], said["median_ttft_ms"] / 1e3, said["median_tpot_ms"] / 1e3


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
    found: dict[str, Callable[[ServedModel, int], Figures]] = {}
    found["this package"] = lambda session, n: ours(session, seeded(work, n), n)
    for name in ("aiperf", "guidellm"):
        if program := getattr(options, name):
            found[name] = lambda session, n, name=name, program=program: ours(
                session,
                seeded(work, n, name),
                n,
                str(Path(program).absolute()),
            )
    if options.vllm:
        found["vllm bench serve"] = lambda session, n: bench_serve(session, work, n, options.vllm)
    return found


def seeded(work: Serve, n: int, generator: str = "") -> Serve:
    """The load of a round: arrivals drawn anew."""
    fields = {name: getattr(work, name) for name in work.__struct_fields__}
    return Serve(**fields | {"seed": n, "generator": generator})


def main() -> None:
    """Measure and print."""
    options = parser().parse_args()
    draw = random.Random(0)  # noqa: S311 - an order, not a secret
    found = generators(options)
    taken: dict[str, list[Figures]] = {name: [] for name in found}
    with opened(options) as session:
        ours(
            session,
            Serve(concurrency=2, requests=4, prompt_tokens=options.prompt_tokens, max_new_tokens=8),
            10**6,
        )
        for n in range(options.rounds):
            for name in draw.sample(list(found), len(found)):
                taken[name].append(found[name](session, n))
                print(
                    f"  round {n + 1}, {name}: " + ", ".join(f"{v:.5g}" for v in taken[name][-1]),
                    flush=True,
                )
    for name, rows in taken.items():
        for i, what in enumerate(NAMES):
            mine, theirs = (
                median(row[i] for row in taken["this package"]),
                median(row[i] for row in rows),
            )
            print(f"{name:18} {what:13} {theirs:.5g}  ratio to ours {theirs / mine:.4f}")


def with_generators(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, with an option for the command of each other generator."""
    for name in ("vllm", "aiperf", "guidellm"):
        made.add_argument(f"--{name}", default="", help=f"the command {name}")
    return made


def parser() -> argparse.ArgumentParser:
    """The server, the load, and where the other generators are."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--engine", default="server:vllm")
    made.add_argument("--strategy", default="auto")
    made.add_argument("--device", default="cpu")
    made.add_argument("--args", default="", help="more arguments of the server's command")
    made.add_argument("--rate", type=float, default=1.0)
    made.add_argument("--concurrency", type=int)
    made.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    made.add_argument("--requests", type=int, default=32)
    made.add_argument("--prompt-tokens", type=int, default=32)
    made.add_argument("--new-tokens", type=int, default=32)
    made.add_argument("--rounds", type=int, default=3)
    return with_generators(made)


if __name__ == "__main__":
    main()
