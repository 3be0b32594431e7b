"""The conformance checks pass an engine that keeps the protocol, and catch one that breaks it."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from pytest_llmperf.core.trace import EnergyReading
from pytest_llmperf.testing import (
    CHECKS,
    NonConforming,
    ScriptedEngine,
    check_engine,
    scripted_plan,
)


@pytest.mark.parametrize(
    "plan",
    [
        scripted_plan(),
        scripted_plan("noise=0.1,power=none,weights=7MB"),
        scripted_plan(strategy="bf16", weights_dtype="bfloat16"),
        replace(scripted_plan(), cache="static", compile="default", attention="eager"),
        replace(scripted_plan(), weights_dtype="auto", autocast_dtype="float16"),
    ],
    ids=["default", "options", "bf16", "execution", "autocast"],
)
def test_the_scripted_engine_conforms(plan, tmp_path):
    """Every check is passed, and said to be."""
    assert check_engine(ScriptedEngine(), plan, directory=tmp_path) == tuple(
        check.name for check in CHECKS
    )


class Bent:
    """A scripted engine with one method of its sessions replaced."""

    def __init__(self, method, change):
        self.method, self.change = method, change

    def open(self, plan):
        session = ScriptedEngine().open(plan)
        original = getattr(session, self.method)
        setattr(session, self.method, lambda *arguments: self.change(session, original, *arguments))
        return session


def run_with(**changes):
    return lambda _session, run, *arguments: replace(run(*arguments), **changes)


def trace_with(change):
    def run_changed(_session, run, *arguments):
        ran = run(*arguments)
        requests = tuple(change(request) for request in ran.trace.requests)
        return replace(ran, trace=replace(ran.trace, requests=requests))

    return run_changed


def memory_with(**changes):
    return lambda _session, read, *arguments: replace(read(*arguments), **changes)


def top_with(**changes):
    return lambda _session, top, *arguments: replace(top(*arguments), **changes)


def described_with(**changes):
    def describe(_session, original):
        described = original()
        return replace(described, effective=replace(described.effective, **changes))

    return describe


def rows_with(change):
    return lambda _session, compare, *arguments: tuple(change(row) for row in compare(*arguments))


def always_the_same_time(session, run, *arguments):
    session._clock.now_ns = 0
    return run(*arguments)


def weights_that_change(session, run, *arguments):
    session._claims.elements += 1
    return run(*arguments)


NO_ENERGY = EnergyReading(joules=0, seconds=1, n_output_tokens=1, source="x")
SCRIPTS = {
    "short output": (
        "fault=short_output@run",
        "exact tokens: decode b2 p8 n6, request 0: 5 output tokens, exactly 6",
    ),
    "right padding": ("fault=right_padding@open", "describes itself: padding is on the right"),
    "another dtype": (
        "lie=weights_dtype:bfloat16",
        r"linear layers are stored in \['bfloat16'\], the plan says float32",
    ),
    "no kv cache": ("kv=0B", "cost of a step: the cost of a step is impossible"),
}


@pytest.mark.parametrize(("script", "finding"), SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_that_breaks_the_protocol_is_caught(script, finding, tmp_path):
    """Faults of the scripted engine itself."""
    with pytest.raises(NonConforming, match=finding):
        check_engine(ScriptedEngine(), scripted_plan(script), directory=tmp_path)


BENT = {
    "too few requests": (
        "run",
        trace_with(lambda r: replace(r, n_prompt_tokens=7)),
        "7 prompt tokens, exactly 8",
    ),
    "a failed request": ("run", trace_with(lambda r: replace(r, failure="boom")), "failed: boom"),
    "no requests": (
        "run",
        lambda _s, run, *a: replace(run(*a), trace=replace(run(*a).trace, requests=())),
        "0 requests in the trace, 2 expected",
    ),
    "times go back": (
        "run",
        trace_with(lambda r: replace(r, events=r.events[::-1])),
        "times go back",
    ),
    "no time to first token": (
        "run",
        trace_with(lambda r: replace(r, t_due_ns=r.events[0].t_ns)),
        "first token takes no time",
    ),
    "overlap": (
        "run",
        always_the_same_time,
        "repetition 1 starts at 1000000 ns, the one before ended",
    ),
    "same prompts": (
        "run",
        run_with(prompts_hash="same"),
        "repetitions 0 and 1 ran the same prompts",
    ),
    "no prompts hash": ("run", run_with(prompts_hash=""), "prompts_hash is empty"),
    "no outputs hash": ("run", run_with(outputs_hash=""), "outputs_hash is empty"),
    "random prompts": (
        "run",
        lambda s, run, *a: replace(run(*a), prompts_hash=f"{s._clock.now_ns}"),
        "other prompts the second time",
    ),
    "random tokens": (
        "run",
        lambda s, run, *a: replace(run(*a), outputs_hash=f"{s._clock.now_ns}"),
        "different greedy tokens",
    ),
    "no step": ("run", run_with(step=None), "TimedRun.step is None"),
    "impossible step": (
        "run",
        lambda _s, run, *a: replace(run(*a), step=replace(run(*a).step, weight_bytes_read=10**12)),
        "a step reads 1000000000000 B",
    ),
    "changing weights": ("run", weights_that_change, "a run changed the weights"),
    "another device": (
        "describe",
        described_with(device="cuda:0"),
        "1 ranks on cuda:0, the plan 1 on cpu",
    ),
    "no cache": ("describe", described_with(cache=""), "names no cache after a run"),
    "two descriptions": (
        "describe",
        described_with(model_class="Other"),
        "model_class 'ScriptedModel' / 'Other'",
    ),
    "no facts": ("opened", lambda _s, opened: replace(opened(), content_hash=""), "lacks facts"),
    "no reference file": ("make_reference", lambda *_: (8, 32), "wrote no file"),
    "wrong counts": (
        "make_reference",
        lambda _s, make, *a: (make(*a)[0], 1),
        r"\(prompts, positions\) = \(8, 1\)",
    ),
    "not exact": (
        "compare_reference",
        rows_with(lambda row: replace(row, kl=(0.1,) * 4)),
        "KL 0.1",
    ),
    "disagrees with itself": (
        "compare_reference",
        rows_with(lambda row: replace(row, first_divergence=2)),
        "first divergence 2",
    ),
    "ragged rows": (
        "compare_reference",
        rows_with(lambda row: replace(row, kl=(0.0,))),
        r"sequences of \[1, 4\] positions",
    ),
    "retokenised prompt": ("top_tokens", top_with(prompt_ids=(9,)), r"went in as \(9,\)"),
    "tokens out of order": (
        "top_tokens",
        lambda _s, top, *a: replace(top(*a), tokens=top(*a).tokens[::-1]),
        "the likeliest first",
    ),
    "too few tokens": (
        "top_tokens",
        lambda _s, top, prompt, _k: top(prompt, 1),
        "3 different tokens",
    ),
    "another answer": (
        "top_tokens",
        lambda s, top, prompt, k: top(
            (*prompt, next(s.__dict__.setdefault("calls", itertools.count())) % 2), k
        ),
        "the same prompt gave",
    ),
    "another first": (
        "top_tokens",
        lambda _s, top, prompt, k: top(prompt[: max(1, k - 1)], k),
        "not the first of several",
    ),
    "unknown as 0": ("read_memory", memory_with(peak=0), "memory.peak is 0 B"),
    "None without reason": (
        "read_memory",
        memory_with(process=None),
        "memory.process is None without a reason",
    ),
    "other weights": (
        "read_memory",
        memory_with(weights=5),
        "memory.weights is 5 B, the tensors described hold 1000",
    ),
    "no gauges": ("read_memory", lambda *_: None, "no memory gauges"),
    "energy without reason": (
        "read_energy",
        lambda *_: EnergyReading(joules=None, seconds=1, n_output_tokens=1),
        "joules is None without a reason",
    ),
    "energy of 0": (
        "read_energy",
        lambda *_: EnergyReading(joules=0, seconds=1, n_output_tokens=1, source="x"),
        "joules, seconds",
    ),
    "no ceilings": ("ceilings", lambda *_: None, "a copy bandwidth above 0"),
    "never closes": ("close", lambda *_: None, r"run\(\) after close\(\) answered"),
}


@pytest.mark.parametrize(("method", "change", "finding"), BENT.values(), ids=BENT)
def test_an_engine_that_breaks_the_protocol_is_caught(method, change, finding, tmp_path):
    """One violation each, and the message says what was found and what was to be expected."""
    with pytest.raises(NonConforming, match=finding):
        check_engine(Bent(method, change), scripted_plan(), directory=tmp_path)


def test_a_plan_that_loads_differently_the_second_time_is_caught(tmp_path):
    """Opened again, the weights take more.

    Something of the first model was not given back, or the plan does not decide.
    """
    sizes = iter(range(50, 500))

    class Growing:
        def open(self, _plan):
            return ScriptedEngine().open(scripted_plan(f"weights={next(sizes)}MB"))

    with pytest.raises(NonConforming, match=r"close frees: opened again, the weights take"):
        check_engine(Growing(), scripted_plan(), directory=tmp_path)


def test_all_findings_are_in_one_message(tmp_path):
    """An engine's author sees everything at once, by check."""
    with pytest.raises(NonConforming) as caught:
        check_engine(
            ScriptedEngine(),
            scripted_plan("fault=short_output@run,fault=right_padding@open"),
            directory=tmp_path,
        )
    assert {line.partition(":")[0] for line in str(caught.value).splitlines()[1:]} == {
        "exact tokens",
        "describes itself",
    }
