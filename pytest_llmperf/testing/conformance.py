"""What an engine must do, as checks that its author runs.

def test_my_engine(tmp_path):
check_engine(MyEngine(), LoadPlan(model=..., engine="mine"), directory=tmp_path)
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_llmperf.core.agreement.comparison import PromptComparison
from pytest_llmperf.core.effective import Effective
from pytest_llmperf.core.plan import LoadPlan, ModelRef
from pytest_llmperf.core.trace import MemoryGauges, RequestTrace
from pytest_llmperf.engines.base import Engine, LoadedModel
from pytest_llmperf.wire.messages import Ran
from pytest_llmperf.workloads import Decode, Prefill, PromptSet, Workload, describe

__all__ = ["CHECKS", "Check", "NonConforming", "check_engine", "scripted_plan"]

PREFILL = Prefill(batch=2, prompt_tokens=8)
DECODE = Decode(batch=2, prompt_tokens=8, new_tokens=6)
NEW_TOKENS = 4
TOP = 3
EXACT_LOGPROB = 1e-6
DTYPES = ("float32",)


class NonConforming(AssertionError):
    """The engine breaks the protocol.

    One line for each finding: the check, what was found, what was to be expected.
    """


@dataclass(frozen=True)
class Bench:
    """What a check works with: the engine, the plan, and a folder for files.

    `open` gives a fresh session, closed in the end.
    """

    engine: Engine
    plan: LoadPlan
    directory: Path

    @contextlib.contextmanager
    def open(self) -> Iterator[LoadedModel]:
        """A session that is closed afterwards."""
        session = self.engine.open(self.plan)
        try:
            yield session
        finally:
            session.close()


Findings = Iterator[str]


@dataclass(frozen=True)
class Check:
    """One published requirement.

    `find` yields what is wrong in an open session; nothing found is a pass.
    """

    name: str
    requires: str
    find: Callable[[LoadedModel, Bench], Findings]


def check_engine(
    engine: Engine, plan: LoadPlan, *, directory: Path | None = None
) -> tuple[str, ...]:
    """Hold an engine to the protocol of `pytest_llmperf.engines.base`, with small workloads.

    Returns the checks that passed.

    Each check opens the plan anew, so a small model on a CPU takes seconds a check. `directory`
    (default: a temporary one) receives reference files.

    Raises:
        NonConforming: with every finding of every check. What the engine itself raises goes
            through.
    """
    with contextlib.ExitStack() as stack:
        bench = Bench(
            engine, plan, directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        )
        findings = [
            f"{check.name}: {finding}" for check in CHECKS for finding in _find(check, bench)
        ]
    if findings:
        raise NonConforming(
            f"{type(engine).__name__} with {plan.model.name}:\n" + "\n".join(findings)
        )
    return tuple(check.name for check in CHECKS)


def scripted_plan(
    script: str = "", *, strategy: str = "fp32", ranks: int = 1, weights_dtype: str = "float32"
) -> LoadPlan:
    """A load plan of the scripted engine; `script` is what follows "scripted:" in a model name."""
    model = ModelRef(name=f"scripted:{script}", kind="scripted", location=script)
    return LoadPlan(
        model=model, engine="scripted", strategy=strategy, ranks=ranks, weights_dtype=weights_dtype
    )


def _find(check: Check, bench: Bench) -> list[str]:
    with bench.open() as session:
        return list(check.find(session, bench))


def _exact_tokens(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    for workload in (PREFILL, DECODE):
        requests = session.run(workload, 0).trace.requests
        if len(requests) != workload.batch:
            yield f"{describe(workload)}: {len(requests)} requests in the trace, {workload.batch} expected"
        for i, request in enumerate(requests):
            yield from _exact_request(f"{describe(workload)}, request {i}", request, workload)


def _exact_request(where: str, request: RequestTrace, workload: Workload) -> Findings:
    if request.failure is not None:
        yield f"{where}: failed: {request.failure}"
    if request.n_output_tokens != workload.new_tokens:
        yield f"{where}: {request.n_output_tokens} output tokens, exactly {workload.new_tokens} expected"
    if request.n_prompt_tokens != workload.prompt_tokens:
        yield f"{where}: {request.n_prompt_tokens} prompt tokens, exactly {workload.prompt_tokens} expected"


def _monotone_times(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    last_ns: float = -math.inf
    for repetition in (0, 1):
        requests = session.run(DECODE, repetition).trace.requests
        for i, request in enumerate(requests):
            times = [request.t_due_ns, *(e.t_ns for e in request.events)]
            if times != sorted(times) or (len(times) > 1 and times[1] <= times[0]):
                yield f"repetition {repetition}, request {i}: times go back or the first token takes no time: {times} ns"
            if request.t_due_ns < last_ns:
                yield f"repetition {repetition} starts at {request.t_due_ns} ns, the one before ended at {last_ns} ns"
        last_ns = max((e.t_ns for r in requests for e in r.events), default=last_ns)


def _fresh_prompts(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    first, second, again = (
        session.run(DECODE, repetition).prompts_hash for repetition in (0, 1, 0)
    )
    if not first:
        yield "Ran.prompts_hash is empty; a hash of the token ids that went in is needed"
    elif first == second:
        yield "repetitions 0 and 1 ran the same prompts; fresh ones are needed, or a prefix cache answers"
    if first != again:
        yield "repetition 0 ran other prompts the second time; they must follow from the prompt set and the repetition"


def _repeatable(session: LoadedModel, bench: Bench) -> Findings:
    here = [session.run(DECODE, 0).outputs_hash for _ in range(2)]
    with bench.open() as other:
        there = other.run(DECODE, 0).outputs_hash
    if not here[0]:
        yield "Ran.outputs_hash is empty; a hash of the token ids that came out is needed"
    if len({*here, there}) != 1:
        yield f"the same prompts gave different greedy tokens: {here} in one session, {there} in another of the same plan"


def _describes_itself(session: LoadedModel, bench: Bench) -> Findings:
    opened, before = session.opened(), session.describe()
    if opened.effective != before.effective:
        yield f"opened() and describe() differ before any run: {_differences(opened.effective, before.effective)}"
    if not opened.content_hash or opened.vocab_size < 1 or opened.load_s < 0:
        yield f"opened() lacks facts: {opened.content_hash=}, {opened.vocab_size=}, {opened.load_s=}"
    session.run(DECODE, 0)
    after = session.describe().effective
    if after.tensors != before.effective.tensors or after.linears != before.effective.linears:
        yield "a run changed the weights that describe() reports"
    if not after.cache:
        yield "describe() names no cache after a run"
    yield from _describes_plan(after, bench.plan)


def _describes_plan(found: Effective, plan: LoadPlan) -> Findings:
    if found.padding_side != "left":
        yield f"padding is on the {found.padding_side}; a decoder needs it on the left"
    if found.device.partition(":")[0] != plan.device.partition(":")[0] or found.ranks != plan.ranks:
        yield f"describe() says {found.ranks} ranks on {found.device}, the plan {plan.ranks} on {plan.device}"
    stored = {g.dtype for g in found.linears if not g.quantized}
    if plan.weights_dtype != "auto" and stored != {plan.weights_dtype}:
        yield f"linear layers are stored in {sorted(stored)}, the plan says {plan.weights_dtype}"


def _exact_against_itself(session: LoadedModel, bench: Bench) -> Findings:
    path, prompts = bench.directory / "reference", PromptSet.synthetic(0)
    made = session.make_reference(prompts, NEW_TOKENS, 2, str(path))
    if not path.is_file():
        yield f"make_reference wrote no file at {path}"
        return
    rows = session.compare_reference(str(path), 2)
    if made != (len(rows), len(rows) * NEW_TOKENS) or not rows:
        yield f"make_reference says (prompts, positions) = {made}; {len(rows)} prompts of {NEW_TOKENS} tokens were compared"
    for row in rows:
        yield from _exact_row(row)


def _exact_row(row: PromptComparison) -> Findings:
    lengths = {
        len(values)
        for values in (row.top1, row.top5, row.kl, row.reference_logprob, row.candidate_logprob)
    }
    if lengths != {NEW_TOKENS}:
        yield f"prompt {row.index}: sequences of {sorted(lengths)} positions, {NEW_TOKENS} expected in each"
        return
    logprob = max(
        abs(a - b) for a, b in zip(row.reference_logprob, row.candidate_logprob, strict=True)
    )
    if not all(row.top1) or not all(row.top5) or row.first_divergence is not None:
        yield f"prompt {row.index}: a model disagrees with itself: top1 {row.top1}, first divergence {row.first_divergence}"
    if (
        max(map(abs, row.kl)) > EXACT_LOGPROB
        or logprob > EXACT_LOGPROB
        or row.noise > EXACT_LOGPROB * row.signal
    ):
        yield f"prompt {row.index}: not exact: KL {max(row.kl):g}, log-probability off by {logprob:g}, noise {row.noise:g}"


def _next_tokens(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    special = set(session.opened().special_ids)
    prompt = tuple(i for i in range(session.opened().vocab_size) if i not in special)[:3]
    top, again = session.top_tokens(prompt, TOP), session.top_tokens(prompt, TOP)
    logits = [token.logit for token in top.tokens]
    if top.prompt_ids != prompt:
        yield f"top_tokens: the prompt {prompt} went in as {top.prompt_ids}; token ids go in as they are"
    if (
        len(set(top.ids)) != TOP
        or logits != sorted(logits, reverse=True)
        or not all(map(math.isfinite, logits))
    ):
        yield f"top_tokens: {TOP} different tokens, the likeliest first, are needed: {top}"
    if top != again:
        yield f"top_tokens: the same prompt gave {top}, then {again}"
    if session.top_tokens(prompt, 1).ids != top.ids[:1]:
        yield "top_tokens: the likeliest one is not the first of several"


def _sane_memory(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    weights = session.opened().effective.weights_bytes
    measured = session.read_memory(DECODE, 0).memory
    for where, gauges in (
        ("opened", session.opened().memory),
        ("describe", session.describe().memory),
        ("read_memory", measured),
    ):
        if gauges is None:
            yield f"{where}: no memory gauges; an engine that loads models knows at least its weights"
        elif gauges.weights != weights:
            yield f"{where}: memory.weights is {gauges.weights} B, the tensors described hold {weights} B"
    if measured is not None:
        yield from _sane_gauges(measured)


def _sane_gauges(gauges: MemoryGauges) -> Findings:
    for name in ("peak", "reserved", "process", "device", "kv_cache"):
        value = getattr(gauges, name)
        if value is None and not gauges.reasons.get(name):
            yield f"read_memory: memory.{name} is None without a reason"
        if value is not None and value <= 0:
            yield f"read_memory: memory.{name} is {value} B; what is unknown is None with a reason, never 0"


def _sane_energy(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    energy = session.read_energy(DECODE, 0, 0.0)
    if energy.joules is None and not energy.reason:
        yield "read_energy: joules is None without a reason"
    if energy.joules is not None and (
        energy.joules <= 0 or not energy.source or energy.n_output_tokens < 1 or energy.seconds <= 0
    ):
        yield f"read_energy: a reading needs joules, seconds and tokens above 0 and a source: {energy}"


def _sane_ceilings(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    found = session.ceilings(DTYPES)
    rates = (
        [found.copy_bytes_per_s, *(found.matmul_flop_per_s.get(dtype, 0.0) for dtype in DTYPES)]
        if found
        else []
    )
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        yield f"ceilings: a copy bandwidth above 0 and a matmul rate above 0 for each of {DTYPES} are needed: {found}"


def _sane_cost(session: LoadedModel, bench: Bench) -> Findings:  # noqa: ARG001
    step, weights = session.run(DECODE, 0).step, session.opened().effective.weights_bytes
    if step is None:
        yield "Ran.step is None; MBU and MFU need what a step moves and computes"
    elif not 0 < step.weight_bytes_read <= weights:
        yield f"a step reads {step.weight_bytes_read} B of weights; it must be above 0 and at most the {weights} B there are"
    elif step.flops_per_token <= 0 or step.kv_bytes_per_token <= 0:
        yield f"the cost of a step is impossible: {step}"


def _close_frees(session: LoadedModel, bench: Bench) -> Findings:
    weights = session.opened().memory.weights
    session.close()
    answered = _answers(session)
    if answered is not None:
        yield f"run() after close() answered ({answered.trace.repetition=}); a closed session must raise"
    with bench.open() as again:
        if again.opened().memory.weights != weights:
            yield f"opened again, the weights take {again.opened().memory.weights} B instead of {weights} B"
    session.close()


def _answers(session: LoadedModel) -> Ran | None:
    try:
        return session.run(DECODE, 0)
    except Exception:  # noqa: BLE001 - any error is the right answer here
        return None


def _differences(one: Effective, other: Effective) -> str:
    return ", ".join(
        f"{name} {getattr(one, name)!r} / {getattr(other, name)!r}"
        for name in Effective.__struct_fields__
        if getattr(one, name) != getattr(other, name)
    )


CHECKS: Sequence[Check] = (
    Check("exact tokens", "every request gets exactly the tokens asked for", _exact_tokens),
    Check(
        "monotone times",
        "token times never go back, and repetitions do not overlap",
        _monotone_times,
    ),
    Check(
        "fresh prompts",
        "each repetition has prompts of its own, the same ones each time",
        _fresh_prompts,
    ),
    Check("repeatable", "equal plans and prompts give equal greedy tokens", _repeatable),
    Check(
        "describes itself",
        "what is in effect is said, and is what the plan asked for",
        _describes_itself,
    ),
    Check(
        "exact against itself",
        "the reference against itself: KL 0, every token equal",
        _exact_against_itself,
    ),
    Check(
        "next tokens",
        "token ids go in as they are, and the likeliest come out in order",
        _next_tokens,
    ),
    Check("memory", "weights are those described; nothing unknown is 0", _sane_memory),
    Check("energy", "a reading with its source, or the reason why there is none", _sane_energy),
    Check("ceilings", "copy bandwidth and matmul rates above 0", _sane_ceilings),
    Check("cost of a step", "what a step reads is there to be read", _sane_cost),
    Check(
        "close frees",
        "a closed session answers nothing, and the plan opens again; closing twice does no harm",
        _close_frees,
    ),
)
"""All requirements, in the order they are checked.

Parametrise over them to see each as a test of its own.
"""
