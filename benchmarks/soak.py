"""Many sessions in a row: false alarms of the gate, and slowdowns that are found.

    python benchmarks/soak.py same [--sessions 200]      # the gate (rule A) on the same code
    python benchmarks/soak.py slower [--sessions 100]    # side by side (rule B), 10 % slower

Each session is a pytest process of its own, as in CI: `same` with --llmperf-gate against the store
that its earlier sessions filled, on smollm2-135m on the CPU; `slower` with --llmperf-against=HEAD
in a git repository whose working tree waits after each forward pass for a share of what the pass
took, on a small Llama of random weights. `--engine scripted` takes a model without any work, with
noise of 1 % between sessions and 2 % between repetitions.

What a session found is one line of sessions.jsonl in the folder (default build/soak-same,
build/soak-slower). The next call goes on from there until there are as many verdicts as asked for:
interrupt it at will. INVALID sessions are no verdicts. Exit code 1 unless the bar is met: no FAIL
in `same`, 95 of 100 found in `slower`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from soak_projects import PROJECTS

from pytest_llmperf.core.verdicts.distributions import binomial_cdf
from pytest_llmperf.core.verdicts.reach import (
    MIN_SESSIONS,
)

VERDICTS = ("PASS", "FAIL", "UNDECIDED")
FOUND_BAR = 0.95
WANTED = {"same": 200, "slower": 100}
LOG = "sessions.jsonl"
_MOST_WITHOUT_VERDICT = 20


@dataclass(frozen=True, kw_only=True)
class Session:
    """What one session found.

    `outcome` is its record's, INVALID where it left none; `pairs` and `ratio` are rule B's.
    """

    gated: bool
    outcome: str
    exit_code: int
    took_s: float
    text: str = ""
    pairs: int | None = None
    ratio: float | None = None


def main() -> int:
    """Run what is missing, then report."""
    options = _parser().parse_args()
    options.sessions = options.sessions or WANTED[options.what]
    folder = (options.folder or Path("build") / f"soak-{options.what}").resolve()
    prepare(folder, options.what, options.engine)
    while (gated := _next(sessions(folder), options)) is not None:
        session = run_one(folder, options, gated=gated)
        with (folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(session)) + "\n")
        clock = time.strftime("%H:%M:%S")
        print(clock, session.outcome, f"{session.took_s:.0f} s", session.text[:150], flush=True)
    lines, met = report(options.what, sessions(folder))
    print("\n".join(lines))
    return 0 if met else 1


def sessions(folder: Path) -> list[Session]:
    """Those that the folder's log holds; a half-written last line is no session."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [Session(**json.loads(line)) for line in lines if line.endswith("\n")]


def report(what: str, history: Sequence[Session]) -> tuple[list[str], bool]:
    """Return the figures in words, and whether the bar is met."""
    gated = [session for session in history if session.gated]
    verdicts = [session for session in gated if session.outcome in VERDICTS]
    n, counts = len(verdicts), Counter(session.outcome for session in verdicts)
    took_s = sum(session.took_s for session in history) / max(1, len(history))
    head = (
        f"{what}: {n} verdicts: {', '.join(f'{counts[name]} {name}' for name in VERDICTS)}; "
        f"{len(gated) - n} sessions without a verdict; {took_s:.0f} s a session"
    )
    if what == "same":
        return [head, *_false_alarms(verdicts)], n > 0 and counts["FAIL"] == 0
    return [head, *_detections(verdicts)], n > 0 and counts["FAIL"] >= FOUND_BAR * n


def _false_alarms(verdicts: Sequence[Session]) -> list[str]:
    """Say how often the gate failed where nothing changed, and where."""
    n, failed = len(verdicts), [session for session in verdicts if session.outcome == "FAIL"]
    limit = 100 * upper_bound(len(failed), n)
    share = f"false alarms: {len(failed)} of {n}, at most {limit:.2f} % of sessions (95 %)"
    return [share, *(f"  FAIL: {session.text}" for session in failed)]


def _detections(verdicts: Sequence[Session]) -> list[str]:
    """Say how many slowdowns were found, after how many pairs, and how large they looked."""
    n, failed = len(verdicts), [session for session in verdicts if session.outcome == "FAIL"]
    limit = 100 * (1 - upper_bound(n - len(failed), n))
    lines = [f"found: {len(failed)} of {n}, at least {limit:.1f} % (95 %)"]
    pairs = [session.pairs for session in failed if session.pairs]
    ratios = [session.ratio for session in verdicts if session.ratio]
    if pairs and ratios:
        lines.append(
            f"pairs until FAIL: mean {mean(pairs):.1f}, most {max(pairs)}; mean {mean(ratios):.3f}x"
        )
    return lines


def upper_bound(hits: int, n: int) -> float:
    """One-sided 95 % limit of a share (Clopper and Pearson 1934)."""
    low, high = 0.0, 1.0
    if hits >= n:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(hits, n, middle) > 0.05 else (low, middle)
    return high


def _next(history: Sequence[Session], options: argparse.Namespace) -> bool | None:
    """Whether the next session is gated; None if there is none.

    Ends the program where too many gave no verdict.
    """
    verdicts = sum(session.gated and session.outcome in VERDICTS for session in history)
    accepted = sum(session.outcome in {"PASS", "RECORDED", "UNDECIDED"} for session in history)
    if verdicts >= options.sessions:
        return None
    n_without_verdict = sum(session.outcome not in VERDICTS for session in history)
    if n_without_verdict > _MOST_WITHOUT_VERDICT + options.sessions // 5:
        raise SystemExit(
            f"too many sessions without a verdict: the last said {history[-1].text!r}. "
            "Is the machine busy?"
        )
    return options.what == "slower" or accepted >= MIN_SESSIONS


def prepare(folder: Path, what: str, engine: str) -> None:
    """Write the project once, in `slower` committed.

    After an interruption leave out a line of the log that is half written.
    """
    if (folder / "pytest.ini").is_file():
        complete_lines = "".join(json.dumps(asdict(session)) + "\n" for session in sessions(folder))
        (folder / LOG).write_text(complete_lines, encoding="utf-8")
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in PROJECTS[what, engine].items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / ".gitignore").write_text("*\n!*.py\n!pytest.ini\n", encoding="utf-8")
    if what == "slower":
        _commit(folder)
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")


def _commit(folder: Path) -> None:
    author = ("-c", "user.name=soak", "-c", "user.email=soak@localhost")
    for arguments in (("init", "-q"), ("add", "-A"), (*author, "commit", "-qm", "base")):
        subprocess.run(["git", *arguments], cwd=folder, check=True)


def run_one(folder: Path, options: argparse.Namespace, *, gated: bool) -> Session:
    """One session. `slower`: the working tree is made slower than the commit."""
    out = folder / "last.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"--llmperf-json={out}", f"--llmperf-budget={options.budget:g}"]
    if gated:
        command.append("--llmperf-gate" if options.what == "same" else "--llmperf-against=HEAD")
    if options.what == "slower":
        (folder / "slowdown.py").write_text(f"SHARE = {options.slower / 100}\n", encoding="utf-8")
    start = time.monotonic()
    environ = os.environ | {
        "SOAK_SESSION": str(len(sessions(folder))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.run(
        command, cwd=folder, check=False, capture_output=True, text=True, env=environ
    )
    (folder / "last.txt").write_text(process.stdout + process.stderr, encoding="utf-8")
    return _session(out, process, gated=gated, took_s=time.monotonic() - start)


def _session(
    out: Path, process: subprocess.CompletedProcess[str], *, gated: bool, took_s: float
) -> Session:
    code = process.returncode
    lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    if not lines:
        tail = " ".join(process.stdout.split())[-300:]
        return Session(gated=gated, outcome="INVALID", exit_code=code, took_s=took_s, text=tail)
    last = json.loads(lines[-1])
    claims = "; ".join(claim["text"] for claim in last["claims"] if claim["outcome"] != "PASS")
    against = last["extra"].get("against", {}).get("metrics", {}).get("throughput", {})
    return Session(
        gated=gated,
        outcome=against.get("outcome") or last["outcome"],
        exit_code=code,
        took_s=took_s,
        text=claims,
        pairs=len(against["pairs"]) if against else None,
        ratio=against["ratio"][0] if against.get("ratio") else None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("same", "slower"))
    parser.add_argument(
        "--sessions",
        type=int,
        default=None,
        help="verdicts wanted (default: 200 of same, 100 of slower)",
    )
    parser.add_argument("--engine", choices=("transformers", "scripted"), default="transformers")
    parser.add_argument(
        "--budget",
        type=float,
        default=5,
        help="--llmperf-budget: sampling seconds of a run; a block has a fifth",
    )
    parser.add_argument(
        "--slower", type=float, default=10, metavar="PERCENT", help="injected into slower"
    )
    parser.add_argument("--folder", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
